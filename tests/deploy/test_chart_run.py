"""The chart's pods without a cluster: each container's own command runs here as it was rendered, with
folders and addresses mapped to this machine, and each probe is asked.

Stand-ins: a simulated replica where `llama-headless` points, a real redis-server, one page of the Kubernetes
API.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from deploy_harness import GOLDEN, ROOT
from gateway import Child, envoy_binary, free_ports, show_logs, wait_for
from redis_harness import Redis
from replicas import Replicas

from extproc._pb import health_pb2
from extproc.sim.spec import ReplicaSpec

PROBE_KEY = "sk-steer-probe-of-the-test"
NODE_TOKEN = "sk-steer-node-of-the-test"
KEY_SECRET = "a secret of sixteen bytes and more"
#: Ports of the manifests that something listens on.
PORTS = (8080, 9901, 50051, 50052, 50054, 9090, 9002)


class Cluster:
    """A mode's manifests, and their pods as processes."""

    def __init__(self, mode: str, folder: Path, *, redis: str, replica: str, api: str = "") -> None:
        text = (GOLDEN / f"{mode}.yaml").read_text(encoding="utf-8")
        self.documents = [each for each in yaml.load_all(text, Loader=yaml.CSafeLoader) if each]
        self.folder = folder
        self.replica, self.api = replica, api
        self.redis = redis.removeprefix("redis://").partition("/")[0]
        self.children: list[Child] = []
        #: What the release's owner would have made beforehand.
        self.secrets = {
            "steersman-probe": {"key": PROBE_KEY},
            "steersman-node-tokens": {"gpu-1": NODE_TOKEN},
            "steersman-key-secret": {"key-secret": KEY_SECRET},
            "steersman-decision-token": {"token": "a-token-of-this-chart"},
        }
        for each in self.documents:
            if each["kind"] == "Secret":
                self.secrets[each["metadata"]["name"]] = each["stringData"]

    def pod(self, name: str, *, pod_name: str = "", ports: dict[int, int]) -> Pod:
        """A pod of a workload; `ports` are its own."""
        (workload,) = [
            d
            for d in self.documents
            if d["metadata"]["name"] == name and d["kind"] in ("Deployment", "StatefulSet", "DaemonSet")
        ]
        return Pod(self, workload["spec"]["template"]["spec"], pod_name or name, ports)

    def mapped(self, text: str, ports: dict[int, int]) -> str:
        """Addresses as they are here."""
        for there, here in ports.items():
            text = re.sub(rf"\b(0\.0\.0\.0|127\.0\.0\.1):{there}\b", f"127.0.0.1:{here}", text)
            text = text if text != str(there) else str(here)
        text = text.replace("redis://redis:6379", f"redis://{self.redis}")
        host, _, port = self.replica.rpartition(":")
        text = re.sub(r"name: llama-headless(\s+)port: 8000", rf"name: {host}\1port: {port}", text)
        # The key's hash that the values have stands for the probe's.
        return text.replace(
            "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7", _hash(PROBE_KEY)
        ).replace("81b637d8fcd2c6da6359e6963113a1170de795e4b725b84d1e0b4cfd9ec58ce9", _hash(NODE_TOKEN))

    def stop(self) -> None:
        """Every process, the last first."""
        for child in reversed(self.children):
            child.stop()


def _hash(key: str) -> str:
    from extproc.core.tenant import hash_key

    return hash_key(key)


class Pod:
    """One pod: its volumes are folders, its containers processes."""

    def __init__(self, cluster: Cluster, spec: dict[str, Any], name: str, ports: dict[int, int]) -> None:
        self.cluster, self.spec, self.name, self.ports = cluster, spec, name, ports
        self.folder = cluster.folder / name
        self.volumes: dict[str, Path] = {}
        for volume in spec["volumes"]:
            path = self.volumes[volume["name"]] = self.folder / volume["name"]
            path.mkdir(parents=True)
            for file, content in self._content(volume).items():
                (path / file).write_text(cluster.mapped(content, ports), encoding="utf-8")

    def _content(self, volume: dict[str, Any]) -> dict[str, str]:
        if "secret" in volume:
            held = self.cluster.secrets[volume["secret"]["secretName"]]
            items = volume["secret"].get("items") or [{"key": key, "path": key} for key in held]
            return {each["path"]: held[each["key"]] for each in items}
        if "configMap" in volume:
            name = volume["configMap"]["name"]
            (found,) = [
                d
                for d in self.cluster.documents
                if d["kind"] == "ConfigMap" and d["metadata"]["name"] == name
            ]
            held = {}
            for key, text in found["data"].items():
                target = f"127.0.0.1:{self.ports.get(50052, 50052)}"
                held[key] = re.sub(r"steersman-[a-z0-9-]+\.llm\.svc:50052", target, text)
            return held
        return {"token": "an account's", "ca.crt": ""} if "projected" in volume else {}

    def container(self, name: str) -> dict[str, Any]:
        """One of either kind."""
        (found,) = [
            c for c in (*self.spec.get("initContainers", []), *self.spec["containers"]) if c["name"] == name
        ]
        return dict(found)

    def arguments(self, container: dict[str, Any], parts: list[str]) -> list[str]:
        """A command as the kubelet would start it, with this machine's folders and addresses."""
        environment = {e["name"]: self._value(e) for e in container.get("env", [])}
        environment["KUBERNETES_API"] = self.cluster.api
        if "STEERSMAN_PROBE_KEY_FILE" in environment:
            environment["STEERSMAN_PROBE_KEY_FILE"] = self._path(
                container, environment["STEERSMAN_PROBE_KEY_FILE"]
            )
        path = f"{Path(sys.executable).parent}:{Path(envoy_binary()).parent}:/usr/bin:/bin"
        done = []
        for part in parts:
            for variable, value in environment.items():
                part = part.replace(f"$({variable})", value)
            # Ours last: this repository may itself lie in a folder that the container mounts (/tmp).
            part = self._path(container, part).replace("/opt/steersman/", f"{ROOT}/deploy/docker/bin/")
            done.append(self.cluster.mapped(part, self.ports))
        return ["env", f"PATH={path}", *(f"{k}={v}" for k, v in environment.items()), *done]

    def _value(self, entry: dict[str, Any]) -> str:
        field = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        return {"metadata.name": self.name, "spec.nodeName": "gpu-1", None: str(entry.get("value"))}[field]

    def _path(self, container: dict[str, Any], text: str) -> str:
        places = {}
        for mount in container["volumeMounts"]:
            below = mount.get("subPathExpr", "").replace("$(NODE_NAME)", "gpu-1")
            places[mount["mountPath"]] = str(self.volumes[mount["name"]] / below)
        longest_first = sorted(places, key=len, reverse=True)
        pattern = rf"(?<![\w.-])({'|'.join(map(re.escape, longest_first))})(?=/|$|\s)"
        return re.sub(pattern, lambda found: places[found[1]], text)

    def command(self, name: str) -> list[str]:
        """What a container runs: its command and arguments, else after its image's entry point."""
        container = self.container(name)
        parts = [*container.get("command", ["steersman"]), *container.get("args", [])]
        return self.arguments(container, parts)

    def remap_files(self, volume: str, container: str) -> None:
        """Folders that stand inside files, as a container's mounts have them."""
        for file in self.volumes[volume].iterdir():
            file.write_text(
                self._path(self.container(container), file.read_text(encoding="utf-8")), encoding="utf-8"
            )

    def run(self, name: str) -> None:
        """A container that ends."""
        done = subprocess.run(self.command(name), capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"

    def start(self, name: str) -> Child:
        """A container that stays."""
        child = Child(f"{self.name}-{name}", self.command(name), self.cluster.folder)
        child.start()
        self.cluster.children.append(child)
        return child

    def probe(self, name: str, kind: str) -> bool:
        """Whether a probe passes, asked as the kubelet does."""
        container = self.container(name)
        probe = container[f"{kind}Probe"]
        if "exec" in probe:
            arguments = self.arguments(container, probe["exec"]["command"])
            return subprocess.run(arguments, capture_output=True, check=False).returncode == 0
        with grpc.insecure_channel(f"127.0.0.1:{self.ports[probe['grpc']['port']]}") as channel:
            try:
                answer = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=2)
            except grpc.RpcError:
                return False
        status = health_pb2.HealthCheckResponse.FromString(answer).status
        return bool(status == health_pb2.HealthCheckResponse.SERVING)

    def ready(self, name: str, kind: str = "readiness", *, timeout_s: float = 90.0) -> None:
        """Waits for a probe."""
        wait_for(f"{self.name}/{name} {kind}", lambda: self.probe(name, kind), timeout_s=timeout_s)


@pytest.fixture
def stand_ins(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Redis, and one simulated replica."""
    redis_folder = tmp_path / "redis"
    redis_folder.mkdir()
    spec = ReplicaSpec(name="sim", port=0, model_id="llama-3-8b", time_scale=20.0)
    with Redis(redis_folder) as redis, Replicas([spec]) as replicas:
        yield redis.url, replicas.addresses[0]


@contextmanager
def _stopping(cluster: Cluster) -> Iterator[None]:
    try:
        yield
    except BaseException:
        show_logs(cluster.children)
        raise
    finally:
        cluster.stop()


def _ports() -> dict[int, int]:
    return dict(zip(PORTS, free_ports(len(PORTS)), strict=True))


def _chat(port: int, key: str) -> int:
    body = {"model": "llama-3-8b", "messages": [{"role": "user", "content": "Ahoy"}], "max_tokens": 4}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.soak
@pytest.mark.envoy
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sidecar(stand_ins: tuple[str, str], tmp_path: Path) -> None:
    """The pod becomes ready in its order, serves a request, and drains by its own hook, streams first."""
    redis, replica = stand_ins
    cluster = Cluster("sidecar", tmp_path, redis=redis, replica=replica)
    pod = cluster.pod("steersman-gateway", ports=_ports())
    pod.remap_files("config", "steersman")
    # No collector here: its name would not be found.
    render = pod.command("render")
    assert "--otlp otel-collector.observability:4317" in render[-1]
    render[-1] = render[-1].replace("otel-collector.observability:4317", "localhost:4317")
    with _stopping(cluster):
        done = subprocess.run(render, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        pod.start("steersman")
        pod.ready("steersman", "startup")
        assert pod.probe("envoy", "readiness") is False
        envoy = pod.start("envoy")
        pod.ready("envoy")
        assert pod.probe("steersman", "liveness")
        wait_for("the replica", lambda: _chat(pod.ports[8080], PROBE_KEY) == 200)
        assert _chat(pod.ports[8080], "sk-steer-nobody") == 401
        container = pod.container("envoy")
        hook = pod.arguments(container, container["lifecycle"]["preStop"]["exec"]["command"])
        began = time.monotonic()
        assert subprocess.run(hook, capture_output=True, check=False, timeout=60).returncode == 0
        assert time.monotonic() - began < 30, "nothing ran, so that there was nothing to wait for"
        assert envoy.stop() == 0


@pytest.mark.soak
@pytest.mark.envoy
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_shared(stand_ins: tuple[str, str], tmp_path: Path) -> None:
    """Envoy finds both services by name, in the order in which they know themselves, and misses the third."""
    redis, replica = stand_ins
    cluster = Cluster("shared", tmp_path, redis=redis, replica=replica)
    with _stopping(cluster):
        services = []
        for index in range(2):
            pod = cluster.pod("steersman-service", pod_name=f"steersman-service-{index}", ports=_ports())
            pod.remap_files("config", "steersman")
            pod.start("steersman")
            services.append(pod)
        for pod in services:
            pod.ready("steersman")
        # All are on one host here, where the port alone tells whose endpoints Envoy takes.
        ports = {**_ports(), 50054: services[0].ports[50054]}
        gateway = cluster.pod("steersman-gateway", ports=ports)
        gateway.remap_files("config", "render")
        render = gateway.command("render")
        names = ",".join(f"steersman-service-{i}" for i in range(3))
        assert f"--services {names}" in render[-1]
        nobody = free_ports(1)[0]
        here = [f"localhost:{pod.ports[50051]}" for pod in services] + [f"localhost:{nobody}"]
        render[-1] = render[-1].replace(names, ",".join(here))
        done = subprocess.run(render, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        resolved = yaml.safe_load((gateway.volumes["run"] / "steersman.yaml").read_text(encoding="utf-8"))
        wanted = [address.replace("localhost", "127.0.0.1") for address in here]
        assert resolved["gateway"]["services"] == wanted
        gateway.start("envoy")
        # No tenant of its values has a key in the clear, so that the way is what is asked.
        wait_for("Envoy and a service", lambda: _chat(ports[8080], "sk-steer-nobody") == 401)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_picker(stand_ins: tuple[str, str], tmp_path: Path) -> None:
    """The service alone says by gRPC health, under the protocol's names too, that it serves."""
    redis, replica = stand_ins
    cluster = Cluster("picker", tmp_path, redis=redis, replica=replica)
    pod = cluster.pod("steersman-service", ports=_ports())
    pod.remap_files("config", "steersman")
    with _stopping(cluster):
        pod.start("steersman")
        pod.ready("steersman")


class _Api(BaseHTTPRequestHandler):
    """The one question that an agent's pod asks the Kubernetes API."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.asked.append((self.path, self.headers["authorization"]))
        body = json.dumps({"items": server.items}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (http.server's name)
        """Silent."""


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_agent(stand_ins: tuple[str, str], tmp_path: Path) -> None:
    """The DaemonSet's pod finds its node's replicas, reports them, and drains a pod that is being deleted."""
    redis, replica = stand_ins
    host, _, port = replica.rpartition(":")
    running = {
        "metadata": {
            "name": "llama-0",
            "annotations": {"steersman/pool": "llama", "steersman/engine": "tgi", "steersman/port": port},
        },
        "status": {"phase": "Running", "podIP": host},
    }
    api: Any = HTTPServer(("127.0.0.1", 0), _Api)
    api.items, api.asked = [running], []
    threading.Thread(target=api.serve_forever, daemon=True).start()
    cluster = Cluster(
        "sidecar", tmp_path, redis=redis, replica=replica, api=f"http://127.0.0.1:{api.server_port}"
    )
    ports = _ports()
    service = cluster.pod("steersman-gateway", ports=ports)
    service.remap_files("config", "steersman")
    for file in service.volumes["config"].iterdir():
        file.write_text(
            file.read_text(encoding="utf-8").replace("10.0.0.0/8", "127.0.0.0/8"), encoding="utf-8"
        )
    agent = cluster.pod("steersman-agent", ports=ports)
    agent.remap_files("config", "agent")
    account = f"--account={agent.volumes['api']}"
    try:
        with _stopping(cluster):
            service.start("steersman")
            service.ready("steersman", "startup")
            first_look = [*agent.command("first-look"), account]
            done = subprocess.run(first_look, capture_output=True, text=True, check=False, timeout=30)
            assert done.returncode == 0, done.stderr
            path, authorization = api.asked[0]
            assert path.startswith("/api/v1/namespaces/llm/pods?labelSelector=steersman%2Freplica%3Dtrue")
            assert path.endswith("fieldSelector=spec.nodeName%3Dgpu-1")
            assert authorization == "Bearer an account's"
            pods = Child("pods", [*agent.command("pods"), account], tmp_path)
            pods.start()
            cluster.children.append(pods)
            agent.start("agent")
            socket = f"unix:{service.volumes['data']}/run/extproc.orders.sock"

            def seen() -> dict[str, Any]:
                with grpc.insecure_channel(socket) as channel:
                    said = json.loads(channel.unary_unary("/steersman.status.v1.Status/Get")(b"", timeout=2))
                return next((e for e in said["endpoints"] if e["address"] == replica), {})

            wait_for("the agent's report", lambda: seen().get("state") == "ready", timeout_s=30)
            running["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            wait_for(
                "the drain",
                lambda: (
                    yaml.safe_load((agent.volumes["run"] / "agent.yaml").read_text())["drain"] == [replica]
                ),
            )
    finally:
        api.shutdown()
        api.server_close()


def test_no_key_is_in_a_manifest(chart: tuple[str, list[dict[str, Any]]]) -> None:
    """What the chart makes holds keys' hashes alone: keys themselves come in Secrets of the owner's."""
    for each in chart[1]:
        if each["kind"] == "Secret":
            assert "data" not in each
            assert "sk-steer-" not in "".join(each["stringData"].values())

"""`steersman init` and then `up`: from addresses to an answer, with nothing written by hand."""

from __future__ import annotations

import json
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from gateway import free_ports, wait_for
from openai import OpenAI
from processes import STEERSMAN, Child, steersman
from replicas import Replicas, specs

pytestmark = pytest.mark.envoy

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / ".weights" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def begun(folder: Path, *backends: str) -> tuple[Path, dict[str, Any]]:
    """What init wrote and told, moved to ports that are free for this test alone."""
    file = folder / "steersman.yaml"
    told = json.loads(steersman("init", *backends, "-o", str(file), "--json"))
    config = yaml.safe_load(file.read_text())
    listen, admin, service = (f"127.0.0.1:{port}" for port in free_ports(3))
    text = file.read_text().replace(config["gateway"]["listen"], listen)
    text = text.replace(config["gateway"]["envoy_admin"], admin).replace(
        config["service"]["listen"][0], service
    )
    file.write_text(text)
    told["url"] = f"http://{listen}"
    return file, told


def served(folder: Path, file: Path) -> Iterator[Child]:
    """`steersman up` of a file, until the test is over."""
    up = Child("up", [*STEERSMAN, "up", "-f", str(file), "--no-table", "--concurrency", "1"], folder)
    up.start()
    try:
        wait_for("up", lambda: "serving at" in up.log.read_text(errors="replace"), timeout_s=60)
        yield up
    finally:
        up.stop()


def answer(told: dict[str, Any], model: str) -> str:
    """A chat through the gateway with the key that init showed."""
    client = OpenAI(base_url=f"{told['url']}/v1", api_key=told["key"], max_retries=2, timeout=60)
    messages: Any = [{"role": "user", "content": "Say hello."}]
    found = client.chat.completions.create(model=model, messages=messages, max_tokens=8)
    return found.choices[0].message.content or ""


def test_from_two_replicas_to_an_answer(tmp_path: Path) -> None:
    """init, check, up, a prompt by the new key, doctor: all well, and no other step."""
    with Replicas(specs(2)) as replicas:
        file, told = begun(tmp_path, *replicas.addresses)
        assert [pool["models"] for pool in told["pools"]] == [["tiny-chat"]]
        steersman("check", "-f", str(file))
        for _ in served(tmp_path, file):
            assert answer(told, "tiny-chat")
            report = json.loads(steersman("doctor", "-f", str(file), "--key", told["key"], "--json"))
            assert report["well"]
            assert "service.probe" in report["passed"]


#: What each engine says of itself, as far as init asks.
PAGES: dict[str, dict[str, Any]] = {
    "vllm": {"/version": {"version": "0.11.0"}, "/v1/models": {"data": [{"id": "tiny-chat"}]}},
    "sglang": {
        "/get_model_info": {"model_path": "/weights/tiny"},
        "/get_server_info": {"max_total_num_tokens": 200_000, "max_running_requests": 48},
        "/v1/models": {"data": [{"id": "tiny-chat"}]},
    },
    "llamacpp": {
        "/props": {"total_slots": 2, "default_generation_settings": {"n_ctx": 2048}},
        "/v1/models": {"data": [{"id": "tiny-chat"}]},
    },
}


@contextmanager
def disguised(address: str, pages: dict[str, Any]) -> Iterator[str]:
    """A simulated replica behind another engine's pages; its ip:port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path in pages or self.path == "/health"
            self._answer(200 if known else 404, json.dumps(pages.get(self.path)).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            asked = urllib.request.Request(
                f"http://{address}{self.path}", body, {"content-type": "application/json"}
            )
            with urllib.request.urlopen(asked, timeout=30) as told:
                self._answer(told.status, told.read())

        def _answer(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


#: The first in `make test`; what `init` makes of the others' pages is tests/cli/test_init.py's.
EACH = [each if at == 0 else pytest.param(each, marks=pytest.mark.soak) for at, each in enumerate(PAGES)]


@pytest.mark.parametrize("engine", EACH)
def test_from_each_kind_of_engine_to_an_answer(tmp_path: Path, engine: str) -> None:
    """init knows the engine by its pages; check, up and a first answer, without a header of ours."""
    with Replicas(specs(1)) as replicas, disguised(replicas.addresses[0], PAGES[engine]) as address:
        file, told = begun(tmp_path, address)
        assert [pool["engine"] for pool in told["pools"]] == [engine]
        steersman("check", "-f", str(file))
        for _ in served(tmp_path, file):
            client = OpenAI(base_url=f"{told['url']}/v1", api_key=told["key"], max_retries=2, timeout=60)
            messages: Any = [{"role": "user", "content": "Say hello."}]
            raw = client.chat.completions.with_raw_response.create(
                model="tiny-chat", messages=messages, max_tokens=8
            )
            assert raw.status_code == 200
            assert [name for name in raw.headers if name.startswith("x-steersman-")] == []


@pytest.mark.soak
@pytest.mark.engine
def test_from_a_real_engine_to_an_answer(tmp_path: Path) -> None:
    """llama.cpp's own server: its slots are the permits, its alias the model."""
    try:
        import xllamacpp  # noqa: F401  (whether it is there)

        missing = "" if WEIGHTS.exists() else f"no weights at {WEIGHTS}: make weights"
    except ImportError:
        missing = "xllamacpp is not installed: make setup"
    if missing:
        pytest.skip(missing)
    port = free_ports(1)[0]
    script = Path(__file__).parent / "engine_server.py"
    engine = Child("engine", [sys.executable, str(script), str(WEIGHTS), str(port)], tmp_path)
    engine.start()
    try:
        wait_for(
            "the engine", lambda: "listening on http" in engine.log.read_text(errors="replace"), timeout_s=60
        )
        file, told = begun(tmp_path, f"127.0.0.1:{port}")
        (pool,) = told["pools"]
        assert (pool["engine"], pool["models"]) == ("llamacpp", ["smollm2"])
        assert pool["endpoints"][0]["max_concurrent"] == 2
        for _ in served(tmp_path, file):
            assert answer(told, "smollm2")
            report = json.loads(steersman("doctor", "-f", str(file), "--json"))
            assert [each for each in report["findings"] if each["severity"] == "error"] == []
    finally:
        engine.stop()

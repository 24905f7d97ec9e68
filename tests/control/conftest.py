"""A real Envoy between a small client, two upstreams and a service that does what the request says.

The service and the upstreams live on one event loop in a thread; tests are plain functions. What
each of them shall do for a request is in the request's own headers, so tests share one gateway:

- `x-test-endpoints: b,a` the decision's ordered endpoints
- `x-test-hold-ms`        the service holds the request for so long
- `x-test-reject: 429`    the service answers itself
- `x-test-undecided`      the service answers with no decision
- `x-test-status-a: 503`  upstream a answers with this status
- `x-test-stuck-a`        upstream a does not answer
- `x-test-comment`        a stream begins with an SSE comment
- `x-test-pad`            bytes of padding in a whole answer, or in a stream's last event
- `x-test-say: TEXT`      what a stream begins with, written as it is; "\\n" stands for a line's end
- `x-test-stream-status`  a stream's status
- `x-test-event: CLUSTER` whom the decision wants to be told of the first token; none when "-"
- `x-test-gate`           a stream's last event waits until the upstream's `gate` is open
- `x-test-first-ms`, `x-test-gap-ms`, `x-test-tokens`  how an upstream streams
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from gateway import free_ports
from processes import Process

from extproc.config.load import loads
from extproc.control.ads_server import AdsPublisher
from extproc.control.snapshot import EndpointState, FleetSnapshot, SnapshotBuilder
from extproc.core import contract
from tests.control.scripted_service import START_S_MAX, Loop, Seen, Service


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a binary the real-Envoy tests are skipped, but a CI that skipped them would prove nothing."""
    if envoy_binary() is None:
        skip = pytest.mark.skip(reason="no envoy binary; make setup, or put one on PATH")
        for item in items:
            if item.get_closest_marker("envoy"):
                item.add_marker(skip)


def envoy_binary() -> str | None:
    """Beside this Python, or on PATH."""
    return shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")


@pytest.fixture(scope="session")
def envoy() -> str:
    """The real Envoy's path."""
    binary = envoy_binary()
    assert binary, "CI must have an envoy binary: make setup"
    return binary


def free_port() -> int:
    return free_ports(1)[0]


def held_versions(publisher: AdsPublisher) -> set[str]:
    """The versions of the endpoints that the connected Envoys last accepted."""
    return {link.stream.held_version for link in publisher._links}


class Upstream:
    """An engine in miniature: TGI's and OpenAI's routes, streamed and whole."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests: list[dict[str, str]] = []
        self.runner: web.AppRunner | None = None
        self.port = 0
        self.gate = asyncio.Event()

    async def start(self) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self.serve)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", self.port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self.runner is not None
        await self.runner.cleanup()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append({key.lower(): value for key, value in request.headers.items()})
        status = int(request.headers.get(f"x-test-status-{self.name}", "200"))
        if status != 200:
            return web.json_response({"error": "no", "error_type": "overloaded"}, status=status)
        if f"x-test-stuck-{self.name}" in request.headers:
            await asyncio.sleep(2)
        if "stream" in request.path or b'"stream": true' in body:
            return await self.stream(request, openai=request.path.startswith("/v1/"))
        await asyncio.sleep(int(request.headers.get("x-test-first-ms", "0")) / 1000)
        if pad := int(request.headers.get("x-test-pad", "0")):
            return web.json_response(
                {"pad": "x" * pad, "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
            )
        if request.path.startswith("/v1/"):
            return web.json_response({"usage": {"prompt_tokens": 11, "completion_tokens": 7}})
        answer = {
            "from": self.name,
            "bytes": len(body),
            "details": {"generated_tokens": 5, "input_length": 9},
        }
        return web.json_response(answer, headers={"x-prompt-tokens": "9", "x-generated-tokens": "5"})

    async def stream(self, request: web.Request, *, openai: bool) -> web.StreamResponse:
        status = int(request.headers.get("x-test-stream-status", "200"))
        kind = {"content-type": "text/event-stream; charset=utf-8"}
        response = web.StreamResponse(headers=kind, status=status)
        await response.prepare(request)
        if "x-test-comment" in request.headers:
            await response.write(b":\n\n")
        await asyncio.sleep(int(request.headers.get("x-test-first-ms", "0")) / 1000)
        if said := request.headers.get("x-test-say"):
            await response.write(said.replace("\\n", "\n").encode())
        tokens = int(request.headers.get("x-test-tokens", "4"))
        for index in range(1, tokens + 1):
            if index == tokens and "x-test-gate" in request.headers:
                await self.gate.wait()
            event: dict[str, Any] = {"choices": [{"delta": {"content": "x"}}]}
            if not openai:
                last = index == tokens
                details = {"generated_tokens": tokens, "input_length": 9} if last else None
                event = {"index": index, "token": {"text": "x"}, "generated_text": None, "details": details}
                if last:
                    event["generated_text"] = "x" * int(request.headers.get("x-test-pad", "1"))
            try:
                await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            except ConnectionResetError:  # the client has left
                return response
            await asyncio.sleep(int(request.headers.get("x-test-gap-ms", "0")) / 1000)
        if openai:
            usage = {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": tokens}}
            await response.write(b"data: " + json.dumps(usage).encode() + b"\n\ndata: [DONE]\n\n")
        return response


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    chunks: list[tuple[float, bytes]]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def request_id(self) -> str:
        return self.headers["x-request-id"]


@dataclass
class Gateway:
    """The running whole."""

    loop: Loop
    service: Service
    services: list[Service]
    upstreams: dict[str, Upstream]
    port: int
    admin: int
    builder: SnapshotBuilder | None = None

    def snapshot(self, *names: str, **states: EndpointState) -> FleetSnapshot:
        """Of upstreams by name, healthy unless a state is given."""
        assert self.builder is not None
        healthy = {name: EndpointState(self.service.addresses[name]) for name in names}
        return self.builder.build({"chat": list((healthy | states).values())})

    def publish(self, *names: str, **states: EndpointState) -> None:
        """Publish and wait until Envoy has accepted it."""
        self.push(self.snapshot(*names, **states))

    @contextlib.contextmanager
    def gate(self, name: str) -> Iterator[None]:
        """Within it no stream of the upstream that asked for it ends."""
        gate = self.upstreams[name].gate
        self.loop.call(gate.clear)
        try:
            yield
        finally:
            self.loop.call(gate.set)

    def push(self, snapshot: FleetSnapshot) -> None:
        publisher = self.service.publisher
        assert publisher is not None
        self.loop.call(publisher.publish, snapshot)
        deadline = time.monotonic() + START_S_MAX
        while held_versions(publisher) != {snapshot.endpoints.version}:
            assert time.monotonic() < deadline, publisher.counts
            time.sleep(0.001)

    def call(
        self, path: str = "/generate", body: Any = b"{}", *, headers: dict[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request("POST", path, body, {"content-type": "application/json", **(headers or {})})
            response = connection.getresponse()
            chunks = []
            while chunk := response.read1(65536):
                chunks.append((time.time(), chunk))
            fields = {key.lower(): value for key, value in response.getheaders()}
            return Answer(response.status, fields, b"".join(part for _, part in chunks), chunks)

    def records(self, request_id: str, *, final: bool = True) -> list[Seen]:
        """The records of a request, once its last one is here (or the wait is over)."""
        deadline = time.monotonic() + START_S_MAX
        while True:
            found = [seen for seen in self.service.records if seen.entry.request.request_id == request_id]
            if time.monotonic() > deadline or any(not seen.periodic for seen in found) or not final:
                return found
            time.sleep(0.01)

    def record(self, request_id: str) -> Seen:
        return self.records(request_id)[-1]


GATEWAY_CONFIG = """
version: 1
gateway:
  listen: 127.0.0.1:{listen}
  envoy_admin: 127.0.0.1:{admin}
  services: [{services}]
  auth: none
  body_bytes_max: 4194304
  heartbeat_s: 1
  debug_headers: true
  connect_timeout_ms: 500
  decision_timeout_ms: 1000
{extra}
pools:
  - name: chat
    models: [m]
    outlier_detection: {{consecutive_5xx: 1000}}
    endpoints:
{endpoints}
"""


@contextlib.contextmanager
def running_gateway(
    envoy: str,
    directory: Path,
    *,
    extra: str = "",
    services: int = 1,
    ads: Sequence[str] = (),
    start_services: bool = True,
) -> Iterator[Gateway]:
    """With `ads`, the names of the endpoints that the services publish at first."""
    from extproc.control.bootstrap import render_bootstrap, to_json

    loop = Loop()
    upstreams = {name: Upstream(name) for name in ("a", "b", *(["c"] if ads else []))}
    for upstream in upstreams.values():
        loop.run(upstream.start())
    addresses = {name: f"127.0.0.1:{upstream.port}" for name, upstream in upstreams.items()}
    addresses["refused"] = f"127.0.0.1:{free_port()}"
    addresses["stranger"] = "127.0.0.1:1"
    running = [Service(addresses, contract.cluster_name("chat", "standard")) for _ in range(services)]
    for service in running:
        service.publisher = AdsPublisher() if ads else None
        if start_services:
            loop.run(service.start())
        else:
            service.port = free_port()
    listen, admin = free_port(), free_port()
    members = "\n".join(
        f"      - address: {where}" for name, where in addresses.items() if name != "stranger"
    )
    text = GATEWAY_CONFIG.format(
        listen=listen,
        admin=admin,
        services=", ".join(f"127.0.0.1:{service.port}" for service in running),
        extra=extra,
        endpoints=members,
    )
    file = directory / "envoy.json"
    config = loads(text)
    gateway = Gateway(loop, running[0], running, upstreams, listen, admin)
    if ads:
        gateway.builder = SnapshotBuilder(config)
        for service in running:
            assert service.publisher is not None
            loop.call(service.publisher.publish, gateway.snapshot(*ads))
    bootstrap = render_bootstrap(config, "ads" if ads else "static")
    file.write_text(to_json(bootstrap), encoding="utf-8")
    log = directory / "envoy.log"
    process = Process(
        [
            *(envoy, "-c", str(file), "--disable-hot-restart", "--concurrency", "1"),
            *("-l", "warning", "--drain-time-s", "1"),
        ],
        log,
    )
    try:
        _wait_until_ready(admin, process, log)
        yield gateway
    finally:
        process.kill()
        process.wait()
        for service in running:
            if service.server is not None:
                loop.run(service.stop())
        for upstream in upstreams.values():
            loop.run(upstream.stop())
        loop.close()


def _wait_until_ready(admin: int, process: Process, log: Path) -> None:
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(errors="replace")[-4000:]
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=1)
            with contextlib.closing(connection):
                connection.request("GET", "/ready")
                if connection.getresponse().status == 200:
                    return
        time.sleep(0.05)
    raise AssertionError("envoy is not ready: " + log.read_text(errors="replace")[-4000:])


@pytest.fixture(scope="module")
def gateway(envoy: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Shared by the tests of a module: starting Envoy takes a second."""
    with running_gateway(envoy, tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture(scope="session")
def start_gateway() -> Callable[..., Any]:
    """For a test that needs a gateway of its own kind."""
    return running_gateway

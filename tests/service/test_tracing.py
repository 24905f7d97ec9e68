"""The part that traces: its life with the service, its headers, and who ends whose spans."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs

from extproc.config.load import ConfigError, loads
from extproc.config.model import Config
from extproc.config.tracing import OpenTelemetry
from extproc.core.outcome import Outcome
from extproc.observe.tracing import propagation
from extproc.observe.tracing.request_trace import NO_TRACES
from extproc.service.app import App
from extproc.service.tracing import TracingPart, export_headers

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "traces"))

from receiver import Receiver

from tests.stand.changed import replace
from tests.stand.schedulers import make_reservation
from tests.stand.waits import PATIENCE_S

BASE = """
gateway: {auth: none}
pools:
  - name: chat
    models: [m]
    engine: vllm
    endpoints: [{address: "10.0.0.1:80"}]
"""
RESERVATION = make_reservation(
    id="gone-1",
    tenant="anonymous",
    pool="chat",
    input_tokens=1,
    output_tokens=1,
    prompt_bytes=1,
    stream=False,
)
CARRIED = propagation.write(7, 0, 9, kind=None, asked="", user="", state="")
ENDED = Outcome(reservation=RESERVATION, final=True, status=200, duration_ns=5, trace=CARRIED)


def config(url: str = "", more: str = "") -> Config:
    section = f'otel: {{endpoint: "{url}", export_interval_ms: 50, metrics: false{more}}}' if url else ""
    return loads(f"{BASE}{section}")


def part_of(app: App) -> TracingPart:
    (part,) = (part for part in app.operating.parts if isinstance(part, TracingPart))
    return part


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A collector of the test's own."""
    with Receiver() as receiver:
        yield receiver


def test_without_a_section_nothing_is_noted() -> None:
    """No request_traces, no observer, a status that says so."""
    app = App(config())
    part = part_of(app)
    assert app.processor.request_traces is NO_TRACES
    assert part.observers == ()
    assert part.status() == {"on": False}
    part.step(now_ns=1)


def test_a_record_of_an_earlier_life(receiver: Receiver) -> None:
    """A service that is alone ends its predecessor's span; the scheduler tells the part."""

    async def run() -> App:
        app = App(config(receiver.grpc_url))
        part = part_of(app)
        await part.start()
        app.settle(ENDED)
        part.step(now_ns=app.clock())
        await part.stop()
        return app

    app = asyncio.run(run())
    (span,) = receiver.spans
    assert (span.trace_id, span.span_id, span.name) == (f"{7:032x}", f"{9:016x}", "steersman.request")
    assert span.attributes["steersman.settled_by_another"] is True
    status = part_of(app).status()
    assert (status["on"], status["spans_sent"], status["dropped"]) == (True, 1, 0)


SHARING = "\nsharing: {redis: 'redis://127.0.0.1:1/0'}\ntelemetry: {auth: none}\n"


def heirs(peers: set[str], reservation_ids: list[str], instance: str = "") -> list[bool]:
    """Whether a service of this name, with these living peers, ends each request."""

    async def ask() -> list[bool]:
        app = App(loads(f'{BASE}{SHARING}otel: {{endpoint: "http://127.0.0.1:1"}}'))
        app.scheduler.peers.own = instance or app.scheduler.instance
        app.scheduler.peers.hear(peers, {})
        return [part_of(app)._heir(each) for each in reservation_ids]

    return asyncio.run(ask())


def test_of_several_services_one_is_the_heir() -> None:
    """A living peer ends its own; of a dead one's requests each has one heir, and the work is shared."""
    assert heirs({"b", "c"}, ["b-1"], "a") == [False]
    names = {"a", "b", "c"}
    orphans = [f"dead-{number}" for number in range(60)]
    says = {name: heirs(names - {name}, orphans, name) for name in names}
    assert all(sum(each) == 1 for each in zip(*says.values(), strict=True))
    assert min(sum(each) for each in says.values()) > 5
    assert heirs(set(), ["dead-1"]) == [True]


def test_services_that_share_nothing() -> None:
    """None knows whether another lives: nobody ends what is not its own."""
    services = 'gateway: {auth: none, services: ["127.0.0.1:1", "127.0.0.1:2"]}'
    text = BASE.replace("gateway: {auth: none}", services)
    app = App(loads(f'{text}\notel: {{endpoint: "http://127.0.0.1:1"}}'))
    assert not part_of(app)._heir("dead-1")


def test_a_reload_goes_to_another_collector(receiver: Receiver) -> None:
    """What waited goes to the old one, what comes to the new one; taken out, nothing goes anywhere."""
    with Receiver() as second:

        async def run() -> None:
            app = App(config(receiver.grpc_url))
            part = part_of(app)
            await part.start()
            request_traces = part.request_traces
            app.settle(ENDED)
            part.step(now_ns=app.clock())
            part.apply(config(second.http_url, ", protocol: http"))
            assert part.request_traces is request_traces
            app.settle(replace(ENDED, reservation=structs.replace(RESERVATION, id="gone-2")))
            part.step(now_ns=app.clock())
            await asyncio.wait(part._tasks)
            new = part._line
            assert new is not None
            await asyncio.to_thread(new.stop)
            part.apply(config())
            assert app.processor.request_traces is NO_TRACES
            assert part.observers == ()
            await part.stop()

        asyncio.run(run())
        assert [len(each.spans) for each in (receiver, second)] == [1, 1]


def test_a_reload_that_cannot_be_applied(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """A secret that is not there: the old tracing goes on, and the log says why."""
    app = App(config(receiver.grpc_url))
    part = part_of(app)
    part.apply(config(receiver.grpc_url, ", headers_env: STEERSMAN_NO_SUCH"))
    assert part.status()["on"] is True
    assert "$STEERSMAN_NO_SUCH: otel.headers_env: is not set" in caplog.text


def test_a_new_pool_s_engine_is_known(receiver: Receiver) -> None:
    """Engines follow a reload of the pools alone."""
    app = App(config(receiver.grpc_url))
    part = part_of(app)
    line = part._line
    assert line is not None
    assert (line.engines["chat"], line.engines["m"]) == ("vllm", "vllm")
    before = config(receiver.grpc_url)
    pool = before.pools[0].model_copy(update={"engine": "sglang"})
    part.apply(before.model_copy(update={"pools": [pool]}))
    assert part._line is line
    assert line.engines["chat"] == "sglang"


def test_the_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the file and the environment, over those in the section; comments and blanks are passed over."""
    file = tmp_path / "headers"
    file.write_text("# of Latitude\n\nAuthorization: Bearer a:b\n", encoding="utf-8")
    monkeypatch.setenv("EXTRA_HEADERS", "x-latitude-project: gateway")
    section = OpenTelemetry(
        endpoint="http://127.0.0.1:4318",
        headers={"x-team": "ml", "authorization": "none"},
        headers_file=str(file),
        headers_env="EXTRA_HEADERS",
    )
    assert export_headers(section) == {
        "x-team": "ml",
        "authorization": "Bearer a:b",
        "x-latitude-project": "gateway",
    }


def test_headers_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All mistakes at once, and never a line's text: it may be the secret."""
    file = tmp_path / "headers"
    file.write_text("authorization: x\nsk-secret\n", encoding="utf-8")
    monkeypatch.setenv("EXTRA_HEADERS", "sk-other")
    section = OpenTelemetry(
        endpoint="https://127.0.0.1:4318",
        headers_file=str(file),
        headers_env="EXTRA_HEADERS",
        ca_file=str(tmp_path / "none.pem"),
    )
    with pytest.raises(ConfigError) as caught:
        export_headers(section)
    said = str(caught.value)
    assert f"{file}:2: otel.headers_file: write each header as 'name: value'" in said
    assert "$EXTRA_HEADERS:1: otel.headers_env" in said
    assert "otel.ca_file: cannot be read" in said
    assert "sk-" not in said
    with pytest.raises(ConfigError, match="cannot be read"):
        export_headers(section.model_copy(update={"headers_file": str(tmp_path / "none")}))


def test_without_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service does not start, and says what to install; without the section it does."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    with pytest.raises(ConfigError, match=r"pip install 'steersman\[otel\]'"):
        App(config("http://127.0.0.1:4317"))
    assert part_of(App(config())).status() == {"on": False}


def test_a_dead_collector_holds_up_nothing() -> None:
    """Starting, settling and ending go on; what was lost is counted."""

    async def run() -> dict[str, object]:
        app = App(config("http://127.0.0.1:1", ", timeout_ms: 200"))
        part = part_of(app)
        await part.start()
        for number in range(10):
            app.settle(replace(ENDED, reservation=structs.replace(RESERVATION, id=f"gone-{number}")))
        part.step(now_ns=app.clock())
        await asyncio.wait_for(part.stop(), PATIENCE_S)
        return part.status()

    status = asyncio.run(run())
    assert (status["spans_sent"], status["spans_lost"]) == (0, 10)

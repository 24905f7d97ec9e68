"""The metrics of the composed service: what is wired, and how scrapes share the loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from msgspec import structs
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families as parse

from extproc.config.load import loads
from extproc.core.outcome import Outcome, Routed
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import ROUND_NS
from extproc.service.app import App

S = 1_000_000_000
CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=400, max_new_tokens=50)
CONFIG = """
gateway: {auth: none}
pools: [{name: chat, models: [m], endpoints: [{address: "10.0.0.1:80"}]}]
"""


def values(text: bytes, name: str) -> dict[tuple[str, ...], float]:
    """A metric's samples by their label values, in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for metric in parse(text.decode())
        for sample in metric.samples
        if sample.name == f"steersman_{name}"
    }


def settle(app: App, *, elsewhere: bool = False) -> None:
    """A request's whole way; `elsewhere` as if another service had decided on it."""
    began = app.clock()
    decision = app.scheduler.admit(CHAT, app.processor.directory.anonymous, now_ns=began)
    app.processor.took(began)
    assert isinstance(decision, Routed)
    reservation = decision.reservation
    if elsewhere:
        app.scheduler.cancel(reservation.id, now_ns=app.clock())
        reservation = structs.replace(reservation, id="another-1")
    app.settle(Outcome(reservation=reservation, final=True, status=200, output_tokens=7, duration_ns=S))


def play(scene: Callable[[App], Awaitable[None]]) -> None:
    """Run a scene with an App of its own, its parts started."""

    async def go() -> None:
        app = App(loads(CONFIG))
        await app.operating.start()
        try:
            await scene(app)
        finally:
            await app.operating.stop()

    asyncio.run(go())


def test_the_service_counts_what_it_decides() -> None:
    """From the scheduler's hooks to the text: decisions, ends, and none of another service's."""

    async def scene(app: App) -> None:
        settle(app)
        settle(app, elsewhere=True)
        text, content_type = await app.measuring.exposition()
        assert content_type.startswith("text/plain")
        requests = values(text, "requests_total")
        assert requests["standard", "ok", "chat", "anonymous"] == 1
        # The other one's decision never reached Envoy, as far as this service knows.
        assert requests["standard", "client_gone", "chat", "anonymous"] == 1
        assert values(text, "tokens_total")["output", "chat", "anonymous"] == 7
        assert values(text, "decision_seconds_count") == {(): 2}
        assert values(text, "events_total")["settled.ok",] == 2

    play(scene)


def test_openmetrics_is_there_for_who_asks() -> None:
    """By the Accept header, with its end."""

    async def scene(app: App) -> None:
        text, content_type = await app.measuring.exposition("application/openmetrics-text; version=1.0.0")
        assert content_type.startswith("application/openmetrics-text")
        assert text.endswith(b"# EOF\n")
        assert text.count(b"# EOF") == 1

    play(scene)


def test_scrapes_at_once_share_their_work() -> None:
    """Twenty that come together cost two: the one under way and the next; one that leaves harms no other."""

    async def scene(app: App) -> None:
        first = asyncio.create_task(app.measuring.exposition())
        await asyncio.sleep(0)
        later = [asyncio.create_task(app.measuring.exposition()) for _ in range(19)]
        await asyncio.sleep(0)
        later[0].cancel()
        answers = await asyncio.gather(first, *later, return_exceptions=True)
        assert isinstance(answers[1], asyncio.CancelledError)
        assert all(isinstance(answer, tuple) for answer in [answers[0], *answers[2:]])
        assert app.measuring.scrapes <= 2
        await app.measuring.exposition()
        assert app.measuring.status()["scrapes"] == app.measuring.scrapes

    play(scene)


def test_the_event_loops_lag_is_seen() -> None:
    """A loop that stood still for 150 ms says so."""

    async def scene(app: App) -> None:
        stepping = asyncio.create_task(app.schedule.steps())
        await asyncio.sleep(0)
        time.sleep(ROUND_NS / S + 0.15)  # noqa: ASYNC251 (this is the fault that is to be seen)
        async with asyncio.timeout(30):
            while True:
                text, _ = await app.measuring.exposition()
                buckets = values(text, "event_loop_lag_seconds_bucket")
                if buckets["+Inf",] > buckets["0.1",]:
                    break
        stepping.cancel()

    play(scene)


def test_a_reload_moves_the_bounds(tmp_path: Path) -> None:
    """More tenants and endpoints are shown without a restart."""

    async def scene(app: App) -> None:
        text, _ = await app.measuring.exposition()
        assert values(text, "endpoint_ready") == {("10.0.0.1:80", "chat"): 1}
        file = tmp_path / "steersman.yaml"
        file.write_text(CONFIG + "metrics: {tenants_max: 7, endpoints_max: 0}\n", encoding="utf-8")
        assert app.reload(file)
        assert app.measuring.counting.tenants.most == 7
        text, _ = await app.measuring.exposition()
        assert values(text, "endpoint_ready") == {}
        assert values(text, "pool_endpoints") == {("chat", "yes"): 1, ("chat", "no"): 0}

    play(scene)


def test_other_parts_show_theirs_beside() -> None:
    """Alert rules by name, and whole metrics."""

    async def scene(app: App) -> None:
        gauge = GaugeMetricFamily("steersman_extra", "Another part's.", value=2.0)
        app.measuring.extra.append(lambda: [gauge])
        app.measuring.firing = lambda: {"late": True}
        text, _ = await app.measuring.exposition()
        assert values(text, "extra") == {(): 2}
        assert values(text, "alerts_firing") == {("late",): 1}

    play(scene)

"""The analytics of a running service: written, reported, bounded, and never in the way."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from extproc.config.load import ConfigError, loads
from extproc.config.restart import restart_needed
from extproc.core.outcome import Outcome, Reject, Routed
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.tenant import Credentials, hash_key
from extproc.observe.analytics import MemoryStore, Retention, StoredRow, StoreError
from extproc.observe.analytics.spans import Stretch
from extproc.service.analytics import STOP_S, AnalyticsPart
from extproc.service.app import App

S = 1_000_000_000
CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=400, max_new_tokens=50)
BASE = f"""
gateway: {{auth: api_key}}
pools: [{{name: chat, models: [m], strategy: least_work, endpoints: [{{address: "10.0.0.1:80"}}],
          price: {{input_per_million: 1, output_per_million: 10}}}}]
tenants: [{{name: acme, keys: [{{sha256: {hash_key("a-key")}}}]}}]
"""


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now_ns = 1_000 * S

    def __call__(self) -> int:
        return self.now_ns


class FlakyStore(MemoryStore):
    """A store that cannot be written or read, or waits, when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: set[str] = set()
        self.go_on = threading.Event()
        self.go_on.set()

    def write(self, entries: Any, retention: Retention) -> None:
        self.go_on.wait(30)
        if "write" in self.failing:
            raise StoreError("the disk is full")
        super().write(entries, retention)

    def read(self, stretch: Stretch) -> Iterator[StoredRow]:
        if "read" in self.failing:
            raise StoreError("nobody is there")
        yield from super().read(stretch)


class Service:
    """An app whose analytics' store is a test's."""

    def __init__(self, text: str = BASE) -> None:
        self.clock = Clock()
        self.app = App(loads(text), clock=self.clock)
        self.part: AnalyticsPart = self.app.analysing
        self.store = FlakyStore()
        assert self.part._worker is not None
        self.part._worker.store = self.store

    def serve(self, count: int = 1) -> None:
        """Requests that come and end."""
        for _ in range(count):
            identity = self.app.processor.directory.identify(
                Credentials(authorization="Bearer a-key"), now_s=0
            )
            assert not isinstance(identity, Reject)
            routed = self.app.scheduler.admit(CHAT, identity.tenant, now_ns=self.clock())
            assert isinstance(routed, Routed)
            self.app.settle(
                Outcome(
                    reservation=routed.reservation,
                    final=True,
                    status=200,
                    duration_ns=S,
                    ttft_ns=S // 10,
                    prompt_tokens=100,
                    output_tokens=10,
                )
            )

    async def stepped(self) -> None:
        """Some time passes, and the thread is done with it."""
        self.clock.now_ns += 6 * S
        self.part.step(now_ns=self.clock())
        await self.settled()

    async def settled(self) -> None:
        if self.part._working is not None:
            await asyncio.wrap_future(self.part._working)


def requests(answer: dict[str, Any]) -> int:
    count: int = answer["total"]["requests"]
    return count


def test_what_has_ended_is_reported() -> None:
    """At once: the report takes in what still waits. Price, tokens and targets are the configuration's."""

    async def scenario() -> None:
        service = Service()
        await service.part.start()
        service.serve(3)
        answer = await service.part.report({"by": "tenant,model,strategy"})
        (line,) = answer["lines"]
        assert line["group"] == {"tenant": "acme", "model": "m", "strategy": "least_work"}
        assert (line["ok"], line["input_tokens"], line["output_tokens"]) == (3, 300, 30)
        assert line["cost"] == pytest.approx(3 * (100 + 10 * 10) / 1e6)
        assert (line["slo_met"], line["attainment"]) == (3, 1.0)
        assert line["ttft_ms"]["p50"] == pytest.approx(100.0, rel=0.01)
        assert json.loads(await service.part.order(b'{"by": "pool"}'))["lines"][0]["group"] == {
            "pool": "chat"
        }
        with pytest.raises(ValueError, match="no part of a query"):
            await service.part.order(b'{"what": 1}')
        await service.part.stop()

    asyncio.run(scenario())


def test_it_writes_every_flush_and_at_the_end() -> None:
    """What has ended is in the store after flush_s, and what is left when the service stops."""

    async def scenario() -> None:
        service = Service()
        await service.part.start()
        service.serve(2)
        service.part.step(now_ns=service.clock())
        await service.settled()
        assert not any(service.store._rows[60].values())
        await service.stepped()
        assert any(service.store._rows[60].values())
        service.serve(1)
        await service.part.stop()
        rows = [each.data for each in service.store.read(Stretch(86_400, 0, 10**11))]
        assert len(rows) == 1
        assert service.part.status()["written"] is True

    asyncio.run(scenario())


def test_a_store_that_cannot_be_written(caplog: pytest.LogCaptureFixture) -> None:
    """Is said once and counted; figures wait, reports have them, and all are written when it can be again."""

    async def scenario() -> None:
        service = Service()
        await service.part.start()
        service.serve(1)
        await service.stepped()
        service.store.failing = {"write"}
        for _ in range(3):
            service.serve(1)
            await service.stepped()
        answer = await service.part.report({})
        assert requests(answer) == 4
        assert answer["notes"] == ["the store cannot be written: the disk is full"]
        status: Any = service.part.status()
        assert (status["written"], status["trouble"], status["counts"]["failed_writes"]) == (
            False,
            "the disk is full",
            4,
        )
        assert [record.levelno for record in caplog.records if "cannot be written" in record.message] == [
            logging.ERROR
        ]
        service.store.failing = {"write", "read"}
        answer = await service.part.report({})
        assert requests(answer) == 4
        assert "the store cannot be read" in answer["notes"][0]
        service.store.failing = set()
        await service.stepped()
        answer = await service.part.report({})
        assert (requests(answer), answer["notes"]) == (4, [])
        assert service.part.status()["written"] is True
        assert "can be written again" in caplog.text
        await service.part.stop()

    asyncio.run(scenario())


def test_a_store_that_hangs_stalls_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps return, what waits is bounded and counted, and the end does not wait for it."""
    monkeypatch.setattr("extproc.service.analytics.STOP_S", 0.05)
    assert STOP_S > 0.05

    async def scenario() -> None:
        service = Service()
        assert service.part.listener is not None
        service.part.listener.waiting_max = 10
        await service.part.start()
        service.store.go_on.clear()
        service.serve(1)
        service.clock.now_ns += 6 * S
        service.part.step(now_ns=service.clock())
        for _ in range(4):
            service.serve(5)
            service.clock.now_ns += 6 * S
            service.part.step(now_ns=service.clock())
        status: Any = service.part.status()
        assert (status["waiting"], status["counts"]["dropped"]) == (10, 10)
        await service.part.stop()
        service.store.go_on.set()

    asyncio.run(scenario())


def test_switched_off_and_on_again() -> None:
    """Off, nobody listens, and a report says how to switch it on."""

    async def scenario() -> None:
        service = Service()
        await service.part.start()
        service.part.apply(loads(BASE + "analytics: {enabled: false}\n"))
        assert service.part.observers == ()
        with pytest.raises(ValueError, match="analytics is off here; switch it on"):
            await service.part.report({})
        service.part.apply(loads(BASE))
        assert service.part.observers == (service.part.listener,)
        await service.part.stop()

    asyncio.run(scenario())


def test_too_many_reports_at_once() -> None:
    """The ninth is refused; the others are answered."""

    async def scenario() -> None:
        service = Service()
        service.store.go_on.clear()
        service.serve(1)
        asking = [asyncio.create_task(service.part.report({})) for _ in range(9)]
        await asyncio.sleep(0)
        service.store.go_on.set()
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert [isinstance(each, ValueError) for each in answers] == [False] * 8 + [True]
        await service.part.stop()

    asyncio.run(scenario())


def test_what_needs_a_restart() -> None:
    """Where the file is; times and bounds are taken as they change."""
    base = loads(BASE)
    moved = loads(BASE + "analytics: {dir: /var/lib/steersman}\n")
    assert restart_needed(base, moved) == ["analytics.dir"]
    assert restart_needed(base, loads(BASE + "analytics: {retention_days: 60, flush_s: 1}\n")) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{minute_hours: 100, hour_days: 4}", "minute_hours is longer than hour_days"),
        ("{hour_days: 40}", "hour_days is longer than retention_days"),
        ("{retention_days: 1, minute_hours: 48}", "minute_hours is longer than retention_days"),
        ("{dir: here}", "analytics.dir"),
    ],
)
def test_settings_that_make_no_sense(given: str, message: str) -> None:
    """Are refused with what is wrong."""
    with pytest.raises(ConfigError, match=message):
        loads(BASE + f"analytics: {given}\n")


def test_a_restart_finds_what_was_written(tmp_path: Path) -> None:
    """The next service's report has its predecessor's figures beside its own."""

    async def life() -> dict[str, Any]:
        app = App(loads(BASE + f"analytics: {{dir: {tmp_path}}}\n"))
        service = Service.__new__(Service)
        service.app, service.part, service.clock = app, app.analysing, Clock()
        await app.analysing.start()
        service.serve(2)
        answer = await app.analysing.report({})
        await app.analysing.stop()
        return answer

    assert requests(asyncio.run(life())) == 2
    answer = asyncio.run(life())
    assert (requests(answer), answer["writers"]) == (4, 2)

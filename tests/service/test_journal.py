"""The service keeps its quotas: what another process finds, what `adjust` has learnt, and who may not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from extproc.config.load import loads
from extproc.core.outcome import Hold, Routed
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.tenant import Tenant
from extproc.service.app import App

TEXT = """
pools: [{name: p, models: [m], endpoints: [{address: 127.0.0.1:1, max_concurrent: 2}]}]
tenants:
  - name: t
    keys: [{sha256: b8cec3233078f4557e6656104cbcb2283ee9e4ae8eee28c1d7cc81f977c25497}]
    quota: {requests_per_minute: 10}
    adjust: {least: 0.5, most: 1.5}
"""
CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=4)
HOUR_NS = 3_600_000_000_000


class Time:
    """A clock that stands still until it is moved."""

    now_ns = 10**15

    def __call__(self) -> int:
        return self.now_ns


def service(folder: Path, clock: Time, more: str = "") -> App:
    return App(loads(f"{TEXT}\nstate: {{dir: {folder}{more}}}"), clock=clock)


def used(app: App, what: str = "requests_per_minute") -> float:
    account = app.scheduler.policy.accounts.of("t", "", "m")
    return next(
        each.used for each in app.requests.quotas.usage(account, now_ns=app.clock()) if each.limit == what
    )


def test_the_next_process_goes_on_with_quotas_and_who_waited_is_not_charged(tmp_path: Path) -> None:
    """Two run, one waits for a place: killed then, two are charged, under new ids as well."""
    clock = Time()

    async def killed() -> None:
        app = service(tmp_path, clock)
        await app.keeping.start()
        decisions = [app.scheduler.admit(CHAT, Tenant(name="t"), now_ns=clock()) for _ in range(3)]
        assert [type(each) for each in decisions] == [Routed, Routed, Hold]
        assert await app.keeping.flush()
        assert app.view.whole()["quotas"]["journal"]["on"]  # type: ignore[index]
        assert used(app) == 3
        await app.keeping.stop()

    async def next_one() -> None:
        app = service(tmp_path, clock)
        await app.keeping.start()
        assert used(app) == 2
        await app.keeping.stop()

    asyncio.run(killed())
    asyncio.run(next_one())


def test_what_adjust_has_learnt_outlives_the_service(tmp_path: Path) -> None:
    """A quiet week before and a quiet day after a restart are eight days; the factor stays where it was."""
    clock = Time()

    async def run(hours: int) -> dict[str, float]:
        app = service(tmp_path, clock)
        await app.keeping.start()
        for _ in range(hours + 1):
            app.adjusting.step(now_ns=clock.now_ns, interval_ns=HOUR_NS)
            clock.now_ns += HOUR_NS
        await app.keeping.stop()
        return app.adjusting.factors

    assert asyncio.run(run(24 * 6)) == {"t": 1.0}
    lower = asyncio.run(run(24))["t"]
    assert 0.5 < lower < 1.0
    assert asyncio.run(run(0)) == {"t": lower}


def test_a_folder_that_cannot_be_used_is_said_and_nothing_else_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another service's, or none that can be made: quotas are as without one."""
    clock = Time()
    (tmp_path / "file").touch()

    async def main() -> None:
        first, second = service(tmp_path, clock), service(tmp_path, clock)
        nowhere = service(tmp_path / "file", clock)
        off = service(tmp_path, clock, ", enabled: false")
        for app in (first, second, nowhere, off):
            await app.keeping.start()
        assert [app.keeping.on for app in (first, second, nowhere, off)] == [True, False, False, False]
        assert "another service keeps its quotas here" in second.keeping.why
        assert caplog.text.count("quotas are not kept") == 2
        assert isinstance(second.scheduler.admit(CHAT, Tenant(name="t"), now_ns=clock()), Routed)
        assert not await second.keeping.flush()
        for app in (first, second, nowhere, off):
            await app.keeping.stop()

    asyncio.run(main())

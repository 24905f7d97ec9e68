"""The service keeps what spilled requests have cost: over a restart, a kill, and a damaged file."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from extproc.config.load import loads
from extproc.core.outcome import End, Outcome, Reservation
from extproc.core.spill.books import HOUR_NS
from extproc.service.app import App
from extproc.service.spill import NAME, SpillPart
from tests.stand.schedulers import make_reservation

TEXT = """
gateway: {auth: none}
pools:
  - name: own
    models: [m]
    endpoints: [{address: 127.0.0.1:1, max_concurrent: 1}]
    spill: {to: paid, models: {m: gpt}, budget_per_hour: 10}
  - name: paid
    models: [gpt]
    endpoints: [{address: 127.0.0.1:2}]
    price: {output_per_million: 1000000}
"""
S = 1_000_000_000


class Time:
    """A service's clock, which begins anew with each, and the one on the wall."""

    def __init__(self, unix_s: float, ticks_ns: int = 0) -> None:
        self.now_ns, self.unix_ns = ticks_ns, int(unix_s * 1e9)

    def later(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)
        self.unix_ns += int(seconds * 1e9)


def service(folder: Path, time: Time) -> tuple[App, SpillPart]:
    config = loads(f"{TEXT}\nstate: {{dir: {folder}}}")
    app = App(config, clock=lambda: time.now_ns)
    part = SpillPart(config, app.scheduler, clock=lambda: time.now_ns, unix=lambda: time.unix_ns)
    return app, part


def spilled(instance: str = "gone", **facts: Any) -> Reservation:
    usual: dict[str, Any] = {
        "stream": True,
        "tenant": "anonymous",
        "model": "gpt",
        "pool": "paid",
        "spilled_from": "own",
    }
    return make_reservation(id=f"{instance}-1", address="127.0.0.1:2", **{**usual, **facts})


def ended(app: App, reservation: Reservation, output_tokens: int) -> None:
    app.settle(
        Outcome(
            reservation=reservation,
            final=True,
            status=200,
            end=End.OK,
            served_by=reservation.address,
            output_tokens=output_tokens,
            prompt_tokens=1,
        )
    )


def test_what_was_spent_outlives_a_restart(tmp_path: Path) -> None:
    """Half an hour later it still counts, an hour later it does not; each process's clock is its own."""
    time = Time(1_000_000.0)
    app, part = service(tmp_path, time)
    asyncio.run(part.start())
    ended(app, spilled(), 7)
    assert app.scheduler.spills.spent("own", now_ns=time.now_ns) == 7.0
    part.step(now_ns=time.now_ns)
    assert part.waiting
    part.write()  # and is killed: nothing is written at its end
    later = Time(1_000_000.0 + 1_800, ticks_ns=99 * S)
    app, part = service(tmp_path, later)
    asyncio.run(part.start())
    books = app.scheduler.spills
    for tenant in ("", "anonymous"):
        assert books.spent("own", tenant, now_ns=later.now_ns) == 7.0
    later.later(2 * HOUR_NS / S)
    assert books.spent("own", now_ns=later.now_ns) == 0.0


def test_the_end_of_the_service_writes_the_last_of_it(tmp_path: Path) -> None:
    """Nothing is lost where it was asked to stop."""
    time = Time(5_000.0)
    app, part = service(tmp_path, time)
    asyncio.run(part.start())
    part.step(now_ns=time.now_ns)
    ended(app, spilled(), 3)
    asyncio.run(part.stop())
    app, part = service(tmp_path, time)
    asyncio.run(part.start())
    assert app.scheduler.spills.spent("own", now_ns=time.now_ns) == 3.0


def test_a_damaged_file_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is said, with where it is now, and the service starts."""
    (tmp_path / NAME).write_bytes(b"steersman spill 1\n0123456789")
    app, part = service(tmp_path, Time(1.0))
    with caplog.at_level(logging.WARNING):
        asyncio.run(part.start())
    assert (tmp_path / f"{NAME}.damaged").exists()
    assert f"{NAME}.damaged" in caplog.text
    assert app.scheduler.spills.spent("own", now_ns=0) == 0.0


def test_a_request_of_a_process_that_is_no_more_is_counted(tmp_path: Path) -> None:
    """Its ticket says where it was spilled from; what another living service sent is counted there."""
    app, _ = service(tmp_path, Time(1.0))
    books = app.scheduler.spills
    app.scheduler.peers.hear(["alive"], {})
    ended(app, spilled("alive"), 4)
    assert books.spent("own", now_ns=0) == 0.0
    ended(app, spilled("dead"), 4)
    assert books.spent("own", now_ns=0) == 4.0

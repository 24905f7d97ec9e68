"""live.py: what is shown while the service is away, and a fault in showing."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from rich.console import Console

from extproc.supervise.asking import ServiceSilentError
from extproc.terminal import live
from extproc.terminal.live import Events, going_on, show_lines, show_picture
from tests.stand.waits import PATIENCE_S

STATUS = {"uptime_s": 1.0, "in_flight": 0, "tenants": {}}


def test_a_service_that_is_away_is_said_once_and_the_old_figures_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then it is back, and away again: said again."""
    monkeypatch.setattr(live, "PICTURE_EVERY_S", 0.0)
    answers: list[Any] = [STATUS, None, None, STATUS, None]
    drawn: list[Any] = []

    async def status() -> dict[str, Any]:
        if not answers:
            await asyncio.Event().wait()
        answer = answers.pop(0)
        if answer is None:
            raise ServiceSilentError("away")
        return dict(answer)

    def draw(found: dict[str, Any], width: int, height: int) -> str:
        drawn.append(found)
        return "picture"

    async def main() -> None:
        events = Events()
        console = Console(file=io.StringIO(), force_terminal=True, width=80, height=20)
        showing = asyncio.create_task(show_picture(console, status, draw, events))
        while answers:  # noqa: ASYNC110 (the other task empties it)
            await asyncio.sleep(0.001)
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)
        assert sum("does not answer" in line for line in events.lines) == 2
        assert drawn[:5] == [STATUS] * 5
        assert not events.pictured

    asyncio.run(main())


def test_a_fault_in_showing_ends_nothing() -> None:
    """The gateway outlives its picture."""

    async def fault() -> None:
        raise OSError("terminal gone")

    async def main() -> None:
        going = asyncio.create_task(going_on(fault(), Events()))
        await asyncio.sleep(0.01)
        assert not going.done()
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)

    asyncio.run(main())


def test_a_fault_while_ending_does_not_hide_the_end() -> None:
    """A terminal that was closed fails to be put back in order; the demo must end all the same."""

    async def fault() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("terminal gone")

    async def main() -> None:
        going = asyncio.create_task(going_on(fault(), Events()))
        await asyncio.sleep(0.01)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(going, PATIENCE_S)

    asyncio.run(main())


def test_lines_go_on_while_the_service_is_away() -> None:
    """A log shows when it was."""
    answers: list[Any] = [STATUS, ServiceSilentError("no Steersman answers"), STATUS]
    said: list[str] = []

    async def status() -> dict[str, Any]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    async def main() -> None:
        with pytest.raises(IndexError):
            await show_lines(status, said.append, every_s=0.0)

    asyncio.run(main())
    assert said == ["0:01 in flight 0", "no Steersman answers", "0:01 in flight 0"]

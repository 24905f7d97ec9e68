"""Shows a running gateway until it ends: a live picture on a terminal, plain lines elsewhere.

Owns the refreshing and what is shown while the service is away. Any value that cannot be had is
shown as it was, with a word that it is old.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook
from rich.live import Live
from rich.segment import ControlType, Segment

from extproc.supervise.asking import ServiceSilentError
from extproc.terminal import tables

log = logging.getLogger("steersman")

PICTURE_EVERY_S = 0.5
LINE_EVERY_S = 10.0
EVENTS_KEPT = 20

Status = Callable[[], Awaitable[dict[str, Any]]]
Draw = Callable[[dict[str, Any], int, int], RenderableType]


class Events:
    """What happened, one line each: into the log, or under the picture while there is one."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=EVENTS_KEPT)
        self.pictured = False

    def __call__(self, line: str) -> None:
        """Take a line."""
        if self.pictured:
            self.lines.append(f"{time.strftime('%H:%M:%S')}  {line.splitlines()[0]}")
        else:
            log.info("%s", line)


@contextmanager
def _at_once(console: Console) -> Iterator[None]:
    console.push_render_hook(_AtOnce())
    try:
        yield
    finally:
        console.pop_render_hook()


class _Escape:
    """An escape sequence, written as it is."""

    def __init__(self, sequence: str) -> None:
        self._sequence = sequence

    def __rich_console__(self, _: Console, __: ConsoleOptions) -> Iterator[Segment]:
        yield Segment(self._sequence, None, [(ControlType.CARRIAGE_RETURN,)])


class _AtOnce(RenderHook):
    """Asks the terminal to show each picture whole (synchronized output); one that cannot takes no notice."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Between a beginning and an end."""
        return [_Escape("\x1b[?2026h"), *renderables, _Escape("\x1b[?2026l")]


async def show_picture(console: Console, status: Status, draw: Draw, events: Events) -> None:
    """Draw `draw(status, width, height)` again and again, until cancelled."""
    last: dict[str, Any] | None = None
    away = False
    events.pictured = True
    try:
        with Live(console=console, auto_refresh=False, transient=False) as live, _at_once(console):
            while True:
                try:
                    last, away = await status(), False
                except ServiceSilentError:
                    if not away:
                        events("the service does not answer: figures are old; running streams go on")
                    away = True
                if last is not None:
                    # One line less than there are: a full screen would scroll.
                    picture = draw(last, console.width, console.height - 1)
                    live.update(picture, refresh=True)
                await asyncio.sleep(PICTURE_EVERY_S)
    finally:
        events.pictured = False


async def going_on(showing: Awaitable[None], events: Events) -> None:
    """Show until cancelled; a fault in showing is said once and ends nothing else."""
    try:
        await showing
    except Exception as error:  # a picture must never take down what it is of
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # Putting a lost terminal back in order failed, and hid that this was asked to end.
            raise asyncio.CancelledError from error
        events(f"nothing is shown any more ({type(error).__name__}: {error}); serving goes on")
        await asyncio.Event().wait()


async def show_lines(status: Status, say: Callable[[str], None], *, every_s: float = LINE_EVERY_S) -> None:
    """Say one line every so often, until cancelled."""
    while True:
        await asyncio.sleep(every_s)
        try:
            say(tables.summary_line(await status()))
        except ServiceSilentError as error:
            say(str(error))

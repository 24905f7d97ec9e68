"""`steersman top`: a live view of a running service in the terminal.

Owns the terminal: the alternate screen, single keys, resizing; and puts all of it back whatever happens. What
is drawn is top_view.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from extproc.cli.options import EXIT_CONFIG, examples, fail
from extproc.cli.status import address_option

if TYPE_CHECKING:
    from extproc.terminal.top_view import Rates, ViewState

PANES = ("fleet", "tenants", "decisions", "alerts")
#: A lone Escape is one when nothing follows it within this.
ESCAPE_S = 0.05
#: How often a service without alerts is asked again whether it has some.
ALERTS_AGAIN = 30

#: What terminals send, as State.pressed calls it.
KEYS = {
    "\x1b[A": "up", "\x1bOA": "up", "\x1b[B": "down", "\x1bOB": "down",
    "\x1b[C": "right", "\x1bOC": "right", "\x1b[D": "left", "\x1bOD": "left",
    "\x1b[5~": "page-up", "\x1b[6~": "page-down",
    "\x1b[H": "home", "\x1bOH": "home", "\x1b[1~": "home", "\x1b[F": "end", "\x1bOF": "end", "\x1b[4~": "end",
    "\x1b[Z": "shift-tab", "\t": "tab", "\r": "enter", "\n": "enter",
    "\x7f": "backspace", "\x08": "backspace",
    "\x03": "ctrl-c", "\x1b": "esc",
}  # fmt: skip


@click.command(
    "top",
    epilog=examples(
        "steersman top",
        "steersman top --address https://10.0.0.7:9090 --pane tenants",
        "steersman top --once --pane decisions | cat        # one frame, for scripts",
        "COLUMNS=120 LINES=40 steersman top --once",
    ),
)
@address_option
@click.option(
    "--pane", type=click.Choice(PANES), default="fleet", show_default=True, help="The pane to begin with."
)
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(0.2, 60.0),
    default=1.0,
    show_default=True,
    help="Seconds a refresh.",
)
@click.option("--filter", "filter_", default="", help="Show rows with this text alone.")
@click.option("--once", is_flag=True, help="Print one frame and exit; needs no terminal.")
def command(address: str | None, pane: str, every_s: float, filter_: str, once: bool) -> None:
    """Watch a running service live: fleet, tenants, decisions, alerts.

    Keys: q quits; 1 to 4, Tab and arrows choose a pane; s sorts by the next column, r reverses; / filters; p
    pauses; arrows, PgUp and PgDn scroll. Exits 1 when no service answers at the start; later it waits.
    """
    if not once and not (sys.stdin.isatty() and sys.stdout.isatty()):
        fail("top needs a terminal; --once prints one frame without", code=EXIT_CONFIG)
    from extproc.supervise.asking import ServiceSilentError
    from extproc.terminal.top_view import Rates, ViewState

    state = ViewState(pane=PANES.index(pane), filter=filter_)
    try:
        asyncio.run(_once(address, state) if once else _live(address, state, Rates(), every_s=every_s))
    except ServiceSilentError as error:
        fail(f"{error}; {error.advice}")
    except KeyboardInterrupt:
        pass


class StatusSource:
    """The service's status, with its alerts where it has them."""

    def __init__(self, link: Any) -> None:
        self._link = link
        self._until_alerts = 0

    async def status(self) -> dict[str, Any]:
        """Raises ServiceSilentError."""
        from extproc.supervise.asking import ServiceSilentError

        found: dict[str, Any] = await self._link.status()
        if self._until_alerts > 0:
            self._until_alerts -= 1
            return found
        try:
            found["alerts"] = await self._link.order("Alerts", {})
        except (ServiceSilentError, ValueError):
            self._until_alerts = ALERTS_AGAIN
        return found


async def _once(address: str | None, state: ViewState) -> None:
    from rich.console import Console
    from rich.segment import SegmentLines

    from extproc.demo.running import link_to
    from extproc.terminal.top_view import Rates, Shown, frame

    link = await link_to(address)
    try:
        status, rates = await StatusSource(link).status(), Rates()
        rates.take(status)
        console = Console()
        shown = Shown(address=link.address, rates=rates)
        lines = frame(state, status, shown, width=console.width, height=console.height)
        console.print(SegmentLines(lines, new_lines=True), end="")
    finally:
        await link.close()


async def _live(address: str | None, state: ViewState, rates: Rates, *, every_s: float) -> None:
    from rich.console import Console

    from extproc.demo.running import link_to
    from extproc.supervise.asking import ServiceSilentError
    from extproc.terminal.top_view import Shown

    link = await link_to(address)
    source = StatusSource(link)
    try:
        status = await source.status()
        shown = Shown(address=link.address, rates=rates)
        rates.take(status)
        redraw, ended = asyncio.Event(), asyncio.Event()

        def pressed(key: str) -> None:
            if not state.pressed(key):
                ended.set()
            redraw.set()

        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(signum, ended.set)
        loop.add_signal_handler(signal.SIGWINCH, redraw.set)
        console = Console()
        with _terminal(), _keys(loop, pressed):
            refreshed_s = loop.time()
            while not ended.is_set():
                _draw(console, state, status, shown)
                redraw.clear()
                wait_s = max(0.0, refreshed_s + every_s - loop.time())
                if not await _set_within(redraw, ended, wait_s):
                    refreshed_s = loop.time()
                    if state.paused:
                        continue
                    try:
                        status = await source.status()
                        rates.take(status)
                        shown = Shown(address=link.address, rates=rates)
                    except ServiceSilentError:
                        told = "the service does not answer: figures are old; running streams go on"
                        shown = Shown(address=link.address, rates=rates, trouble=told)
    finally:
        await link.close()


async def _set_within(redraw: asyncio.Event, ended: asyncio.Event, wait_s: float) -> bool:
    """Whether one of them is set in that time."""
    waiting = [asyncio.create_task(redraw.wait()), asyncio.create_task(ended.wait())]
    done, left = await asyncio.wait(waiting, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
    for task in left:
        task.cancel()
    return bool(done)


def _draw(console: Any, state: ViewState, status: dict[str, Any], shown: Any) -> None:
    """The whole screen in one write: each line overwritten and its rest cleared, so that nothing flickers."""
    from rich.segment import SegmentLines

    from extproc.terminal.top_view import frame

    width, height = os.get_terminal_size(sys.stdout.fileno())
    lines = frame(state, status, shown, width=width, height=height)
    console.size = (width, height)
    with console.capture() as captured:
        console.print(SegmentLines(lines, new_lines=True), end="")
    text = captured.get().rstrip("\n").replace("\n", "\x1b[K\r\n")
    sys.stdout.write(f"\x1b[?2026h\x1b[H{text}\x1b[K\x1b[J\x1b[?2026l")
    sys.stdout.flush()


@contextlib.contextmanager
def _terminal() -> Iterator[None]:
    """The alternate screen, no cursor, no echo, keys one by one; all put back at the end."""
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        sys.stdout.write("\x1b[?1049h\x1b[?25l")
        sys.stdout.flush()
        yield
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.write("\x1b[?25h\x1b[?1049l")
            sys.stdout.flush()
        with contextlib.suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _keys(loop: asyncio.AbstractEventLoop, pressed: Any) -> Iterator[None]:
    """Calls `pressed` with the name of each key."""
    fd = sys.stdin.fileno()
    rest = ""
    timer: asyncio.TimerHandle | None = None

    def alone() -> None:
        nonlocal rest
        if rest:
            rest = ""
            pressed("esc")

    def read() -> None:
        nonlocal rest, timer
        try:
            data = os.read(fd, 1024)
        except OSError:
            data = b""
        if not data:  # the terminal is gone
            loop.remove_reader(fd)
            pressed("q")
            return
        if timer is not None:
            timer.cancel()
        names, rest = decoded(rest + data.decode(errors="ignore"))
        for name in names:
            pressed(name)
        if rest:
            timer = loop.call_later(ESCAPE_S, alone)

    loop.add_reader(fd, read)
    try:
        yield
    finally:
        loop.remove_reader(fd)


def decoded(text: str) -> tuple[list[str], str]:
    """The keys in what a terminal sent, and the beginning of an escape sequence that is not whole yet."""
    names: list[str] = []
    while text:
        if text[0] != "\x1b":
            names.append(KEYS.get(text[0], text[0]))
            text = text[1:]
            continue
        known = next(
            (each for each in sorted(KEYS, key=len, reverse=True) if len(each) > 1 and text.startswith(each)),
            "",
        )
        if known:
            names.append(KEYS[known])
            text = text[len(known) :]
        elif len(text) == 1 or (text[1] in "[O" and not _whole(text)):
            return names, text
        elif text[1] in "[O":
            text = text[_whole(text) :]  # a key that is none of ours
        else:
            names.append("esc")
            text = text[1:]
    return names, text


def _whole(text: str) -> int:
    """The length of the control sequence that a text begins with; 0 while it is not whole."""
    for i, character in enumerate(text[2:], 3):
        if "@" <= character <= "~":
            return i
    return 0

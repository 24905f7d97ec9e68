"""What `steersman top` shows and how keys change it: state and figures in, rich renderables out. No terminal.

Owns sorting, filtering and scrolling; the panes' columns are top_panes.py's. A frame is exactly as high as it
is told, and no wider.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from extproc.terminal.tables import ACCENT, BAD, ODD, QUIET, clock, ms, whole
from extproc.terminal.top_panes import PANES, Pane, Row

#: Samples kept of the sums' rates; one a refresh.
SAMPLES_KEPT: Final = 60
SPARKS: Final = "▁▂▃▄▅▆▇█"
SPARK_CELLS: Final = 20
#: Lines that are no rows: three of figures, the panes' names, a blank, the columns' heads, the keys.
FRAME_LINES: Final = 7
#: The smallest terminal in which anything can be read.
WIDTH_MIN, HEIGHT_MIN = 40, 10
FILTER_CHARACTERS_MAX: Final = 60


@dataclass(slots=True)
class ViewState:
    """What the user has chosen."""

    pane: int = 0
    #: By pane: the column sorted by (its head), "" for the service's own order.
    sorted_by: dict[int, str] = field(default_factory=dict)
    reverse: bool = False
    filter: str = ""
    typing: bool = False
    paused: bool = False
    #: By pane: rows scrolled past.
    offsets: dict[int, int] = field(default_factory=dict)
    page: int = 10

    def pressed(self, key: str) -> bool:
        """Take a key (`q`, `tab`, `up`, `enter` …); False ends the view."""
        if self.typing:
            self._typed(key)
            return True
        match key:
            case "q" | "ctrl-c":
                return False
            case "tab" | "right":
                self.pane = (self.pane + 1) % len(PANES)
            case "shift-tab" | "left":
                self.pane = (self.pane - 1) % len(PANES)
            case "1" | "2" | "3" | "4":
                self.pane = int(key) - 1
            case "s":
                self._sort_by_next()
            case "r":
                self.reverse = not self.reverse
            case "/":
                self.typing = True
            case "esc":
                self.filter = ""
            case "p" | " ":
                self.paused = not self.paused
            case "up" | "k":
                self._scroll(-1)
            case "down" | "j":
                self._scroll(1)
            case "page-up":
                self._scroll(-self.page)
            case "page-down":
                self._scroll(self.page)
            case "home" | "g":
                self.offsets[self.pane] = 0
            case "end" | "G":
                self.offsets[self.pane] = 1_000_000  # the frame knows how many there are
        return True

    def _typed(self, key: str) -> None:
        match key:
            case "enter":
                self.typing = False
            case "esc" | "ctrl-c":
                self.typing, self.filter = False, ""
            case "backspace":
                self.filter = self.filter[:-1]
            case _ if len(key) == 1 and len(self.filter) < FILTER_CHARACTERS_MAX:
                self.filter += key
        self.offsets[self.pane] = 0

    def _sort_by_next(self) -> None:
        heads = ["", *(each.head for each in PANES[self.pane].columns if each.by is not None)]
        now = self.sorted_by.get(self.pane, "")
        self.sorted_by[self.pane] = heads[(heads.index(now) + 1) % len(heads)]

    def _scroll(self, rows: int) -> None:
        self.offsets[self.pane] = max(0, self.offsets.get(self.pane, 0) + rows)


class Rates:
    """Requests a second from the sums that the status gives, for the last SAMPLES_KEPT refreshes."""

    def __init__(self) -> None:
        self._last: tuple[float, int] | None = None
        self.per_s: deque[float] = deque(maxlen=SAMPLES_KEPT)

    def take(self, status: Mapping[str, Any]) -> None:
        """A new status."""
        at_s = float(status["uptime_s"])
        total = sum(each["decided"] + each["rejected"] for each in status["tenants"].values())
        if self._last is not None and at_s > self._last[0]:
            self.per_s.append(max(0, total - self._last[1]) / (at_s - self._last[0]))
        self._last = (at_s, total)


def sparkline(values: Sequence[float], *, cells: int = SPARK_CELLS) -> str:
    """The last values as bars, the largest of them full."""
    shown = list(values)[-cells:]
    most = max(shown, default=0.0)
    if not most:
        return SPARKS[0] * len(shown)
    return "".join(SPARKS[min(len(SPARKS) - 1, round(value / most * (len(SPARKS) - 1)))] for value in shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What is drawn beside the status."""

    address: str
    rates: Rates
    #: "" while the service answers.
    trouble: str = ""


def frame(
    state: ViewState, status: Mapping[str, Any], shown: Shown, *, width: int, height: int
) -> list[list[Segment]]:
    """One picture, as `height` lines of `width` cells at the most."""
    console = Console(width=width, height=height, force_terminal=True, color_system="standard")
    if width < WIDTH_MIN or height < HEIGHT_MIN:
        parts: RenderableType = Text(f"the terminal is too small; {WIDTH_MIN}×{HEIGHT_MIN} is the least")
    else:
        parts = _parts(state, status, shown, width=width, height=height)
    lines = console.render_lines(parts, console.options.update(width=width, height=None), pad=False)
    return lines[:height]


def _parts(
    state: ViewState, status: Mapping[str, Any], shown: Shown, *, width: int, height: int
) -> RenderableType:
    pane = PANES[state.pane]
    state.page = room = height - FRAME_LINES
    everything = pane.rows(status)
    rows = _chosen(state, pane, everything)
    last = max(0, len(rows) - room)
    offset = min(state.offsets.get(state.pane, 0), last)
    state.offsets[state.pane] = offset
    body: list[RenderableType] = [_table(state, pane, rows[offset : offset + room], width=width)]
    if not rows:
        body.append(Text("nothing matches the filter" if everything else pane.empty, style=QUIET))
    filler = room - max(len(rows[offset : offset + room]), 0 if rows else 1)
    where = (
        f"{offset + 1}–{min(offset + room, len(rows))} of {len(rows)}" if len(rows) > room else f"{len(rows)}"
    )
    return Group(
        *_head(state, status, shown, width=width),
        _tabs(state, status, where),
        "",
        *body,
        *([""] * max(0, filler)),
        _keys(state, width=width),
    )


def _chosen(state: ViewState, pane: Pane, rows: list[Row]) -> list[Row]:
    if state.filter:
        wanted = state.filter.lower()
        rows = [row for row in rows if wanted in pane.text(row).lower()]
    head = state.sorted_by.get(state.pane, "")
    column = next((each for each in pane.columns if each.head == head), None)
    if column is not None and column.by is not None:
        # What is large is what one looks for; names begin with a.
        rows = sorted(rows, key=column.by, reverse=column.number != state.reverse)
    elif state.reverse:
        rows = rows[::-1]
    return rows


def _table(state: ViewState, pane: Pane, rows: list[Row], *, width: int) -> Table:
    columns = [each for each in pane.columns if width >= each.from_width]
    table = Table(box=None, padding=(0, 1, 0, 0), header_style=QUIET, expand=True, pad_edge=False)
    sorted_by = state.sorted_by.get(state.pane, "")
    for each in columns:
        mark = ("▴" if state.reverse == each.number else "▾") if each.head == sorted_by else ""
        table.add_column(
            Text(each.head + mark, style="bold" if mark else QUIET, no_wrap=True),
            justify="right" if each.number else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if each.gives else None,
        )
    for row in rows:
        table.add_row(*(each.cell(row) for each in columns))
    return table


def _head(state: ViewState, status: Mapping[str, Any], shown: Shown, *, width: int) -> list[RenderableType]:
    endpoints = status["endpoints"]
    ready = sum(each["ready"] for each in endpoints)
    first = Table.grid(expand=True)
    first.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    first.add_column(justify="right", no_wrap=True)
    right = Text("PAUSED  ", style=ODD) if state.paused else Text()
    first.add_row(
        Text.from_markup(f"[bold]steersman top[/]  {escape(shown.address)}"),
        right.append(f"up {clock(status['uptime_s'])}", style=QUIET),
    )
    per_s = f"{shown.rates.per_s[-1]:.1f}" if shown.rates.per_s else "–"
    tokens = sum(each["tokens_per_s"] for each in status["tenants"].values())
    sums = Text(no_wrap=True, overflow="ellipsis")
    sums.append(f"{ready} of {len(endpoints)} ready", style="" if ready == len(endpoints) else BAD)
    sums.append(f"   {whole(status['in_flight'])} in flight   ")
    sums.append(f"{whole(status['held'])} held", style=ODD if status["held"] else QUIET)
    sums.append(f"   {whole(tokens)} tokens/s   {per_s} requests/s ")
    sums.append(sparkline(shown.rates.per_s, cells=max(4, min(SPARK_CELLS, width - 68))), style=ACCENT)
    third = Text(no_wrap=True, overflow="ellipsis")
    if shown.trouble:
        third.append(shown.trouble, style=BAD)
    else:
        third.append_text(_first_tokens(status))
    return [first, sums, third]


def _first_tokens(status: Mapping[str, Any]) -> Text:
    """The worst tenants' and endpoints' times to first token, and the alerts that fire."""
    text = Text(no_wrap=True, overflow="ellipsis")
    firing = (status.get("alerts") or {}).get("firing", [])
    if firing:
        names = ", ".join(each["labels"].get("alertname", "") for each in firing[:3])
        text.append(f"{len(firing)} alerts: {names}   ", style=BAD)
    timed = [each for each in status["endpoints"] if each["ttft_p50_ms"] is not None]
    if not timed:
        return text.append("no first token seen yet", style=QUIET)
    p50s = sorted(each["ttft_p50_ms"] for each in timed)
    worst = max(timed, key=lambda each: each["ttft_p99_ms"])
    text.append("TTFT ", style=QUIET)
    text.append(f"p50 {ms(p50s[0])}–{ms(p50s[-1])} ms, worst p99 {ms(worst['ttft_p99_ms'])} ms ")
    return text.append(f"at {worst['address']}", style=QUIET)


def _tabs(state: ViewState, status: Mapping[str, Any], where: str) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for i, pane in enumerate(PANES):
        label = f" {i + 1} {pane.name} "
        text.append(label, style="reverse" if i == state.pane else QUIET).append(" ")
    firing = len((status.get("alerts") or {}).get("firing", []))
    if firing:
        text.append(f"{firing} firing ", style=BAD)
    text.append(f" {where}", style=QUIET)
    if state.filter or state.typing:
        text.append(f"   /{state.filter}", style=ACCENT).append("▏" if state.typing else "", style=ACCENT)
    return text


def _keys(state: ViewState, *, width: int) -> Text:
    if state.typing:
        return Text("type to filter   Enter keeps it   Esc clears it", style=QUIET, no_wrap=True)
    words = "q quit  1-4 tab pane  s sort  r reverse  / filter  p pause  ↑↓ scroll"
    return Text(words if width >= len(words) else words[: width - 1] + "…", style=QUIET, no_wrap=True)

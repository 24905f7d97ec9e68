"""Tables of a running gateway, for `status`, `up` and `demo`: plain values in, rich renderables out.

Owns columns, wording and colour. One accent, red for what needs a person, dim for the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

ACCENT, BAD, QUIET = "cyan", "bold red", "dim"
#: A narrower terminal gets fewer columns.
WIDE: Final = 104
#: Rows of the tables that grow; the rest is summed up in a line.
TENANTS_SHOWN, ENDPOINTS_SHOWN, EVENTS_SHOWN = 8, 12, 3
DECISIONS_SHOWN: Final = 6
#: Lines that are no decisions: heads, blanks, the caption.
FRAME_LINES: Final = 14
BAR_CELLS: Final = 8
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"

Figures = Mapping[str, Any]


def clock(seconds: float) -> str:
    """`0:42`, `1:02:03`."""
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def whole(value: float) -> str:
    """`12,345`."""
    return f"{value:,.0f}"


def ms(value: float | None) -> str:
    """`87`, `1,240`, or a dash where nothing was seen."""
    return "–" if value is None else whole(value)


def bar(value: float, most: float) -> str:
    """A bar of BAR_CELLS cells, in eighths of a cell."""
    eighths = round(BAR_CELLS * 8 * min(1.0, value / most)) if most > 0 else 0
    full, part = divmod(eighths, 8)
    return (_EIGHTHS[8] * full + (_EIGHTHS[part] if part else "")).ljust(BAR_CELLS)


def _table(title: str, columns: Iterable[tuple[str, str]], *, grow: bool = False) -> Table:
    """Columns are (head, kind): `name`, `text` or `number`."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=QUIET, expand=grow, pad_edge=False)
    for index, (head, kind) in enumerate(columns):
        table.add_column(
            Text(title, style="bold") if index == 0 else head,
            justify="right" if kind == "number" else "left",
            style=ACCENT if kind == "name" else QUIET if kind == "quiet" else "",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if grow and kind == "quiet" else None,
        )
    return table


def _alarm(count: int) -> Text:
    """A count that should be nought."""
    return Text(whole(count), style=BAD if count else QUIET)


def tenants_table(status: Figures, *, width: int, seen: Mapping[str, Figures] | None = None) -> Table:
    """Tenants as the service counts them; with `seen`, failures and TTFT are what the clients saw."""
    tenants: Mapping[str, Figures] = status["tenants"]
    wide = width >= WIDE
    columns = [("", "name"), ("requests", "number"), ("ok", "number"), ("failed", "number")]
    columns += [("rejected", "number")]
    columns += [("left early", "number"), ("running", "number")] if wide else []
    columns += [("tokens/s", "number"), ("TTFT p50", "number"), ("p99 ms", "number")]
    table = _table("Tenants", columns)
    for name, line in list(tenants.items())[:TENANTS_SHOWN]:
        ended = line["ok"] + line["failed"] + line["refused"] + line["client_gone"]
        ended += line["expired"]
        times = (seen or {}).get(name, line)
        cells: list[RenderableType] = [
            escape(name),
            whole(line["decided"] + line["rejected"]),
            whole(line["ok"]),
        ]
        # A client also sees what fails while the service is away, and never hears of retries that helped.
        failed = times["failed"] if seen else line["failed"] + line["refused"]
        cells += [_alarm(failed), _alarm(line["rejected"])]
        cells += [whole(line["client_gone"]), whole(max(0, line["decided"] - ended))] if wide else []
        cells += [whole(line["tokens_per_s"]), ms(times["ttft_p50_ms"]), ms(times["ttft_p99_ms"])]
        table.add_row(*cells)
    _more(table, len(tenants) - TENANTS_SHOWN)
    return table


def endpoints_table(status: Figures, *, width: int, hardware: Mapping[str, str] | None = None) -> Table:
    """Endpoints, with a bar of the work in flight against the busiest."""
    endpoints: Sequence[Figures] = status["endpoints"]
    wide = width >= WIDE
    columns = [("", "name"), ("pool", "text")]
    columns += [("gpu", "text")] if hardware else []
    columns += [("in flight", "number")]
    columns += [("tokens", "number"), ("", "text")] if wide else []
    columns += [("ok", "number"), ("failed", "number"), ("tokens/s", "number"), ("TTFT p50", "number")]
    columns += [("p99 ms", "number")] if wide else []
    columns += [("", "text")]
    table = _table("Endpoints", columns)
    most = max((endpoint["in_flight_tokens"] for endpoint in endpoints), default=0)
    for endpoint in endpoints[:ENDPOINTS_SHOWN]:
        cells: list[RenderableType] = [endpoint["address"], escape(endpoint["pool"])]
        cells += [(hardware or {}).get(endpoint["address"], "")] if hardware else []
        cells += [whole(endpoint["in_flight"])]
        tokens = endpoint["in_flight_tokens"]
        cells += [whole(tokens), Text(bar(tokens, most), style=ACCENT)] if wide else []
        cells += [whole(endpoint["ok"]), _alarm(endpoint["failed"]), whole(endpoint["tokens_per_s"])]
        cells += [ms(endpoint["ttft_p50_ms"])]
        cells += [ms(endpoint["ttft_p99_ms"])] if wide else []
        table.add_row(*cells, _state(endpoint))
    _more(table, len(endpoints) - ENDPOINTS_SHOWN)
    return table


def _state(endpoint: Figures) -> Text:
    if not endpoint["ready"]:
        return Text("not ready", style=BAD)
    return Text("suspect", style="yellow") if endpoint["suspect"] else Text("")


def decisions_table(status: Figures, *, rows: int) -> Table:
    """The last decisions, newest first, with their reasons."""
    columns = [("", "name"), ("endpoint", "text"), ("in", "number"), ("out", "number"), ("reason", "quiet")]
    table = _table("Decisions", columns, grow=True)
    for decision in status["decisions"][:rows]:
        table.add_row(
            escape(decision["tenant"]),
            decision["endpoint"],
            whole(decision["input_tokens"]),
            whole(decision["output_tokens"]),
            escape(decision["reason"]),
        )
    return table


def _more(table: Table, count: int) -> None:
    if count > 0:
        table.add_row(Text(f"and {count} more", style=QUIET))


def status_view(
    status: Figures,
    *,
    width: int,
    height: int,
    seen: Mapping[str, Figures] | None = None,
    hardware: Mapping[str, str] | None = None,
) -> RenderableType:
    """The three tables; decisions take what room is left of `height` lines."""
    taken = min(len(status["tenants"]), TENANTS_SHOWN + 1) + min(
        len(status["endpoints"]), ENDPOINTS_SHOWN + 1
    )
    rows = max(1, min(DECISIONS_SHOWN, height - FRAME_LINES - taken))
    return Group(
        tenants_table(status, width=width, seen=seen),
        "",
        endpoints_table(status, width=width, hardware=hardware),
        "",
        decisions_table(status, rows=rows),
    )


def screen(
    body: RenderableType, *, title: str, right: str, notes: Sequence[str] = (), events: Sequence[str] = ()
) -> RenderableType:
    """A whole picture: a head line, notes under it, the tables, and what happened last."""
    head = Table.grid(expand=True)
    head.add_column(no_wrap=True, overflow="ellipsis")
    head.add_column(justify="right", no_wrap=True)
    head.add_row(Text.from_markup(title), Text(right, style=QUIET))
    parts: list[RenderableType] = [head]
    parts += [_note(note) for note in notes]
    parts += ["", body, ""]
    parts += [Text(event, style=QUIET, no_wrap=True, overflow="ellipsis") for event in events[-EVENTS_SHOWN:]]
    return Padding(Group(*parts), (1, 1, 0, 1))


def _note(markup: str) -> Text:
    text = Text.from_markup(markup, overflow="ellipsis")
    text.no_wrap = True
    return text


def summary_line(status: Figures) -> str:
    """One line for logs."""
    tenants: Mapping[str, Figures] = status["tenants"]
    parts = [f"{clock(status['uptime_s'])} in flight {status['in_flight']}"]
    for name, line in list(tenants.items())[:TENANTS_SHOWN]:
        failed = line["failed"] + line["refused"]
        parts.append(
            f"{name}: ok {line['ok']}, failed {failed}, rejected {line['rejected']}, "
            f"TTFT p50 {ms(line['ttft_p50_ms'])} p99 {ms(line['ttft_p99_ms'])} ms, "
            f"{whole(line['tokens_per_s'])} tokens/s"
        )
    return " · ".join(parts)

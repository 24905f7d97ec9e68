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

ACCENT, BAD, ODD, QUIET = "cyan", "bold red", "yellow", "dim"
#: A narrower terminal gets fewer columns, a wider one all of them.
NARROW, PLENTY, WIDE, WIDEST = 76, 88, 104, 128
#: Health above this is shown as whole.
WHOLE: Final = 0.995
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


def count(value: float | None) -> str:
    """`1,234`, or a dash where nobody says."""
    return "–" if value is None else whole(value)


def bar(value: float, most: float, *, cells: int = BAR_CELLS) -> str:
    """A bar of so many cells, in eighths of a cell."""
    eighths = round(cells * 8 * min(1.0, value / most)) if most > 0 else 0
    full, part = divmod(eighths, 8)
    return (_EIGHTHS[8] * full + (_EIGHTHS[part] if part else "")).ljust(cells)


def plain_table(title: str, columns: Iterable[tuple[str, str]], *, grow: bool = False) -> Table:
    """Columns are (head, kind): `name`, `text`, `number` or `quiet`; one that `gives` way says so too."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=QUIET, expand=grow, pad_edge=False)
    for index, (head, kind) in enumerate(columns):
        table.add_column(
            Text(title, style="bold") if index == 0 else head,
            justify="right" if kind == "number" else "left",
            style=ACCENT if kind.startswith("name") else QUIET if kind == "quiet" else "",
            # What may wrap is what shrinks; its cells are texts that are cut instead.
            no_wrap="gives" not in kind,
            overflow="ellipsis",
            ratio=1 if grow and kind == "quiet" else None,
        )
    return table


def _alarm(count: int, *, style: str = BAD) -> Text:
    """A count that should be nought."""
    return Text(whole(count), style=style if count else QUIET)


def tenants_table(status: Figures, *, width: int, seen: Mapping[str, Figures] | None = None) -> Table:
    """Tenants as the service counts them; with `seen`, failures and TTFT are what the clients saw.

    Who is `meant` to be refused, by what was seen, is no alarm.
    """
    tenants: Mapping[str, Figures] = status["tenants"]
    use: Mapping[str, Figures] = status.get("use", {}).get("tenants", {})
    wide = width >= WIDE
    columns = [("", "name")]
    columns += [("class", "text")] if wide else []
    columns += [("requests", "number")]
    columns += [("ok", "number")] if wide else []
    columns += [("failed", "number"), ("rejected", "number"), ("held", "number")]
    columns += [("left early", "number"), ("running", "number")] if wide else []
    columns += [("tokens/s", "number"), ("TTFT p50", "number")] if width >= NARROW else []
    columns += [("p99 ms", "number")]
    table = plain_table("Tenants", columns)
    for name, line in list(tenants.items())[:TENANTS_SHOWN]:
        ended = line["ok"] + line["failed"] + line["refused"] + line["client_gone"]
        ended += line["expired"]
        times = (seen or {}).get(name, line)
        cells: list[RenderableType] = [escape(name)]
        cells += [escape(use.get(name, {}).get("class", ""))] if wide else []
        cells += [whole(line["decided"] + line["rejected"])]
        cells += [whole(line["ok"])] if wide else []
        # A client also sees what fails while the service is away, and never hears of retries that helped.
        failed = times["failed"] if seen else line["failed"] + line["refused"]
        cells += [_alarm(failed), _alarm(line["rejected"], style=ODD if times.get("meant") else BAD)]
        cells += [_alarm(use.get(name, {}).get("held", 0), style=ODD)]
        cells += [whole(line["client_gone"]), whole(max(0, line["decided"] - ended))] if wide else []
        cells += [whole(line["tokens_per_s"]), ms(times["ttft_p50_ms"])] if width >= NARROW else []
        cells += [ms(times["ttft_p99_ms"])]
        table.add_row(*cells)
    more(table, len(tenants) - TENANTS_SHOWN)
    return table


def endpoints_table(status: Figures, *, width: int, labels: Mapping[str, str] | None = None) -> Table:
    """Endpoints, with a bar of the work in flight against the busiest; `labels` name them for people."""
    endpoints: Sequence[Figures] = status["endpoints"]
    wide, widest = width >= WIDE, width >= WIDEST
    columns = [] if labels and not wide else [("", "name")]
    narrow, plenty = width < NARROW, width >= PLENTY
    columns += [("", "name" if not columns else "text")] if labels else [("pool", "text")] * (not narrow)
    columns += [("health", "number"), ("in flight", "number")]
    columns += [("tokens", "number")] if wide else []
    columns += [("", "text")] if widest else []
    columns += [] if narrow else [("ok", "number")]
    columns += [("failed", "number")]
    columns += [("tokens/s", "number")] if plenty else []
    columns += [] if narrow else [("TTFT p50", "number")]
    columns += [("p99 ms", "number")] if wide else []
    columns += [("", "text gives")]
    table = plain_table("Endpoints", columns)
    most = max((endpoint["in_flight_tokens"] for endpoint in endpoints), default=0)
    for endpoint in endpoints[:ENDPOINTS_SHOWN]:
        cells: list[RenderableType] = [] if labels and not wide else [endpoint["address"]]
        cells += (
            [(labels or {}).get(endpoint["address"], "")]
            if labels
            else [escape(endpoint["pool"])] * (not narrow)
        )
        cells += [health(endpoint), whole(endpoint["in_flight"])]
        tokens = endpoint["in_flight_tokens"]
        cells += [whole(tokens)] if wide else []
        cells += [Text(bar(tokens, most), style=ACCENT)] if widest else []
        cells += [] if narrow else [whole(endpoint["ok"])]
        cells += [_alarm(endpoint["failed"])]
        cells += [whole(endpoint["tokens_per_s"])] if plenty else []
        cells += [] if narrow else [ms(endpoint["ttft_p50_ms"])]
        cells += [ms(endpoint["ttft_p99_ms"])] if wide else []
        table.add_row(*cells, state(endpoint))
    more(table, len(endpoints) - ENDPOINTS_SHOWN)
    return table


def health(endpoint: Figures) -> Text:
    """`1.00`, coloured from quiet to red."""
    value = endpoint["health"]
    return Text(f"{value:.2f}", style=_style(endpoint))


def state(endpoint: Figures) -> Text:
    """What is to be said of an endpoint in a few words; nothing where all is well."""
    words = [] if endpoint["announced"] else ["not yet Envoy's"]
    words += ["draining"] if endpoint["draining"] else []
    words += [brief(name, cause) for name, cause in endpoint["causes"].items()]
    words += ["suspect"] if endpoint["suspect"] else []
    kv = endpoint.get("kv_events")
    words += ["KV events lost"] if kv is not None and not kv["complete"] else []
    if not words and not endpoint["ready"]:
        words = ["not ready"]
    return Text(", ".join(words), style=_style(endpoint), no_wrap=True, overflow="ellipsis")


def brief(name: str, cause: Figures) -> str:
    """A cause in a few words: a GPU's by its name, the others by what was seen."""
    return name.removeprefix("gpu ") if name.startswith("gpu ") else str(cause["detail"] or name)


def _style(endpoint: Figures) -> str:
    if endpoint["draining"]:
        return ODD
    if not endpoint["ready"]:
        return BAD
    return ODD if endpoint["health"] < WHOLE or endpoint["causes"] or endpoint["suspect"] else QUIET


def decisions_table(status: Figures, *, rows: int) -> Table:
    """The last decisions, newest first, with their reasons."""
    columns = [("", "name"), ("endpoint", "text"), ("in", "number"), ("out", "number"), ("reason", "quiet")]
    table = plain_table("Decisions", columns, grow=True)
    for decision in status["decisions"][:rows]:
        table.add_row(
            escape(decision["tenant"]),
            decision["endpoint"],
            whole(decision["input_tokens"]),
            whole(decision["output_tokens"]),
            escape(decision["reason"]),
        )
    return table


def more(table: Table, left: int) -> None:
    """Say how many rows are left out."""
    if left > 0:
        table.add_row(Text(f"and {left} more", style=QUIET))


def status_view(
    status: Figures,
    *,
    width: int,
    height: int,
    seen: Mapping[str, Figures] | None = None,
    labels: Mapping[str, str] | None = None,
) -> RenderableType:
    """The three tables; decisions take what is left of `height` lines, if anything is."""
    taken = min(len(status["tenants"]), TENANTS_SHOWN + 1) + min(
        len(status["endpoints"]), ENDPOINTS_SHOWN + 1
    )
    rows = min(DECISIONS_SHOWN, height - FRAME_LINES - taken)
    return Group(
        tenants_table(status, width=width, seen=seen),
        "",
        endpoints_table(status, width=width, labels=labels),
        *(("", decisions_table(status, rows=rows)) if rows > 0 else ()),
    )


def screen(
    body: RenderableType, *, title: str, right: str, notes: Sequence[str] = (), events: Sequence[str] = ()
) -> RenderableType:
    """A whole picture: a head line, notes under it, the tables, and what happened last."""
    head = Table.grid(expand=True, padding=(0, 2, 0, 0))
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

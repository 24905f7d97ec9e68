"""The tables of `steersman top`: each pane's rows, its columns, and by what they are sorted and found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import RenderableType
from rich.text import Text

from extproc.terminal.tables import ACCENT, BAD, ODD, QUIET, brief, count, health, ms, whole

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaneColumn:
    """One column: its head, its cell, and by what rows are sorted by it (None: not at all)."""

    head: str
    cell: Callable[[Row], RenderableType]
    by: Callable[[Row], Any] | None = None
    number: bool = False
    #: Narrower terminals go without it.
    from_width: int = 0
    #: It takes what room is left, and is cut where there is none.
    gives: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pane:
    """One table of the view."""

    name: str
    columns: Sequence[PaneColumn]
    rows: Callable[[Mapping[str, Any]], list[Row]]
    #: What a filter looks into.
    text: Callable[[Row], str]
    empty: str


def _quiet(value: float | None) -> Text:
    return Text(count(value), style="" if value else QUIET)


def _alarm(value: float) -> Text:
    return Text(whole(value), style=BAD if value else QUIET)


def _share(used: float | None, total: float | None) -> Text:
    if used is None or not total:
        return Text("–", style=QUIET)
    return Text(f"{used / total:.0%}", style=ODD if used > 0.9 * total else "")


def _state(row: Row) -> Text:
    words = ["draining"] if row["draining"] else []
    words += [brief(name, cause) for name, cause in row["causes"].items()]
    words += ["suspect"] if row["suspect"] else []
    words += ["stale"] if row["stale"] and row["node"] else []
    if not words:
        words = [row["state"] or ("ready" if row["ready"] else "not ready")]
    style = (
        BAD if not row["ready"] and not row["draining"] else ODD if len(words) > 1 or row["causes"] else QUIET
    )
    return Text(", ".join(words), style=style, no_wrap=True, overflow="ellipsis")


def _endpoints(status: Mapping[str, Any]) -> list[Row]:
    return list(status["endpoints"])


def _tenants(status: Mapping[str, Any]) -> list[Row]:
    use = status["use"]["tenants"]
    empty = {"in_flight": 0, "held": 0, "class": "", "limits": []}
    counts = dict.fromkeys(
        ("decided", "ok", "failed", "refused", "rejected", "client_gone", "tokens_per_s"), 0
    ) | {"ttft_p50_ms": None, "ttft_p99_ms": None}
    names = dict.fromkeys([*status["tenants"], *use])
    return [
        {"name": name, **counts, **empty, **status["tenants"].get(name, {}), **use.get(name, {})}
        for name in names
    ]


def _quota(row: Row) -> float:
    return max((limit["used"] / limit["allowed"] for limit in row["limits"] if limit["allowed"]), default=0.0)


def _quota_cell(row: Row) -> Text:
    if not row["limits"]:
        return Text("–", style=QUIET)
    share = _quota(row)
    return Text(f"{share:.0%}", style=BAD if share >= 1 else ODD if share >= 0.8 else "")


def _decisions(status: Mapping[str, Any]) -> list[Row]:
    return list(status["decisions"])


def _alerts(status: Mapping[str, Any]) -> list[Row]:
    told = status.get("alerts") or {}
    return [
        {"state": state, **each, "name": each["labels"].get("alertname", "")}
        for kind, state in (("firing", "firing"), ("pending", "pending"), ("recent", "over"))
        for each in told.get(kind, [])
    ]


def _alert_style(row: Row) -> str:
    return {"firing": BAD, "pending": ODD}.get(row["state"], QUIET)


def _at(row: Row) -> Text:
    """The time of day at which it began, by the service's clock (UTC)."""
    return Text(str(row["startsAt"]).partition("T")[2][:8] or str(row["startsAt"]), style=QUIET)


def _note(row: Row) -> str:
    """What an alert says of this very case, else of its rule."""
    notes = row["annotations"]
    return str(notes.get("description") or notes.get("summary") or "")


def _name(key: str) -> Callable[[Row], RenderableType]:
    return lambda row: Text(str(row[key]), style=ACCENT, no_wrap=True, overflow="ellipsis")


def _plain(key: str) -> Callable[[Row], RenderableType]:
    return lambda row: Text(str(row.get(key) or "–"), no_wrap=True, overflow="ellipsis")


def _number(head: str, key: str, *, from_width: int = 0, alarm: bool = False) -> PaneColumn:
    cell = (lambda row: _alarm(row[key])) if alarm else (lambda row: _quiet(row[key]))
    return PaneColumn(head=head, cell=cell, by=lambda row: row[key] or 0, number=True, from_width=from_width)


def _time(head: str, key: str, *, from_width: int = 0) -> PaneColumn:
    return PaneColumn(
        head=head,
        cell=lambda row: ms(row[key]),
        by=lambda row: row[key] or 0,
        number=True,
        from_width=from_width,
    )


PANES: Final = (
    Pane(
        name="fleet",
        columns=(
            PaneColumn(head="endpoint", cell=_name("address"), by=lambda row: row["address"]),
            PaneColumn(head="pool", cell=_plain("pool"), by=lambda row: row["pool"], gives=True),
            PaneColumn(head="node", cell=_plain("node"), by=lambda row: row["node"] or "", from_width=110),
            PaneColumn(head="health", cell=health, by=lambda row: row["health"], number=True),
            PaneColumn(
                head="state", cell=_state, by=lambda row: (row["ready"], row["state"] or ""), gives=True
            ),
            _number("flight", "in_flight"),
            _number("wait", "waiting"),
            _number("run", "running", from_width=100),
            PaneColumn(
                head="KV",
                cell=lambda row: _share(row["kv_used_tokens"], row["kv_capacity_tokens"]),
                by=lambda row: (row["kv_used_tokens"] or 0) / (row["kv_capacity_tokens"] or 1),
                number=True,
            ),
            _number("tok/s", "tokens_per_s"),
            _number("failed", "failed", from_width=100, alarm=True),
            _time("p50 ms", "ttft_p50_ms"),
            _time("p99", "ttft_p99_ms"),
        ),
        rows=_endpoints,
        text=lambda row: (
            f"{row['address']} {row['pool']} {row['node']} {row['zone']} {row['state']} "
            f"{' '.join(row['causes'])}"
        ),
        empty="no endpoints yet",
    ),
    Pane(
        name="tenants",
        columns=(
            PaneColumn(head="tenant", cell=_name("name"), by=lambda row: row["name"], gives=True),
            PaneColumn(head="class", cell=_plain("class"), by=lambda row: row["class"], from_width=90),
            _number("flight", "in_flight"),
            _number("held", "held"),
            _number("requests", "decided"),
            _number("ok", "ok", from_width=100),
            _number("failed", "failed", alarm=True),
            _number("refused", "rejected", alarm=True),
            _number("gone", "client_gone", from_width=110),
            _number("tok/s", "tokens_per_s"),
            PaneColumn(head="quota", cell=_quota_cell, by=_quota, number=True),
            _time("p50 ms", "ttft_p50_ms"),
            _time("p99", "ttft_p99_ms", from_width=76),
        ),
        rows=_tenants,
        text=lambda row: f"{row['name']} {row['class']}",
        empty="no tenant has asked yet",
    ),
    Pane(
        name="decisions",
        columns=(
            PaneColumn(head="tenant", cell=_name("tenant"), by=lambda row: row["tenant"]),
            PaneColumn(head="pool", cell=_plain("pool"), by=lambda row: row["pool"], from_width=110),
            PaneColumn(head="endpoint", cell=_plain("endpoint"), by=lambda row: row["endpoint"]),
            _number("in", "input_tokens"),
            _number("out", "output_tokens"),
            PaneColumn(
                head="reason",
                cell=lambda row: Text(row["reason"], style=QUIET, no_wrap=True, overflow="ellipsis"),
                gives=True,
            ),
        ),
        rows=_decisions,
        text=lambda row: f"{row['tenant']} {row['pool']} {row['endpoint']} {row['reason']} {row['id']}",
        empty="nothing was decided yet",
    ),
    Pane(
        name="alerts",
        columns=(
            PaneColumn(
                head="alert",
                cell=lambda row: Text(
                    row["name"], style=_alert_style(row), no_wrap=True, overflow="ellipsis"
                ),
                by=lambda row: row["name"],
            ),
            PaneColumn(
                head="state",
                cell=lambda row: Text(row["state"], style=_alert_style(row)),
                by=lambda row: row["state"],
            ),
            PaneColumn(
                head="severity",
                cell=lambda row: row["labels"].get("severity", ""),
                by=lambda row: row["labels"].get("severity", ""),
            ),
            PaneColumn(head="since", cell=_at, by=lambda row: str(row["startsAt"])),
            PaneColumn(
                head="what",
                cell=lambda row: Text(_note(row), no_wrap=True, overflow="ellipsis"),
                gives=True,
            ),
        ),
        rows=_alerts,
        text=lambda row: (
            f"{row['name']} {row['state']} {_note(row)} {' '.join(map(str, row['labels'].values()))}"
        ),
        empty="no alert fires",
    ),
)

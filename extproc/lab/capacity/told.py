"""Fleets' figures for people and programs: a table, and plain values.

Owns the words. All of it is simulated, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from extproc.lab.capacity.cheapest import FewestReplicas, cheapest
from extproc.lab.capacity.figures import FleetFigures
from extproc.lab.report.cells import MeanInterval

#: What binds, for people.
BINDS: Final = {
    "ttft": "first tokens are late",
    "tpot": "tokens are slow",
    "permits": "max_concurrent is full",
    "kv": "KV memory is full",
    "none": "nothing",
}


def table_of(rows: Sequence[FleetFigures]) -> list[list[str]]:
    """A head and a line for each fleet."""
    return [[name for name, _ in _COLUMNS], *([text(row) for _, text in _COLUMNS] for row in rows)]


def fleet_plain(row: FleetFigures) -> dict[str, Any]:
    """One fleet as plain values; of each figure mean and half of its interval over seeds."""
    return {
        "name": row.name,
        "replicas": row.replicas,
        "hardware": row.hardware,
        "gpus": row.gpus,
        "max_concurrent": row.max_concurrent,
        "prefill_budget_tokens": row.prefill_budget_tokens,
        "kv_tokens": row.kv_tokens,
        "requests": row.requests,
        "requests_that_do_not_fit": row.unfit,
        "values": {name: _interval(value) for name, value in row.values.items()},
        "attainment_by_class": dict(row.by_class),
        "binding": row.binding,
        "cost_per_hour": row.cost_per_hour,
        "attainment_by_model": row.model,
    }


def cheapest_plain(found: Sequence[FewestReplicas], target: float) -> dict[str, Any]:
    """What the search found: the fewest of each kind, and which is cheapest."""
    best = cheapest(found)
    return {
        "target": target,
        "kinds": [
            {
                "kind": each.kind.name,
                "enough": fleet_plain(each.enough) if each.enough else None,
                "one_fewer": fleet_plain(each.short) if each.short else None,
            }
            for each in found
        ],
        "cheapest": best.kind.name if best else None,
    }


def cheapest_told(found: Sequence[FewestReplicas], target: float, most: int) -> list[str]:
    """The same in lines."""
    lines = [f"The fewest replicas for {target:.2%} of requests within their targets, of each kind:"]
    for each in found:
        if each.enough is None:
            assert each.short is not None
            best = each.short
            lines.append(
                f"  {each.kind.name}: {most} replicas are not enough ({best.attainment:.2%}; "
                f"{BINDS[best.binding]})"
            )
            continue
        short = f"; with {each.short.replicas} {each.short.attainment:.2%}" if each.short else ""
        why = f" ({BINDS[each.short.binding]})" if each.short else ""
        lines.append(
            f"  {each.kind.name}: {each.enough.replicas} replicas, {each.enough.attainment:.2%}, "
            f"{_cost(each.enough)}{short}{why}"
        )
    best_kind = cheapest(found)
    if best_kind is None or best_kind.enough is None:
        return [*lines, "No kind is enough: allow more with --max-replicas, or ask for less with --target."]
    by = "cost" if best_kind.cost_per_hour is not None else "cards, for no price is known (--price)"
    count, card = best_kind.enough.replicas, best_kind.enough.hardware
    return [*lines, f"Cheapest by {by}: {count} × {card} ({best_kind.kind.name})"]


def _interval(value: MeanInterval | None) -> dict[str, float | None] | None:
    return None if value is None else {"mean": value.mean, "half": value.half}


def _share(name: str) -> Callable[[FleetFigures], str]:
    def text(row: FleetFigures) -> str:
        value = row.values[name]
        return "-" if value is None else f"{value.mean:.0%}"

    return text


def _ms(name: str) -> Callable[[FleetFigures], str]:
    def text(row: FleetFigures) -> str:
        value = row.values[name]
        return "-" if value is None else f"{value.mean:,.0f}"

    return text


def _attained(row: FleetFigures) -> str:
    value = row.values["attainment"]
    if value is None:
        return "-"
    return f"{value.mean:.2%}" + (f" ± {100 * value.half:.2f}" if value.half else "")


def _cost(row: FleetFigures) -> str:
    return "cost unknown" if row.cost_per_hour is None else f"{row.cost_per_hour:,.2f}/h"


_COLUMNS: Final[tuple[tuple[str, Callable[[FleetFigures], str]], ...]] = (
    ("fleet", lambda row: row.name),
    ("replicas", lambda row: f"{row.replicas}"),
    ("attained", _attained),
    ("TTFT p50", _ms("ttft_p50_ms")),
    ("p99 ms", _ms("ttft_p99_ms")),
    ("TPOT p50", _ms("tpot_p50_ms")),
    ("p99 ms", _ms("tpot_p99_ms")),
    ("shed", _share("shed_share")),
    ("busy", _share("busy")),
    ("permits p99", _share("permits_p99")),
    ("KV p99", _share("kv_p99")),
    ("cost/h", lambda row: "-" if row.cost_per_hour is None else f"{row.cost_per_hour:,.2f}"),
    ("bound by", lambda row: row.binding),
    ("model says", lambda row: "-" if row.model is None else f"{row.model:.1%}"),
)

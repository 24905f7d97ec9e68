"""What `steersman replay --cache` tells, as a table and as plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from extproc.cli.intervals import columns, said

if TYPE_CHECKING:
    from extproc.lab.replay.answers import CacheSaving, TenantSaving
    from extproc.lab.report.cells import MeanInterval

#: Tenants that are shown, those with most hits first; the rest is in the JSON.
TENANTS_SHOWN: Final = 20


def plain_saving(saving: CacheSaving) -> dict[str, Any]:
    """The saving as plain values."""
    return {
        "simulated": True,
        "bytes_max": saving.cache.bytes_max,
        "ttl_s": saving.cache.ttl_s,
        "also": list(saving.allowed),
        "all": _figures(saving.whole),
        "tenants": {name: _figures(each) for name, each in saving.tenants.items()},
        "not_cached": dict(saving.unfit),
        "attainment": {"without": _interval(saving.without), "with": _interval(saving.saved)},
    }


def told_saving(saving: CacheSaving) -> list[str]:
    """The lines of a table."""
    whole = saving.whole
    mib, ttl_s = saving.cache.bytes_max / 1024**2, saving.cache.ttl_s
    lines = ["", f"With a response cache of {mib:g} MiB ({ttl_s:g} s, simulated):", ""]
    table = [["tenant", "requests", "may be cached", "hits", "hit rate", "tokens in", "tokens out", "GPU s"]]
    shown = sorted(saving.tenants.items(), key=lambda item: -item[1].hits)[:TENANTS_SHOWN]
    table += [_row(name, each) for name, each in shown]
    if len(saving.tenants) > 1:
        table.append(_row("all", whole))
    lines += columns(table)
    if saving.unfit:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(saving.unfit.items()))
        lines += ["", f"  not cached: {reasons}"]
    lines += ["", f"  attainment {said(saving.without)} without it, {said(saving.saved)} with it"]
    return lines


def _row(name: str, each: TenantSaving) -> list[str]:
    rate = f"{each.hits / each.requests:.1%}" if each.requests else "-"
    return [
        name,
        *map(str, (each.requests, each.cacheable, each.hits)),
        *(rate, str(each.input_tokens), str(each.output_tokens), f"{each.gpu_s:.1f}"),
    ]


def _figures(each: TenantSaving) -> dict[str, float]:
    return {**asdict(each), "hit_rate": each.hits / each.requests if each.requests else 0.0}


def _interval(value: MeanInterval) -> dict[str, float | None]:
    return {"mean": value.mean, "half": value.half}

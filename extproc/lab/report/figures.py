"""From what became of each request to figures.

Owns every figure's definition. Pure arithmetic: reads no file, draws nothing. All results are simulated.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from extproc.core.series import quantile
from extproc.sim.served import OUTCOMES, Served, Slo, met, tpot_ms, ttft_ms

# Virtual token counter's weights (Sheng et al., OSDI 2024): an output token costs about two prompt tokens.
PROMPT_WEIGHT: Final = 1.0
OUTPUT_WEIGHT: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A distribution in five numbers, milliseconds; percentiles interpolate linearly."""

    mean: float
    p50: float
    p90: float
    p99: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One run's figures; shares lie in 0..1.

    `attainment` is the share of *all* requests that met the bounds: shed, refused and failed count as
    missed. `goodput_rps` is those requests per second. Latencies are over answered requests alone, so
    they flatter who sheds: read them beside `attainment`. `wait_ms` is arrival to decision. `hit_share`
    is cached prompt tokens of all prompt tokens answered. `fairness_jain` is Jain's index
    (Σx)² / (n·Σx²) over the tenants' attainment: 1 is even, 1/n is one tenant alone.
    `service_gap_tokens_per_s` is the most less the least that tenants were served, weighted tokens (1
    prompt, 2 output); it says something only where tenants ask for alike. `shed_prompt_ratio` is the mean
    prompt of the shed and refused over the mean prompt of all: above 1, long prompts pay.
    `shed_idle` were turned away while a replica that would have taken them had nothing to do, `shed_room`
    while one would have begun their prefill at once, by the simulator's truth. `ttft_error` is the median of
    |predicted − observed| / observed of first tokens, both from dispatch. `change_known_s` is the mean time
    until a step change of speed was known, where it ever was, `change_unknown` the replicas where it was not.
    `utilisation` is each endpoint's busy share. Cost is in the unit of the prices given. None where
    nothing was there to measure.
    """

    requests: int
    ok: int
    shed: int
    refused: int
    failed: int
    attained: int
    attainment: float
    attainment_by_tenant: Mapping[str, float]
    attainment_by_class: Mapping[str, float]
    attainment_least: float
    duration_s: float
    goodput_rps: float
    answered_rps: float
    output_tokens_per_s: float
    ttft_ms: Spread | None
    tpot_ms: Spread | None
    e2e_ms: Spread | None
    wait_ms: Spread | None
    hit_share: float
    fairness_jain: float
    service_by_tenant: Mapping[str, float]
    service_gap_tokens_per_s: float
    shed_prompt_ratio: float | None
    shed_idle: int = 0
    shed_room: int = 0
    ttft_error: float | None = None
    change_known_s: float | None = None
    change_unknown: int = 0
    utilisation: Mapping[str, float] | None = None
    utilisation_mean: float | None = None
    cost: float | None = None
    cost_per_1k_attained: float | None = None
    cost_per_1m_output_tokens: float | None = None


def figures(
    served: Sequence[Served],
    *,
    slo: Slo,
    duration_s: float | None = None,
    busy_s: Mapping[str, float] | None = None,
    cost_per_hour: Mapping[str, float] | None = None,
    change_known_s: Mapping[str, float | None] | None = None,
) -> Figures:
    """The figures of one run.

    `duration_s` None is first arrival to last arrival or end. `busy_s` is each endpoint's time in steps;
    `cost_per_hour` each endpoint's price, paid for the whole duration whether busy or not;
    `change_known_s` when each change of speed was known, None for never. `ValueError` for no rows or an
    unknown outcome.
    """
    if not served:
        raise ValueError("no requests: there is nothing to report")
    outcomes = Counter(row.outcome for row in served)
    unknown = sorted(set(outcomes) - set(OUTCOMES))
    if unknown:
        raise ValueError(f"unknown outcomes {unknown}; known: {', '.join(OUTCOMES)}")
    if duration_s is None:
        duration_s = _duration_s(served)
    answered = [row for row in served if row.outcome == "ok"]
    hits = [met(row, slo) for row in served]
    attained = sum(hits)
    by_tenant = _shares((row.arrival.tenant, hit) for row, hit in zip(served, hits, strict=True))
    service = dict.fromkeys(by_tenant, 0.0)
    for row in answered:
        service[row.arrival.tenant] += (
            PROMPT_WEIGHT * row.arrival.prompt_tokens + OUTPUT_WEIGHT * row.arrival.output_tokens
        )
    service = {tenant: _per(tokens, duration_s) for tenant, tokens in service.items()}
    output_tokens = sum(row.arrival.output_tokens for row in answered)
    prompt_tokens = sum(row.arrival.prompt_tokens for row in answered)
    utilisation = {name: _per(busy, duration_s) for name, busy in sorted(busy_s.items())} if busy_s else None
    changes = (change_known_s or {}).values()
    found = [known_s for known_s in changes if known_s is not None]
    cost = sum(cost_per_hour.values()) * duration_s / 3600 if cost_per_hour is not None else None
    return Figures(
        requests=len(served),
        ok=outcomes["ok"],
        shed=outcomes["shed"],
        refused=outcomes["refused"],
        failed=outcomes["failed"],
        attained=attained,
        attainment=attained / len(served),
        attainment_by_tenant=by_tenant,
        attainment_by_class=_shares((row.service_class, hit) for row, hit in zip(served, hits, strict=True)),
        attainment_least=min(by_tenant.values()),
        duration_s=duration_s,
        goodput_rps=_per(attained, duration_s),
        answered_rps=_per(len(answered), duration_s),
        output_tokens_per_s=_per(output_tokens, duration_s),
        ttft_ms=spread(map(ttft_ms, answered)),
        tpot_ms=spread(value for value in map(tpot_ms, answered) if value is not None),
        e2e_ms=spread((row.end_ns - row.arrival.at_ns) / 1e6 for row in answered),
        wait_ms=spread((row.decided_ns - row.arrival.at_ns) / 1e6 for row in answered if row.decided_ns >= 0),
        hit_share=_per(sum(row.cached_tokens for row in answered), prompt_tokens),
        fairness_jain=jain(by_tenant.values()),
        service_by_tenant=service,
        service_gap_tokens_per_s=max(service.values()) - min(service.values()),
        shed_prompt_ratio=_shed_prompt_ratio(served),
        shed_idle=sum(row.while_idle for row in served),
        shed_room=sum(row.while_room for row in served),
        ttft_error=_ttft_error(answered),
        change_known_s=fmean(found) if found else None,
        change_unknown=len(changes) - len(found),
        utilisation=utilisation,
        utilisation_mean=sum(utilisation.values()) / len(utilisation) if utilisation else None,
        cost=cost,
        cost_per_1k_attained=cost / attained * 1e3 if cost is not None and attained else None,
        cost_per_1m_output_tokens=cost / output_tokens * 1e6 if cost is not None and output_tokens else None,
    )


def spread(values: Iterable[float]) -> Spread | None:
    """The distribution of `values`; None for none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return Spread(
        mean=sum(ordered) / len(ordered),
        p50=quantile(ordered, 0.5),
        p90=quantile(ordered, 0.9),
        p99=quantile(ordered, 0.99),
        most=ordered[-1],
    )


def jain(values: Iterable[float]) -> float:
    """Jain's index of fairness, (Σx)² / (n·Σx²); 1 where all are 0, for all are alike."""
    held = list(values)
    squares = sum(value * value for value in held)
    return sum(held) ** 2 / (len(held) * squares) if squares else 1.0


def _duration_s(served: Sequence[Served]) -> float:
    begin = min(row.arrival.at_ns for row in served)
    return (max(max(row.arrival.at_ns, row.end_ns) for row in served) - begin) / 1e9


def _per(amount: float, of: float) -> float:
    return amount / of if of else 0.0


def _shares(rows: Iterable[tuple[str, bool]]) -> dict[str, float]:
    """Hits per group, groups in order of name."""
    hits: dict[str, int] = defaultdict(int)
    totals: dict[str, int] = defaultdict(int)
    for group, hit in rows:
        hits[group] += hit
        totals[group] += 1
    return {group: hits[group] / totals[group] for group in sorted(totals)}


def _ttft_error(answered: Sequence[Served]) -> float | None:
    errors = sorted(
        abs(row.expected_ms / observed_ms - 1.0)
        for row in answered
        if row.expected_ms > 0.0 and (observed_ms := (row.first_ns - row.decided_ns) / 1e6) > 0.0
    )
    return quantile(errors, 0.5) if errors else None


def _shed_prompt_ratio(served: Sequence[Served]) -> float | None:
    shed = [row.arrival.prompt_tokens for row in served if row.outcome in ("shed", "refused")]
    return fmean(shed) / fmean(row.arrival.prompt_tokens for row in served) if shed else None

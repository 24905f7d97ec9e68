"""How well a replay reproduces what was measured, and what other choices change.

Owns the comparisons and their intervals. Measured figures come from the record, all others are simulated.
The fidelity is asked of streamed requests, whose first token the record has. A difference is that of two
plays of the same seed; its interval (Student's t, 95 %) is over seeds, which move step times and the
replicas' speeds about the learned ones. It says nothing of traffic on another day.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from extproc.lab.replay.play import RECORDED, Choice, met, play, slo_of
from extproc.lab.replay.rebuild import Scene
from extproc.lab.report.cells import METRICS, MeanInterval, interval
from extproc.lab.report.figures import Figures, figures, percentile
from extproc.sim.served import Served, ttft_ms

#: The figures that are compared, as `extproc.lab.report.METRICS` names them.
COMPARED: Final = (
    *("attainment", "attainment_least", "goodput_rps", "ttft_p50_ms", "ttft_p90_ms", "ttft_p99_ms"),
    *("tpot_p50_ms", "e2e_p50_ms", "e2e_p99_ms", "shed_share", "failed_share", "hit_share"),
)
#: Told of each seed's play: which choice, which seed.
Told = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Fidelity:
    """One figure measured, and as the replay under the recorded strategy has it; None where nothing was."""

    figure: str
    measured: float | None
    replayed: MeanInterval | None


@dataclass(frozen=True, slots=True)
class Column:
    """One choice: each figure over the seeds, and its difference from the record's own strategy."""

    choice: Choice
    values: Mapping[str, MeanInterval | None]
    differences: Mapping[str, MeanInterval | None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that `steersman replay` tells."""

    scene: Scene
    seeds: tuple[int, ...]
    fidelity: Sequence[Fidelity]
    columns: Sequence[Column]


def compare(
    scene: Scene, choices: Sequence[Choice], *, seeds: Sequence[int], told: Told | None = None
) -> Comparison:
    """Play the record's own choice and others, each with every seed. Raises LogError."""
    slo = slo_of(scene)
    played: dict[str, list[Figures]] = {}
    baseline: list[list[Served]] = []
    for choice in (RECORDED, *choices):
        for seed in seeds:
            if told is not None:
                told(choice.name, seed)
            served = play(scene, choice, seed=seed)
            if choice is RECORDED:
                baseline.append(served)
            played.setdefault(choice.name, []).append(figures(served, slo=slo))
    return Comparison(
        scene,
        tuple(seeds),
        fidelity(scene, baseline),
        [_column(choice, played[choice.name], played[RECORDED.name]) for choice in (RECORDED, *choices)],
    )


def fidelity(scene: Scene, played: Sequence[Sequence[Served]]) -> list[Fidelity]:
    """Measured beside replayed, over the same streamed requests."""
    streamed = [i for i, row in enumerate(scene.rows) if row.stream]
    measured = _measured(scene, streamed)
    replayed = [_replayed(scene, [served[i] for i in streamed]) for served in played]
    found = []
    for name, value in measured.items():
        values = [each[name] for each in replayed]
        known = [value for value in values if value is not None]
        found.append(Fidelity(name, value, interval(known) if known else None))
    return found


def _measured(scene: Scene, streamed: Sequence[int]) -> dict[str, float | None]:
    rows = [(scene.rows[i], scene.workload.arrivals[i]) for i in streamed]
    slo = slo_of(scene)
    first = sorted(row.ttft_ms for row, _ in rows if row.outcome == "ok" and row.ttft_ms is not None)
    end = sorted(row.duration_ms for row, _ in rows if row.outcome == "ok")
    good = 0
    for row, arrival in rows:
        if row.outcome == "ok" and row.ttft_ms is not None:
            after = arrival.output_tokens - 1
            tpot = (row.duration_ms - row.ttft_ms) / after if after else None
            spec = slo.specs[row.service_class]
            good += met(spec, arrival.prompt_tokens, ttft=row.ttft_ms, tpot=tpot)
    shed = sum(row.outcome in ("shed", "refused") for row, _ in rows)
    return _figures(first, end, good, shed, len(rows))


def _replayed(scene: Scene, served: Sequence[Served]) -> dict[str, float | None]:
    slo = slo_of(scene)
    ok = [each for each in served if each.outcome == "ok"]
    first = sorted(map(ttft_ms, ok))
    end = sorted((each.end_ns - each.arrival.at_ns) / 1e6 for each in ok)
    good = sum(slo.met(each) for each in served)
    shed = sum(each.outcome in ("shed", "refused") for each in served)
    return _figures(first, end, good, shed, len(served))


def _figures(
    first: Sequence[float], end: Sequence[float], good: int, shed: int, count: int
) -> dict[str, float | None]:
    at = {50: 0.5, 90: 0.9, 99: 0.99}
    return {
        **{f"ttft_p{p}_ms": percentile(first, share) if first else None for p, share in at.items()},
        **{f"e2e_p{p}_ms": percentile(end, share) if end else None for p, share in at.items()},
        "attainment": good / count if count else None,
        "shed_share": shed / count if count else None,
    }


def _column(choice: Choice, own: Sequence[Figures], base: Sequence[Figures]) -> Column:
    values: dict[str, MeanInterval | None] = {}
    differences: dict[str, MeanInterval | None] = {}
    for name in COMPARED:
        pairs = [(METRICS[name](mine), METRICS[name](theirs)) for mine, theirs in zip(own, base, strict=True)]
        mine = [value for value, _ in pairs if value is not None]
        both = [a - b for a, b in pairs if a is not None and b is not None]
        values[name] = interval(mine) if mine else None
        differences[name] = interval(both) if both and choice is not RECORDED else None
    return Column(choice, values, differences)

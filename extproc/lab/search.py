"""The search: Optuna's TPE over a strategy's parameters on the first part of a record, judged on the last.

Owns the objective, the split and the interval. The first TRAIN_SHARE of the requests is what the search
sees; what it found is then compared with the recorded parameters on the rest, which it has not seen: the
same seeds, the same blocks of time. The interval is a bootstrap over blocks of time, each with all its
seeds: requests that queue behind each other are not independent, and neither are two plays of the same
traffic. All of it is simulated, and equal for equal seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from random import Random
from typing import Any, Final, Literal

from extproc.core.series import quantile
from extproc.core.strategies.parameter import Value
from extproc.lab.replay.log import LogError
from extproc.lab.replay.play import Choice, play, slo_of
from extproc.lab.replay.rebuild import Scene
from extproc.sim.served import Served, Slo, met, ttft_ms
from extproc.tuning.space import Axis, checked, space

Objective = Literal["attainment", "ttft_p99", "goodput"]
#: The part of the requests that is searched on.
TRAIN_SHARE: Final = 0.65
#: What a request that was never answered counts for in the first token's 99th percentile: who sheds must not
#: look fast.
UNANSWERED_MS: Final = 60_000.0
#: Blocks of time of the held-out part, and the least requests of it.
BLOCKS, HELD_OUT_MIN = 12, 60
RESAMPLES: Final = 400
#: Parameters that are tried before the model of the optimiser counts.
STARTUP_TRIALS: Final = 8


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of parameters and its objective on the part that is searched on."""

    number: int
    parameters: Mapping[str, Value]
    value: float


@dataclass(frozen=True, slots=True)
class Gain:
    """A difference on the held-out part, in the objective's unit, better is positive; its 95 % interval."""

    value: float
    low: float
    high: float
    before: float
    after: float

    @property
    def shown(self) -> bool:
        """Whether the interval lies above nothing."""
        return self.low > 0.0


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found. `parameters` are the best on the searched part, `gain` theirs on the rest."""

    strategy: str
    objective: Objective
    axes: Sequence[Axis]
    before: Mapping[str, Value]
    parameters: Mapping[str, Value]
    trials: Sequence[Trial]
    gain: Gain
    train: int
    held_out: int


def axes_of(strategy: str) -> Sequence[Axis]:
    """What there is to vary. Raises ValueError where there is nothing, or no such strategy."""
    axes = space(strategy)
    if not axes:
        raise ValueError(f"strategy {strategy!r} has no parameter to tune")
    return axes


def tune(
    scene: Scene,
    *,
    strategy: str = "",
    trials: int = 40,
    objective: Objective = "attainment",
    seed: int = 1,
    seeds_held_out: int = 3,
    told: Callable[[Trial], None] | None = None,
) -> SearchResult:
    """Search. Raises LogError (too little traffic), ValueError (nothing to vary)."""
    optuna = _optuna()
    strategy = strategy or scene.strategy
    axes = axes_of(strategy)
    count = len(scene.rows)
    at = int(count * TRAIN_SHARE)
    if count - at < HELD_OUT_MIN:
        least = ceil(HELD_OUT_MIN / (1.0 - TRAIN_SHARE))
        raise LogError(f"{count} requests are too few to search on and to judge by; record {least} at least")
    train, rest = scene.part(0, at), scene.part(at, count)
    before: dict[str, Value] = {axis.name: axis.default for axis in axes}
    before |= {name: value for name, value in scene.parameters.get(strategy, {}).items() if name in before}
    done: list[Trial] = []
    slo = slo_of(scene)

    def evaluate(trial: Any) -> float:
        values = checked(strategy, {axis.name: _suggest(trial, axis) for axis in axes})
        value = worth(objective, [_of(train, strategy, values, seed, slo)])
        done.append(Trial(trial.number, values, value))
        if told is not None:
            told(done[-1])
        return value

    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(STARTUP_TRIALS, max(1, trials // 3)))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    # Where it stands is the first trial: the search can only stay or gain there.
    study.enqueue_trial({axis.name: _within(axis, before[axis.name]) for axis in axes})
    study.optimize(evaluate, n_trials=trials)
    best = max(done, key=lambda trial: (trial.value, -trial.number))
    seeds = [seed + 1 + i for i in range(seeds_held_out)]
    return SearchResult(
        strategy,
        objective,
        axes,
        before,
        best.parameters,
        done,
        gain(rest, strategy, before, best.parameters, objective=objective, seeds=seeds),
        at,
        count - at,
    )


#: What the judgement needs of a request: when it came, whether it met its targets, its first token in ms.
Judged = tuple[int, bool, float]
#: A block of time before and after.
_Pair = tuple[list[Judged], list[Judged]]


def gain(
    scene: Scene,
    strategy: str,
    before: Mapping[str, Value],
    after: Mapping[str, Value],
    *,
    objective: Objective,
    seeds: Sequence[int],
) -> Gain:
    """How much better one set of parameters does than another, paired by seed and by blocks of time."""
    slo = slo_of(scene)
    blocks: list[list[_Pair]] = [[] for _ in range(BLOCKS)]
    for seed in seeds:
        own = [_of(scene, strategy, values, seed, slo) for values in (before, after)]
        for block, pair in zip(blocks, zip(*map(_blocks, own), strict=True), strict=True):
            block.append(pair)
    blocks = [block for block in blocks if any(old for old, _ in block)]

    def both(drawn: Sequence[Sequence[_Pair]]) -> tuple[float, float]:
        pairs = [pair for block in drawn for pair in block]
        return worth(objective, [a for a, _ in pairs]), worth(objective, [b for _, b in pairs])

    old, new = both(blocks)
    rng = Random(seeds[0])
    differences = []
    for _ in range(RESAMPLES):
        then, now = both(rng.choices(blocks, k=len(blocks)))
        differences.append(now - then)
    differences.sort()
    low, high = quantile(differences, 0.025), quantile(differences, 0.975)
    sign = -1.0 if objective == "ttft_p99" else 1.0
    return Gain(new - old, low, high, sign * old, sign * new)


def worth(objective: Objective, blocks: Sequence[Sequence[Judged]]) -> float:
    """An objective over blocks of requests; more is better, so the 99th percentile is negative ms.

    `goodput` is requests a second that met their targets.
    """
    count = sum(map(len, blocks))
    if not count:
        return 0.0
    if objective == "ttft_p99":
        first = sorted(ms for block in blocks for _, _, ms in block)
        return -quantile(first, 0.99)
    good = sum(hit for block in blocks for _, hit, _ in block)
    if objective == "attainment":
        return good / count
    spans_s = sum((block[-1][0] - block[0][0]) / 1e9 for block in blocks if block)
    return good / spans_s if spans_s else 0.0


def _of(scene: Scene, strategy: str, values: Mapping[str, Value], seed: int, slo: Slo) -> list[Judged]:
    choice = Choice(name=strategy, strategy=strategy, parameters=values)
    return [_judged(each, slo) for each in play(scene, choice, seed=seed)]


def _judged(served: Served, slo: Slo) -> Judged:
    first = ttft_ms(served) if served.outcome == "ok" else UNANSWERED_MS
    return served.arrival.at_ns, met(served, slo), first


def _blocks(judged: Sequence[Judged]) -> list[list[Judged]]:
    """Stretches of equal time, empty ones too."""
    begin, end = judged[0][0], judged[-1][0]
    width = max(1, ceil((end - begin + 1) / BLOCKS))
    blocks: list[list[Judged]] = [[] for _ in range(BLOCKS)]
    for each in judged:
        blocks[(each[0] - begin) // width].append(each)
    return blocks


def _suggest(trial: Any, axis: Axis) -> Value:
    if axis.switch:
        return bool(trial.suggest_categorical(axis.name, [False, True]))
    if axis.whole:
        return int(trial.suggest_int(axis.name, int(axis.low), int(axis.high), log=axis.log))
    return float(trial.suggest_float(axis.name, axis.low, axis.high, log=axis.log))


def _within(axis: Axis, value: Value) -> Value:
    """A value moved into what is searched."""
    if axis.switch or isinstance(value, str):
        return value
    moved = min(max(float(value), axis.low), axis.high)
    return int(moved) if axis.whole else moved


def _optuna() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna

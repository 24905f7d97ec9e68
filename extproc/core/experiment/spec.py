"""What an experiment is, and who is in which arm. Pure values; nothing here has happened yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from xxhash import xxh3_64_intdigest

from extproc.core.strategies.parameter import Value

Split = Literal["request", "session", "tenant"]

#: The hash's range: arms divide it among them.
WHOLE = 1 << 64
#: Requests by which a tenant or a session has counted; what it asks for beyond is not in the intervals.
UNIT_REQUESTS: Mapping[Split, int] = {"request": 1, "session": 20, "tenant": 500}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One of the strategies compared; `share` of the traffic is above 0, all shares sum to 1."""

    name: str
    strategy: str
    share: float
    parameters: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guardrail:
    """An arm ends when it is certainly worse than the first and seems worse by more than `worse_by`.

    In shares of requests: of those that meet their class's targets, or of those that fail.
    """

    worse_by: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowSpec:
    """A strategy that is asked for `share` of the placed requests, and not heeded."""

    strategy: str
    share: float = 0.1
    parameters: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Arms (the first is the control), a shadow, or both, on some pools.

    `alpha` is the chance that any interval of the experiment is ever wrong. `start_ns` and `end_ns` are in
    the caller's clock; `requests_max` ends it after so many results. `stopped` says why, by arm, of arms that
    take no more requests, `ended` why the whole has ended.
    """

    name: str
    pools: tuple[str, ...]
    arms: tuple[Arm, ...] = ()
    split: Split = "request"
    alpha: float = 0.05
    guardrail: Guardrail | None = field(default_factory=Guardrail)
    shadow: ShadowSpec | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    requests_max: int | None = None
    unit_requests: int | None = None
    stopped: Mapping[str, str] = field(default_factory=dict)
    ended: str = ""

    def same_question(self, other: Experiment) -> bool:
        """Whether what was counted for `other` counts for this one as well."""
        mine, its = (
            (e.name, e.pools, e.arms, e.split, e.alpha, e.unit_requests, e.shadow) for e in (self, other)
        )
        return mine == its


def composite(strategy: str, experiment: str, arm: str) -> str:
    """What a pool calls an arm's own instance of a strategy."""
    return f"{strategy}#{experiment}/{arm}"


def arm_parameters(
    experiments: Iterable[Experiment], pool: str, parameters: Mapping[str, Mapping[str, Value]]
) -> dict[str, dict[str, Value]]:
    """The arms' parameters on a pool, by composite name: the pool's of that strategy, the arm's over them."""
    return {
        composite(arm.strategy, experiment.name, arm.name): {
            **parameters.get(arm.strategy, {}),
            **arm.parameters,
        }
        for experiment in experiments
        if pool in experiment.pools
        for arm in experiment.arms
    }


def shares_of(given: Mapping[str, float | None]) -> dict[str, float]:
    """Every arm's share: those that have none divide equally what the others leave.

    ValueError where that is nothing, or where the shares given do not sum to 1.
    """
    left = 1.0 - sum(share for share in given.values() if share is not None)
    open_ones = [name for name, share in given.items() if share is None]
    if open_ones and left <= 1e-9:
        raise ValueError(
            f"leaves nothing for {', '.join(open_ones)}; the other arms' shares sum to {1 - left:g}"
        )
    if not open_ones and abs(left) > 1e-6:
        raise ValueError(f"the arms' shares sum to {1 - left:g}; they sum to 1, or leave one out")
    each = left / len(open_ones) if open_ones else 0.0
    return {name: each if share is None else share for name, share in given.items()}


def cuts_of(arms: Iterable[Arm]) -> list[int]:
    """Where each arm's part of the hash's range ends; the last ends the range."""
    cuts: list[int] = []
    upto = 0.0
    for arm in arms:
        upto += arm.share
        cuts.append(round(upto * WHOLE))
    if cuts:
        cuts[-1] = WHOLE
    return cuts


def point(experiment: str, unit: str) -> int:
    """Where a unit lies in the range: the same on every service and after every restart.

    The experiment's name is the salt, so that who is in arm b here is no more likely in arm b there.
    """
    return xxh3_64_intdigest(unit.encode(), seed=xxh3_64_intdigest(experiment.encode()))

"""What goes wrong with scaling, as figures that alert rules compare.

Owns how they are reckoned from one plan to the next. Who is told is `observe/alerts`'s.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from extproc.core.scaling.values import PoolPlan

#: Changes of direction are counted over so long.
TURNS_WINDOW_NS: Final = 3_600 * 1_000_000_000
#: Changes that are remembered of a pool.
TURNS_KEPT: Final = 256
#: What keeps a plan from being as large as is needed.
LIMITS: Final = frozenset({"max", "budget"})
#: No pool loads faster than this, for whoever counts load times.
LOAD_S_MIN: Final = 1.0


class PoolTrouble(NamedTuple):
    """What is wrong with a pool's scaling at a moment; zeros where nothing is.

    `unmet`: replicas that are wanted beyond what `max_replicas` or the budget allows, at least. `overdue`:
    load times that have passed without another replica becoming ready, while fewer are ready than are
    wanted. `turns`: how often what is wanted changed its direction within the last hour.
    """

    unmet: float = 0.0
    overdue: float = 0.0
    turns: int = 0


class _PoolState:
    __slots__ = ("direction", "plan", "ready", "since_ns", "turns")

    def __init__(self, plan: PoolPlan) -> None:
        self.plan, self.ready = plan, plan.ready
        #: Since when no replica has become ready though one is wanted; None where all are there.
        self.since_ns: int | None = None
        self.direction = 0
        self.turns: deque[int] = deque(maxlen=TURNS_KEPT)


class ScalingTrouble:
    """Hears of each plan, and says what is wrong."""

    def __init__(self) -> None:
        self._pools: dict[str, _PoolState] = {}

    def heard(self, plan: PoolPlan) -> None:
        """A new plan of a pool."""
        state = self._pools.get(plan.pool)
        if state is None:
            state = self._pools[plan.pool] = _PoolState(plan)
        step = plan.wanted - state.plan.wanted
        if step:
            direction = 1 if step > 0 else -1
            if state.direction and direction != state.direction:
                state.turns.append(plan.at_ns)
            state.direction = direction
        if plan.ready >= plan.wanted:
            state.since_ns = None
        elif state.since_ns is None or plan.ready > state.ready:
            state.since_ns = plan.at_ns
        state.ready, state.plan = plan.ready, plan

    def forget(self, pool: str) -> None:
        """It does not scale any more."""
        self._pools.pop(pool, None)

    def of(self, pool: str, *, now_ns: int) -> PoolTrouble:
        """What is wrong with a pool now; nothing of one that has no plan."""
        state = self._pools.get(pool)
        if state is None:
            return PoolTrouble()
        plan = state.plan
        while state.turns and now_ns - state.turns[0] > TURNS_WINDOW_NS:
            state.turns.popleft()
        overdue = 0.0
        if state.since_ns is not None:
            # The horizon is a load time and the orchestrator's own.
            load_s = max(plan.load_time.p90_s, plan.horizon_s, LOAD_S_MIN)
            overdue = (now_ns - state.since_ns) / 1e9 / load_s
        # A planner looks no further than to the limit: that it binds is one at least.
        unmet = max(1, plan.need_high.replicas - plan.wanted) if plan.bound in LIMITS else 0
        return PoolTrouble(float(unmet), overdue, len(state.turns))

"""Tuning while a service runs: one small change of one parameter at a time, kept or taken back.

Owns the decision alone: pure, told of windows of traffic and of time, it answers with moves. Who calls it
applies a move, records it, and measures; nothing here reads a clock, a file or a scheduler.

A move is tried after a window that says enough, at most `step_max` of the value, never outside the knob's
range. The next window decides: taken back at once when a guarded figure is worse by more than is allowed
(asked also in the middle of the window), when the load was another one (then the two windows say nothing), or
when the metric is not better by more than its noise; kept otherwise. What fails in both directions is tried
later with half the step; a knob that gains goes on. Windows follow each other, so what changes with the hour
is confounded with a move: the guard against that is the comparison of loads, small steps, and the range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, sqrt
from typing import Final, Literal

#: Standard errors by which attainment must be better to be kept; share by which the 99th percentile must.
BETTER_ERRORS, BETTER_SHARE = 1.64, 0.03
#: In the middle of a window a guard must be breached by so many standard errors more, with so large a share
#: of the requests that a window needs.
EARLY_ERRORS, EARLY_SHARE = 3.0, 0.25
#: Two windows whose requests differ by more than this are not compared.
LOAD_CHANGE_MAX: Final = 0.3
#: Windows with too little traffic after which a trial is given up.
THIN_MAX: Final = 3
#: The step is never below this part of the largest.
STEP_LEAST: Final = 0.25

Metric = Literal["attainment", "ttft_p99"]
Kind = Literal["try", "keep", "revert"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalWindow:
    """What a stretch of time showed: of `requests` so many met their targets, so many failed."""

    requests: int
    attained: int
    failed: int
    ttft_p99_ms: float | None = None

    @property
    def attainment(self) -> float:
        """The share that met its targets; shed and failed requests missed them."""
        return self.attained / self.requests if self.requests else 0.0

    @property
    def error_share(self) -> float:
        """The share that failed."""
        return self.failed / self.requests if self.requests else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningGuard:
    """The guardrails (config: tuning)."""

    metric: Metric = "attainment"
    requests_min: int = 500
    step_max: float = 0.25
    attainment_drop_max: float = 0.01
    error_rise_max: float = 0.005
    every_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """A parameter that may be turned: where it stands, and from where to where it may go."""

    name: str
    value: float
    low: float
    high: float
    whole: bool = False

    def turned(self, step: float) -> Knob:
        """Moved by a share of its value; the same where it cannot."""
        to = self.value * (1.0 + step)
        if self.whole:
            # Towards where it stands, so that no step is larger than asked for; one is the least there is.
            moved = floor(to) if step > 0 else ceil(to)
            to = moved if moved != self.value else self.value + (1 if step > 0 else -1)
        to = min(max(to, self.low), self.high)
        return replace(self, value=int(to) if self.whole else to)


@dataclass(frozen=True, slots=True)
class Move:
    """A change to apply and to record ("keep" changes nothing any more), and why."""

    kind: Kind
    name: str
    before: float
    after: float
    why: str


class Tuner:
    """One strategy's knobs and what was tried of them."""

    def __init__(self, knobs: Sequence[Knob], guard: TuningGuard) -> None:
        self.guard = guard
        self._knobs = {knob.name: knob for knob in knobs}
        self._order = [knob.name for knob in knobs]
        self._at = 0
        self._direction = dict.fromkeys(self._order, 1)
        self._step = dict.fromkeys(self._order, guard.step_max)
        self._failed = dict.fromkeys(self._order, 0)
        self._before: GoalWindow | None = None
        self._trial: Move | None = None
        self._thin = 0
        self._due_ns: int | None = None

    @property
    def values(self) -> dict[str, float]:
        """Where every knob stands."""
        return {name: knob.value for name, knob in self._knobs.items()}

    @property
    def trying(self) -> Move | None:
        """The change that is being tried."""
        return self._trial

    def window(self, seen: GoalWindow, *, now_ns: int) -> Move | None:
        """A window has ended: what to do now."""
        if self._trial is not None:
            return self._judge(self._trial, seen)
        self._before = seen if seen.requests >= self.guard.requests_min else None
        if self._before is None or (self._due_ns is not None and now_ns < self._due_ns):
            return None
        return self._propose(now_ns)

    def watch(self, seen: GoalWindow) -> Move | None:
        """In the middle of a window: a trial that clearly does harm ends at once."""
        if self._trial is None or seen.requests < max(20, self.guard.requests_min * EARLY_SHARE):
            return None
        breach = self._breach(seen, EARLY_ERRORS)
        return self._revert(self._trial, breach) if breach else None

    def forget(self) -> None:
        """The move that was to be tried could not be: everything is as before it."""
        if self._trial is not None:
            self._knobs[self._trial.name] = replace(self._knobs[self._trial.name], value=self._trial.before)
        self._trial = self._before = None

    def _propose(self, now_ns: int) -> Move | None:
        for _ in range(2 * len(self._order)):
            name = self._order[self._at]
            knob = self._knobs[name]
            turned = knob.turned(self._direction[name] * self._step[name])
            if turned.value != knob.value:
                self._knobs[name] = turned
                self._trial = Move("try", name, knob.value, turned.value, "the next step of the search")
                self._thin = 0
                self._due_ns = now_ns + self.guard.every_ns
                return self._trial
            self._no_gain(name)
        return None

    def _judge(self, trial: Move, seen: GoalWindow) -> Move | None:
        before = self._before
        assert before is not None, "a trial follows a window"
        if seen.requests < self.guard.requests_min:
            self._thin += 1
            return (
                self._revert(trial, "too little traffic to judge it by") if self._thin >= THIN_MAX else None
            )
        breach = self._breach(seen, 0.0)
        if breach:
            return self._revert(trial, breach)
        if abs(seen.requests / before.requests - 1.0) > LOAD_CHANGE_MAX:
            why = f"the load changed ({before.requests} to {seen.requests} requests): nothing learned"
            return self._revert(trial, why, learned=False)
        better, told = self._better(before, seen)
        if not better:
            return self._revert(trial, f"no gain: {told}")
        self._trial = None
        self._before = seen
        self._failed[trial.name] = 0
        self._step[trial.name] = self.guard.step_max
        return Move("keep", trial.name, trial.before, trial.after, told)

    def _breach(self, seen: GoalWindow, errors: float) -> str:
        """What guarded figure is worse by more than is allowed and `errors` standard errors; "" for none."""
        before, guard = self._before, self.guard
        if before is None or not seen.requests:
            return ""
        drop = before.attainment - seen.attainment
        if drop > guard.attainment_drop_max + errors * _error(before.attained, seen.attained, before, seen):
            return f"attainment fell from {before.attainment:.4f} to {seen.attainment:.4f}"
        rise = seen.error_share - before.error_share
        if rise > guard.error_rise_max + errors * _error(before.failed, seen.failed, before, seen):
            return f"failures rose from {before.error_share:.4f} to {seen.error_share:.4f}"
        return ""

    def _better(self, before: GoalWindow, seen: GoalWindow) -> tuple[bool, str]:
        if self.guard.metric == "attainment":
            told = f"attainment {before.attainment:.4f} to {seen.attainment:.4f}"
            noise = BETTER_ERRORS * _error(before.attained, seen.attained, before, seen)
            return seen.attainment - before.attainment > noise, told
        then, now = before.ttft_p99_ms, seen.ttft_p99_ms
        if then is None or now is None:
            return False, "no first token was measured"
        return now < then * (
            1.0 - BETTER_SHARE
        ), f"99th percentile of the first token {then:.0f} to {now:.0f} ms"

    def _revert(self, trial: Move, why: str, *, learned: bool = True) -> Move:
        self._knobs[trial.name] = replace(self._knobs[trial.name], value=trial.before)
        self._trial = self._before = None
        if learned:
            self._no_gain(trial.name)
        return Move("revert", trial.name, trial.after, trial.before, why)

    def _no_gain(self, name: str) -> None:
        """The other direction next; after both, another knob, and this one later in smaller steps."""
        self._direction[name] = -self._direction[name]
        self._failed[name] += 1
        if self._failed[name] >= 2:
            self._failed[name] = 0
            self._step[name] = max(self._step[name] / 2.0, self.guard.step_max * STEP_LEAST)
            self._at = (self._at + 1) % len(self._order)


def _error(hits_before: int, hits_now: int, before: GoalWindow, now: GoalWindow) -> float:
    """The standard error of the difference of two shares; one hit and one miss more keep it above 0."""
    total = 0.0
    for hits, of in ((hits_before, before.requests), (hits_now, now.requests)):
        share = (hits + 1) / (of + 2)
        total += share * (1.0 - share) / (of + 2)
    return sqrt(total)

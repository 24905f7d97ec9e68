"""Health as a number: 0 to 1 per endpoint, moved gradually, by named causes.

Owns what each cause takes away and how fast the number follows. Three kinds of cause:

- HARD: the replica cannot serve (loading, gone, hung, a fatal GPU fault). The number is 0 at once.
- EVIDENCE: it serves, but less (a throttled card, a fault that reduces). Followed in steps.
- SUSPICION: it may be worse than it looks (errors, latency, failing probes, old telemetry). Followed in
  steps, and bounded over the pool: suspicions together never take more than SUSPICION_SHARE_MAX of a
  pool's capacity away, since what looks wrong everywhere is likelier wrong with us.

Falling: at most halved each STEP_NS. Rising: after HOLD_NS without a fall, RISE_PER_S a second (slow
start). The asymmetry is the hysteresis: a signal that comes and goes moves the number down once and up
slowly, whatever its pace. A process that has just loaded starts as slowly, but without the wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

STEP_NS = 250_000_000
HOLD_NS = 2_000_000_000
RISE_PER_S = 0.2
SUSPICION_SHARE_MAX = 0.5
#: Nothing else takes an endpoint below these together: only a HARD cause may silence it.
SUSPICION_FACTOR_MIN, EVIDENCE_FACTOR_MIN = 0.05, 0.02
#: The share of its value at which a fallen number starts, so that a rise from 0 is seen by traffic.
RISE_FROM = 0.05


class CauseKind(Enum):
    """How sure a cause is."""

    HARD = "hard"
    EVIDENCE = "evidence"
    SUSPICION = "suspicion"


FACTOR_MIN = {CauseKind.SUSPICION: SUSPICION_FACTOR_MIN, CauseKind.EVIDENCE: EVIDENCE_FACTOR_MIN}


@dataclass(frozen=True, slots=True)
class Cause:
    """`factor` 0 to 1 is the share of traffic that the cause leaves."""

    kind: CauseKind
    factor: float
    detail: str = ""


class Health:
    """One endpoint's number and why."""

    __slots__ = ("_fell_ns", "_stepped_ns", "causes", "target", "value")

    def __init__(self) -> None:
        self.value = 1.0
        self.target = 1.0
        self.causes: dict[str, Cause] = {}
        self._fell_ns = -(10**18)
        self._stepped_ns = -(10**18)

    def set(self, name: str, cause: Cause | None) -> None:
        """Set or clear a cause."""
        if cause is None or cause.factor >= 1.0:
            self.causes.pop(name, None)
        else:
            self.causes[name] = cause

    @property
    def hard(self) -> bool:
        """Whether a hard cause silences it."""
        # A loop: `any` of a generator costs five times as much, a thousand times a step.
        for cause in self.causes.values():  # noqa: SIM110
            if cause.kind is CauseKind.HARD:
                return True
        return False

    def factor(self, kind: CauseKind) -> float:
        """The product of the causes of a kind, 0 to 1."""
        product = 1.0
        for cause in self.causes.values():
            if cause.kind is kind:
                product *= cause.factor
        return product if kind is CauseKind.HARD else max(product, FACTOR_MIN[kind])

    def begin(self, *, now_ns: int) -> None:
        """A process that has just loaded takes work at once, little at first: its caches are cold."""
        if not self.hard:
            self.value = max(self.value, RISE_FROM)
            self._fell_ns, self._stepped_ns = now_ns - HOLD_NS, now_ns

    def silence(self, *, now_ns: int) -> None:
        """A hard cause acts at once, not at the pool's next step."""
        if self.hard:
            self.follow(0.0, now_ns=now_ns)

    def follow(self, target: float, *, now_ns: int) -> None:
        """Move the number towards a target as the module's rules say."""
        self.target = target
        passed_ns = now_ns - self._stepped_ns
        if self.hard or target <= 0.0:
            self.value, self._fell_ns, self._stepped_ns = 0.0, now_ns, now_ns
        elif target < self.value:
            if passed_ns >= STEP_NS:
                self.value = max(target, self.value / 2)
                self._fell_ns = self._stepped_ns = now_ns
        elif target > self.value:
            if now_ns - self._fell_ns < HOLD_NS:
                self._stepped_ns = now_ns
            else:
                risen = max(self.value, RISE_FROM) + RISE_PER_S * max(0, passed_ns) / 1e9
                self.value, self._stepped_ns = min(target, risen), now_ns
        else:
            self._stepped_ns = now_ns


def follow_pool(healths: Sequence[Health], *, now_ns: int) -> None:
    """Step every endpoint of a pool, with the bound on what suspicion may take."""
    troubled = [health for health in healths if health.causes or health.target < 1.0 or health.value < 1.0]
    suspicions = [1.0 if health.hard else health.factor(CauseKind.SUSPICION) for health in troubled]
    shed = sum(1.0 - factor for factor in suspicions)
    allowed = SUSPICION_SHARE_MAX * (len(healths) - sum(health.hard for health in troubled))
    scale = 1.0 if shed <= allowed else allowed / shed
    for health, suspicion in zip(troubled, suspicions, strict=True):
        left = 1.0 - (1.0 - suspicion) * scale
        health.follow(health.factor(CauseKind.EVIDENCE) * left, now_ns=now_ns)

"""Experiments while they run: who goes to which arm, what became of it, and when an arm has lost.

Owns the split, the results and the guardrail. The scheduler tells of a request when it is admitted, placed,
refused and ended; whoever has the clock tells it to look (`step`). Left out of every experiment are
requests that cost no permit, and those of tenants whose strategy is configured.

A stopped arm's units go on with the control's strategy, and are counted in no arm: they were not drawn for
it. The arms share replicas: what one does to their queues the other feels, so a difference seen here may be
smaller than one between two whole fleets.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

from msgspec.structs import replace
from xxhash import xxh3_64_intdigest

from extproc.core.decide import RoutingRequest
from extproc.core.endpoint import Endpoint
from extproc.core.experiment.results import TESTED, ArmResults
from extproc.core.experiment.shadow import Shadow
from extproc.core.experiment.spec import UNIT_REQUESTS, Arm, Experiment, composite, cuts_of, point
from extproc.core.experiment.units import Units
from extproc.core.experiment.verdict import arm_verdict, worse_than
from extproc.core.fleet import Pool
from extproc.core.outcome import Outcome, Routed
from extproc.core.prefix import MESSAGE_MARK
from extproc.core.request import Request
from extproc.core.slo import Sample

#: How often the guardrail looks, where results have come.
LOOK_NS = 1_000_000_000
#: Experiments that were taken away and whose last figures are still told.
PAST_MAX = 8
_USER = MESSAGE_MARK + b'"user"'


@dataclass(frozen=True, slots=True)
class Happened:
    """An arm was stopped, or the whole has ended (`arm` is empty)."""

    experiment: str
    arm: str
    why: str


class Running:
    """One experiment."""

    def __init__(self, spec: Experiment, *, rng: Random, now_ns: int) -> None:
        self.spec = spec
        self.since_ns = now_ns
        self.results = {arm.name: ArmResults() for arm in spec.arms}
        self.shadow = Shadow(spec.shadow, rng=rng) if spec.shadow is not None else None
        self.rerouted = 0
        self.stopped = dict(spec.stopped)
        self.ended = spec.ended
        self._cuts = cuts_of(spec.arms)
        requests_max = spec.unit_requests or UNIT_REQUESTS[spec.split]
        self._units = Units(requests_max) if spec.split != "request" else None
        self._looked_ns = now_ns
        self._looked_at = -1

    def take(self, spec: Experiment) -> None:
        """A new wording of the same question.

        What was stopped or has ended here stays so, unless it was said before and no longer is.
        """
        taken_back = self.spec.stopped.keys() - spec.stopped.keys()
        kept = {arm: why for arm, why in self.stopped.items() if arm not in taken_back}
        self.stopped = {**spec.stopped, **kept}
        self.ended = spec.ended or ("" if self.spec.ended else self.ended)
        self.spec = spec

    def state(self, now_ns: int) -> str:
        """waiting, running or ended."""
        spec = self.spec
        if self.ended or (spec.end_ns is not None and now_ns >= spec.end_ns):
            return "ended"
        return "waiting" if spec.start_ns is not None and now_ns < spec.start_ns else "running"

    def assign(self, routing: RoutingRequest, request: Request) -> RoutingRequest:
        """The case with its arm's strategy."""
        spec = self.spec
        key = _unit_of(spec, routing, request)
        where = point(spec.name, key)
        arm = spec.arms[bisect_right(self._cuts, where)]
        if arm.name in self.stopped:
            self.rerouted += 1
            control = spec.arms[0]
            return replace(routing, strategy=composite(control.strategy, spec.name, control.name))
        return replace(
            routing,
            strategy=composite(arm.strategy, spec.name, arm.name),
            arm=f"{spec.name}/{arm.name}",
            # 63 bits: it rides in a ticket, whose readers may have signed integers.
            unit=where >> 1 if self._units is not None else 0,
        )

    def saw(self, arm: str, unit: int, sample: Sample, *, now_ns: int) -> None:
        """Take what a request says."""
        results = self.results[arm]
        if self._units is None:
            error = None if sample.error is None else float(sample.error)
            attained = None if sample.attained is None else float(sample.attained)
            results.test(attained, error, sample.ttft_ms)
        else:
            self._units.add(unit, results, sample, now_ns=now_ns)

    @property
    def alpha(self) -> float:
        """Of each interval, so that all of them hold together."""
        return self.spec.alpha / (TESTED * max(1, len(self.results)))

    def step(self, *, now_ns: int) -> list[Happened]:
        """Look whether an arm has lost, or the end has come."""
        if self.ended:
            return []
        spec = self.spec
        if spec.end_ns is not None and now_ns >= spec.end_ns:
            return [self._end("its time is over", now_ns)]
        if now_ns - self._looked_ns < LOOK_NS:
            return []
        self._looked_ns = now_ns
        if self._units is not None:
            self._units.step(now_ns=now_ns)
        seen = sum(each.requests for each in self.results.values())
        if spec.requests_max is not None and seen >= spec.requests_max:
            return [self._end(f"{seen} requests were counted", now_ns)]
        if spec.guardrail is None or seen == self._looked_at or len(spec.arms) < 2:
            return []
        self._looked_at = seen
        happened = []
        control = spec.arms[0]
        for arm in spec.arms[1:]:
            if arm.name in self.stopped:
                continue
            why = worse_than(
                control.name,
                self.results[control.name],
                self.results[arm.name],
                alpha=self.alpha,
                worse_by=spec.guardrail.worse_by,
            )
            if why:
                self.stopped[arm.name] = why
                happened.append(Happened(spec.name, arm.name, why))
        return happened

    def _end(self, why: str, now_ns: int) -> Happened:
        self.ended = why
        if self._units is not None:
            self._units.step(now_ns=now_ns, quiet_ns=0)
        return Happened(self.spec.name, "", why)

    def view(self, *, now_ns: int) -> dict[str, Any]:
        """As plain values."""
        spec, alpha = self.spec, self.alpha
        guard = spec.guardrail
        control = spec.arms[0] if spec.arms else None
        return {
            "name": spec.name,
            "pools": list(spec.pools),
            "split": spec.split,
            "state": self.state(now_ns),
            "ended": self.ended,
            "counted_s": round((now_ns - self.since_ns) / 1e9, 1),
            "confidence": round(1.0 - spec.alpha, 6),
            "guardrail": guard.worse_by if guard is not None else None,
            "rerouted": self.rerouted,
            "units_gathering": len(self._units) if self._units is not None else 0,
            "arms": [
                {
                    "name": arm.name,
                    "strategy": arm.strategy,
                    "parameters": dict(arm.parameters),
                    "share": round(arm.share, 6),
                    "stopped": self.stopped.get(arm.name, ""),
                    **self.results[arm.name].view(alpha),
                }
                for arm in spec.arms
            ],
            "verdict": [self._verdict(control, arm, alpha) for arm in spec.arms[1:] if control is not None],
            "shadow": self.shadow.view() if self.shadow is not None else None,
        }

    def _verdict(self, control: Arm, arm: Arm, alpha: float) -> str:
        return arm_verdict(
            control.name,
            arm.name,
            self.results[control.name],
            self.results[arm.name],
            alpha=alpha,
            stopped=self.stopped.get(arm.name, ""),
            unit={"request": "requests", "session": "sessions", "tenant": "tenants"}[self.spec.split],
        )


class Experiments:
    """All experiments of one scheduler; a pool is in one at the most. `rng` is the shadows' own."""

    def __init__(self, *, rng: Random) -> None:
        self._rng = rng
        self._by_name: dict[str, Running] = {}
        self._by_pool: dict[str, Running] = {}
        self._past: dict[str, tuple[Running, int]] = {}

    def apply(self, specs: Iterable[Experiment], *, now_ns: int) -> None:
        """Take these and no others; what asks the same as before goes on counting."""
        before, self._by_name = self._by_name, {}
        for spec in specs:
            known = before.pop(spec.name, None)
            if known is not None and known.spec.same_question(spec):
                known.take(spec)
            else:
                known = Running(spec, rng=self._rng, now_ns=now_ns)
            self._by_name[spec.name] = known
            self._past.pop(spec.name, None)
        for name, gone in before.items():
            self._past[name] = (gone, now_ns)
            while len(self._past) > PAST_MAX:
                del self._past[next(iter(self._past))]
        self._by_pool = {pool: each for each in self._by_name.values() for pool in each.spec.pools}

    def assign(self, routing: RoutingRequest, request: Request) -> RoutingRequest:
        """The case as its arm has it, or as it is."""
        running = self._by_pool.get(routing.pool)
        if running is None or not routing.permits or routing.strategy or not running.results:
            return routing
        return running.assign(routing, request) if running.state(routing.arrived_ns) == "running" else routing

    def placed(
        self,
        routing: RoutingRequest,
        routed: Routed,
        pool: Pool,
        chosen: Endpoint,
        *,
        now_ns: int,
        deciders: int,
    ) -> None:
        """A request is about to be placed, and nothing has moved yet: the shadow's turn. Never raises."""
        running = self._by_pool.get(routing.pool)
        if running is None or running.shadow is None or not routing.permits or routed.reason.degraded:
            return
        if running.state(now_ns) == "running":
            running.shadow.placed(
                routing,
                routed,
                pool,
                chosen,
                now_ns=now_ns,
                deciders=deciders,
                parameters=pool.parameters.get(running.shadow.spec.strategy, {}),
            )

    def turned_away(self, routing: RoutingRequest, *, now_ns: int) -> None:
        """A request was refused for want of room or replicas, or its client gave up while it was held."""
        running, arm = self._of(routing.arm)
        if running is not None:
            running.results[arm].turned_away(max(0, now_ns - routing.arrived_ns) / 1e6)
            running.saw(arm, routing.unit, Sample(False, None), now_ns=now_ns)

    def ended(self, outcome: Outcome, sample: Sample, *, now_ns: int) -> None:
        """A request's record has come, which says this of its class's targets."""
        running, arm = self._of(outcome.reservation.arm)
        if running is None:
            return
        running.results[arm].ended(outcome, sample)
        running.saw(arm, outcome.reservation.unit, sample, now_ns=now_ns)

    def step(self, *, now_ns: int) -> list[Happened]:
        """Some time has passed: which arms were stopped, and which experiments have ended."""
        return [each for running in self._by_name.values() for each in running.step(now_ns=now_ns)]

    def view(self, name: str = "", *, now_ns: int) -> list[dict[str, Any]]:
        """Experiments as plain values: all that are configured, or one by name, if it was taken away too."""
        if name in self._past:
            gone, at_ns = self._past[name]
            return [{**gone.view(now_ns=at_ns), "state": "stopped"}]
        return [running.view(now_ns=now_ns) for each, running in self._by_name.items() if name in ("", each)]

    @property
    def past(self) -> list[str]:
        """Experiments that were taken away since the start, as far as remembered."""
        return list(self._past)

    def _of(self, arm: str) -> tuple[Running | None, str]:
        if not arm:
            return None, ""
        name, _, arm = arm.partition("/")
        running = self._by_name.get(name)
        return (running, arm) if running is not None and arm in running.results else (None, arm)


def _unit_of(spec: Experiment, routing: RoutingRequest, request: Request) -> str:
    """What is drawn as a whole, so that it is always in the same arm."""
    match spec.split:
        case "tenant":
            return routing.tenant.name
        case "session":
            session = _session(routing, request)
            # Who cannot be known again is a session of one request.
            return f"{routing.tenant.name}\0{session}" if session else routing.id
        case _:
            return routing.id


def _session(routing: RoutingRequest, request: Request) -> int:
    """A conversation: as the client named it, else by how it begins; 0 where it cannot be told.

    A chat begins with all up to the end of its first user's text: a system prompt alone is many users'.
    """
    if routing.work.session:
        return routing.work.session
    for i, mark in enumerate(request.marks):
        if mark.startswith(_USER) or _USER in mark:
            return xxh3_64_intdigest("\0".join(request.segments[: i + 1]).encode("utf-8", "replace"))
    return routing.work.prefix[0] if routing.work.prefix else 0

"""One pool as scaling follows it: what comes, what is forecast, and the plan that follows.

Owns the putting together of the pure parts; knows no service, no file and no process.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any, Final

from msgspec import structs

from extproc.config.scaling import PoolScaling, Scaling
from extproc.core.scaling.capacity import work_ms
from extproc.core.scaling.demand import PoolDemand
from extproc.core.scaling.forecast import GRAIN_S, Damped, Forecaster
from extproc.core.scaling.planner import Planner
from extproc.core.scaling.seasons import Seasons
from extproc.core.scaling.values import (
    LoadTime,
    PoolFacts,
    PoolPlan,
    PoolScale,
    ReplicaFact,
    ReplicaKind,
    SwitchOffer,
    WorkSample,
)
from extproc.core.slo import ClassSpec
from extproc.scaling.check import REQUESTS_MIN, CheckJob
from extproc.scaling.kept import KeptPool
from extproc.scaling.worker import FITTED_MAX, FITTED_MIN, Answer, FitJob, Fitted

#: A correction by simulation moves by this share a check, and is no further than that from the model.
CORRECTED: Final = 0.04
CORRECTION_MIN: Final = 0.6
CORRECTION_MAX: Final = 1.6
#: How long a check by simulation says something of the need, and of how different a rate.
CHECKED_S: Final = 600.0
CHECKED_RATE: Final = 0.2


def scale_of(pool: str, settings: PoolScaling) -> PoolScale:
    """The file's words as the planner has them."""
    return PoolScale(
        pool=pool,
        min_replicas=settings.min_replicas,
        max_replicas=settings.max_replicas,
        target_attainment=settings.target_attainment,
        margin_max=settings.margin_max,
        step_up_max=settings.step_up_max,
        step_down_max=settings.step_down_max,
        down_after_s=settings.down_after_s,
        reaction_s=settings.reaction_s,
        load_time_s=settings.load_time_s,
        budget_per_hour=settings.budget_per_hour,
        zero_after_s=settings.zero_after_s,
    )


class ScaledPool:
    """One pool that scales. Times: `now_ns` of the service's clock, `at_s` unix seconds."""

    def __init__(self, name: str, settings: PoolScaling, section: Scaling, *, rng: Random) -> None:
        self.name, self.settings, self.section = name, settings, section
        self.demand = PoolDemand(section.bucket_s, rng=rng)
        self.forecaster = Forecaster(
            section.bucket_s,
            method=settings.forecast,
            seasons=Seasons(GRAIN_S, days=section.history_days),
        )
        self.planner = Planner(scale_of(name, settings))
        #: Replicas bear so much more than the model says, by simulations.
        self.correction = 1.0
        self.checked: tuple[int, float, bool] | None = None
        #: Requests that ended since the last plan, and those of them that attained their targets.
        self.judged = self.attained = 0
        self.kinds: tuple[ReplicaKind, ...] = ()

    def told(self, settings: PoolScaling, section: Scaling) -> bool:
        """Other settings hold; False where the counting has to begin anew for them."""
        if (section.bucket_s, section.history_days) != (self.section.bucket_s, self.section.history_days):
            return False
        self.settings, self.section = settings, section
        self.forecaster.method = settings.forecast
        self.planner.scale = scale_of(self.name, settings)
        return True

    def step(
        self,
        *,
        now_ns: int,
        at_s: float,
        replicas: tuple[ReplicaFact, ...],
        kinds: tuple[ReplicaKind, ...],
        classes: Mapping[str, ClassSpec],
        load_time: LoadTime,
        held: int,
        floor: int,
        offers: tuple[SwitchOffer, ...] = (),
    ) -> PoolPlan:
        """The plan of this moment."""
        self.tick(at_s=at_s)
        self.kinds, self.planner.classes = kinds, classes
        ahead_s = self.planner.horizon_s(load_time, self.section.interval_s)
        band = self.forecaster.band(ahead_s)
        last_s = self.demand.last_s
        plan = self.planner.step(
            now_ns,
            PoolFacts(
                demand=self.demand.demand(self.forecaster.rate),
                forecast=band,
                kinds=kinds,
                replicas=replicas,
                load_time=load_time,
                held=held,
                floor=floor,
                idle_s=None if last_s is None else max(0.0, at_s - last_s),
                correction=self.correction,
                dispersion=self.forecaster.dispersion,
                judged=self.judged,
                attained=self.attained,
                unit_ms=self.demand.unit_ms,
                offers=offers,
            ),
        )
        self.judged = self.attained = 0
        return self._marked(plan, now_ns)

    def came(self, prompt_tokens: int, output_tokens: int, *, at_s: float) -> None:
        """A request came that is expected to have so many tokens."""
        kinds = self.kinds
        work = work_ms(kinds[0].timing, prompt_tokens, 0.0, output_tokens) if kinds else 0.0
        self.demand.worked(work, at_s=at_s)

    def ended(self, *, attained: bool) -> None:
        """A request ended (or was refused for want of room), within its targets or not."""
        self.judged += 1
        self.attained += attained

    def lost(self, count: int, *, at_s: float) -> None:
        """Requests that found no room elsewhere; how much work each was is not told."""
        self.judged += count
        self.demand.came(float(count), at_s=at_s)

    def tick(self, *, at_s: float) -> None:
        """Let time pass: intervals that are over are forecast from."""
        if not self.demand.step(at_s=at_s):
            self.forecaster.forget()
        for bucket, count in self.demand.taken():
            self.forecaster.saw(bucket, count)

    def simulated(
        self, attained: Mapping[int, float], *, replicas: int, requests_per_s: float, now_ns: int
    ) -> None:
        """A simulation's word: the share that attained, by replicas, where the model said `replicas`."""
        target = self.settings.target_attainment
        enough, fewer = attained.get(replicas), attained.get(replicas - 1)
        if enough is None:
            return
        if enough < target:
            short = attained.get(replicas + 1, 1.0) < target
            self.correction *= 1.0 - CORRECTED * (2.0 if short else 1.0)
        elif fewer is not None and fewer >= target:
            self.correction *= 1.0 + CORRECTED
        self.correction = min(max(self.correction, CORRECTION_MIN), CORRECTION_MAX)
        agrees = enough >= target and (fewer is None or fewer < target)
        self.checked = (now_ns, requests_per_s, agrees)

    def _marked(self, plan: PoolPlan, now_ns: int) -> PoolPlan:
        """With the word that a simulation agrees, where one of late was of about this."""
        if self.checked is None:
            return plan
        at_ns, rate, agrees = self.checked
        close = abs(plan.forecast.high - rate) <= CHECKED_RATE * max(rate, 1e-9)
        if not (agrees and close and now_ns - at_ns <= CHECKED_S * 1e9):
            return plan
        return structs.replace(plan, need_high=structs.replace(plan.need_high, simulated=True))

    def check_job(self, plan: PoolPlan, *, seed: int) -> CheckJob | None:
        """What a simulation is to say of a plan; None where there is nothing to ask: no load, no samples,
        several kinds, or a bound that decides."""
        many, rate = plan.need_high.replicas, plan.forecast.high
        if len(self.kinds) != 1 or not self.demand.samples or many < 1 or rate <= 0.0:
            return None
        if plan.bound == "max" or many > self.settings.max_replicas:
            return None
        return CheckJob(
            samples=tuple(self.demand.samples),
            kind=self.kinds[0],
            classes=tuple(self.planner.classes.values()),
            requests_per_s=rate,
            replicas=(many - 1, many, many + 1) if many > 1 else (many,),
            target=self.settings.target_attainment,
            seed=seed,
        )

    def fit_job(self) -> FitJob | None:
        """What a trend is to be fitted to: the grains since the last gap; None while they are few."""
        rates: list[float] = []
        for rate in reversed(self.forecaster.seasons.kept()[1]):
            if rate != rate or len(rates) == FITTED_MAX:
                break
            rates.append(rate)
        return FitJob(rates=rates[::-1]) if len(rates) >= FITTED_MIN else None

    def answered(self, answer: Answer, plan: PoolPlan, *, now_ns: int) -> None:
        """The worker's word on a plan that was asked about."""
        if isinstance(answer, Fitted):
            if answer.by:
                self.forecaster.damped = Damped(answer.level, answer.trend, answer.damped)
        elif answer.requests >= REQUESTS_MIN // 2:
            self.simulated(
                answer.attained,
                replicas=plan.need_high.replicas,
                requests_per_s=plan.forecast.high,
                now_ns=now_ns,
            )

    def kept(self) -> KeptPool:
        """For the file."""
        first, means = self.forecaster.seasons.packed()
        return KeptPool(
            grain_s=GRAIN_S,
            first=first,
            means=means,
            correction=self.correction,
            samples=list(self.demand.samples),
            damped=self.forecaster.damped,
            record=self.planner.record.kept(),
            margin=self.planner.margin.share,
        )

    def status(self) -> dict[str, Any]:
        """How it is forecast and corrected, for people."""
        return {
            "method": self.forecaster.chosen,
            "losses": {name: round(loss, 4) for name, loss in self.forecaster.losses.items()},
            "dispersion": round(self.forecaster.dispersion, 3),
            "correction": round(self.correction * self.planner.correction, 3),
            "margin": round(self.planner.margin.share, 3),
            "clock_steps": self.demand.clock_steps,
        }

    def recall(self, kept: KeptPool, *, at_s: float) -> None:
        """What the file says; of another grain, or of times that have not come, it says nothing."""
        if kept.grain_s == GRAIN_S:
            for place, rate in enumerate(kept.rates(), start=kept.first):
                if place * GRAIN_S < at_s:
                    self.forecaster.seasons.put(place, rate)
        if CORRECTION_MIN <= kept.correction <= CORRECTION_MAX:
            self.correction = kept.correction
        self.planner.record.recall(*kept.record)
        self.planner.margin.recall(kept.margin)
        for sample in kept.samples:
            self.demand.ended(WorkSample(*sample))
        if kept.damped is not None and all(0.0 <= each <= 1.0 for each in kept.damped):
            self.forecaster.damped = Damped(*kept.damped)

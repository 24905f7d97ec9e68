"""The running service's side of online tuning: measures windows, applies and records the tuner's moves.

Owns the measuring, and the configuration's overlay: the file's parameters with what was tuned on top. A
reload keeps the overlay for as long as the file says of these parameters what it said when tuning began.
Every move is in the audit log. What is kept is written into the file, and so into its history, where that is
wanted; a trial is no version of the file: nobody could roll back to what never stood there. Off unless the
configuration says otherwise.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from math import ceil, floor
from pathlib import Path
from typing import Any

from extproc.config.load import ConfigError
from extproc.config.model import Config, PoolConfig, Tuning
from extproc.core.decide import RoutingRequest
from extproc.core.errors import wanted_room
from extproc.core.events import Observer, Settled
from extproc.core.outcome import Reject
from extproc.core.series import quantile
from extproc.history.change import change
from extproc.history.surgery import EditError, Put, edited
from extproc.history.versions import HistoryError
from extproc.observe.audit import AuditLog
from extproc.service.parts import Part
from extproc.tuning.online import GoalWindow, Knob, Move, Tuner, TuningGuard
from extproc.tuning.space import space

log = logging.getLogger(__name__)

#: Who the history says it was.
WHO = "tuner"
#: First tokens kept of a window, for their 99th percentile; further ones are counted as met or missed alone.
FIRST_TOKENS_MAX = 100_000
#: How often in a window it is asked whether a trial does harm.
WATCHES = 10


@dataclass(slots=True)
class _Count:
    """The window that is being measured."""

    begun_ns: int = 0
    requests: int = 0
    attained: int = 0
    failed: int = 0
    first_ms: list[float] = field(default_factory=list)

    def window(self) -> GoalWindow:
        """As the tuner takes it."""
        first = sorted(self.first_ms)
        p99 = quantile(first, 0.99) if first else None
        return GoalWindow(requests=self.requests, attained=self.attained, failed=self.failed, ttft_p99_ms=p99)


class TunerPart(Part, Observer):
    """Tunes one strategy of one pool; an `Observer` of the scheduler's for what it turns away."""

    name = "tuning"

    def __init__(self, config: Config, audit: AuditLog) -> None:
        self._audit = audit
        self._tuner: Tuner | None = None
        self._section = config.tuning
        self._pool = ""
        #: What the file says of the parameters that are tuned.
        self._base: dict[str, float] = {}
        #: What we have written into it since.
        self._written: dict[str, float] = {}
        self._count = _Count()
        self._watched_ns = 0
        self._silent = True
        #: The configuration's file; without one there is no history, and nothing is tuned.
        self.file: Path | None = None
        self.overlaid(config)

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Itself, where it is on."""
        return (self,) if self._enabled else ()

    @property
    def on(self) -> bool:
        """Whether anything is tuned."""
        return self._tuner is not None and self.file is not None

    def status(self) -> dict[str, Any]:
        """For `steersman status`."""
        tuner = self._tuner
        if tuner is None or self.file is None:
            return {"on": False}
        trial = tuner.trying
        return {
            "on": True,
            "pool": self._pool,
            "strategy": self._section.strategy,
            "values": tuner.values,
            "trying": None if trial is None else trial.name,
        }

    def overlaid(self, config: Config) -> Config:
        """A configuration as it is to be applied: with what was tuned, where that still holds."""
        section = config.tuning
        self._enabled = section.enabled
        pool = _pool(config)
        if not section.enabled or pool.strategy != section.strategy:
            self._tuner = None
            return config
        base = _values(section, pool)
        known = self._tuner
        if known is None or (section, pool.name) != (self._section, self._pool):
            known = None
        elif base not in (self._base, self._written, known.values):
            log.info("the file has other parameters for %s: tuning begins anew", section.strategy)
            known = None
        if known is None:
            knobs = _knobs(section, base)
            self._tuner = Tuner(knobs, _guard(section)) if knobs else None
            self._section, self._pool, self._base = section, pool.name, base
            self._count = _Count()
            return config
        return _with(config, pool.name, section.strategy, known.values)

    def refused(self, routing: RoutingRequest, reject: Reject, *, now_ns: int) -> None:  # noqa: ARG002 (an observer's)
        """Whoever found no room missed its targets; a quota's refusal is no fault of the strategy."""
        if routing.pool == self._pool and wanted_room(reject.code):
            self._count.requests += 1

    def left(
        self,
        reservation_id: str,  # noqa: ARG002
        routing: RoutingRequest | None,
        *,
        gave_up: bool,
        now_ns: int,  # noqa: ARG002
    ) -> None:
        """Who gave up on a first token that was overdue missed its targets."""
        if routing is not None and routing.pool == self._pool:
            self._count.requests += gave_up

    def settled(self, event: Settled, *, now_ns: int) -> None:
        """A request has ended; one that came before the window is not of it."""
        count, outcome = self._count, event.outcome
        if outcome.reservation.pool != self._pool or now_ns - outcome.duration_ns < count.begun_ns:
            return
        sample = event.sample
        if sample.attained is None:
            return
        count.requests += 1
        count.failed += sample.error is True
        count.attained += sample.attained
        if sample.ttft_ms is not None and len(count.first_ms) < FIRST_TOKENS_MAX:
            count.first_ms.append(sample.ttft_ms)

    def move(self, *, now_ns: int) -> Move | None:
        """Let time pass; a move to record and to apply."""
        tuner = self._tuner
        if tuner is None or self.file is None:
            return None
        if not self._count.begun_ns:
            self._begin(now_ns)
            return None
        window_ns = self._section.window_s * 1_000_000_000
        if now_ns - self._count.begun_ns < window_ns:
            if now_ns - self._watched_ns < window_ns // WATCHES:
                return None
            self._watched_ns = now_ns
            move = tuner.watch(self._count.window())
            if move is not None:
                self._begin(now_ns)
            return move
        move = tuner.window(self._count.window(), now_ns=now_ns)
        self._begin(now_ns)
        return move

    async def tune(self, config: Config, *, now_ns: int) -> Config | None:
        """Let time pass; the configuration to apply, None where nothing changes."""
        move = self.move(now_ns=now_ns)
        if move is None:
            return None
        return self.done(move, config, recorded=await asyncio.to_thread(self.record, move))

    def record(self, move: Move) -> bool:
        """Write what is kept into the file, where that is wanted; in a thread too. False when that failed.

        Trials are no versions of the file: the audit log has them.
        """
        assert self.file is not None
        if move.kind != "keep" or not self._section.write:
            return True
        why = f"{move.name} {move.before:.6g} → {move.after:.6g}: {move.why}"
        command = f"tuning {move.kind}"
        values = self._tuner.values if self._tuner is not None else {}
        pool, strategy = self._pool, self._section.strategy

        def rewrite(text: str, config: Config) -> str:
            at = next(i for i, each in enumerate(config.pools) if each.name == pool)
            path = ("pools", at, "strategy_parameters", strategy)
            changed = {name: value for name, value in values.items() if value != self._base[name]}
            # Where it is back at the file's own there may be nothing to write.
            changed |= {move.name: values[move.name]} if move.name in values else {}
            return edited(text, [Put((*path, name), value) for name, value in changed.items()])

        try:
            self._written = dict(values)
            change(self.file, rewrite, why=why, command=command, who=WHO)
        except (ConfigError, EditError, HistoryError, OSError, StopIteration) as error:
            if self._silent:
                log.warning("what tuning has kept cannot be written into the file: %s", error)
            self._silent = False
            return False
        self._silent = True
        return True

    def done(self, move: Move, config: Config, *, recorded: bool) -> Config | None:
        """After `record`: the configuration to apply, None where nothing changes."""
        tuner = self._tuner
        if tuner is None:
            return None
        self._audit.event(
            "tuning",
            stage=move.kind,
            pool=self._pool,
            strategy=self._section.strategy,
            parameter=move.name,
            before=move.before,
            after=move.after,
            why=move.why,
            recorded=recorded,
        )
        log.info("tuning %s: %s %.6g → %.6g, %s", move.kind, move.name, move.before, move.after, move.why)
        if move.kind == "keep":
            return None
        return _with(config, self._pool, self._section.strategy, tuner.values)

    def _begin(self, now_ns: int) -> None:
        self._count = _Count(begun_ns=now_ns)
        self._watched_ns = now_ns


def _pool(config: Config) -> PoolConfig:
    """The pool that is tuned; `config.checks` has seen to it that it is there."""
    wanted = config.tuning.pool
    return next((pool for pool in config.pools if pool.name == wanted), config.pools[0])


def _values(section: Tuning, pool: PoolConfig) -> dict[str, float]:
    """What a pool has for the parameters that may be tuned; one that stands at 0 has no step."""
    given = pool.strategy_parameters.get(section.strategy, {})
    wanted = section.parameters
    values = {
        axis.name: given.get(axis.name, axis.default)
        for axis in space(section.strategy)
        if not axis.switch and (not wanted or axis.name in wanted)
    }
    return {name: value for name, value in values.items() if not isinstance(value, str) and value > 0}


def _knobs(section: Tuning, base: dict[str, float]) -> list[Knob]:
    axes = {axis.name: axis for axis in space(section.strategy)}
    knobs = []
    for name, value in base.items():
        axis = axes[name]
        low, high = max(axis.low, value / section.drift_max), min(axis.high, value * section.drift_max)
        if axis.whole:
            low, high = ceil(low), floor(high)
        # The file's value stands wherever it is.
        knobs.append(
            Knob(name=name, value=value, low=min(low, value), high=max(high, value), whole=axis.whole)
        )
    return knobs


def _guard(section: Tuning) -> TuningGuard:
    return TuningGuard(
        metric=section.metric,
        requests_min=section.requests_min,
        step_max=section.step_max,
        attainment_drop_max=section.attainment_drop_max,
        error_rise_max=section.error_rise_max,
        every_ns=section.every_s * 1_000_000_000,
    )


def _with(config: Config, pool: str, strategy: str, values: dict[str, float]) -> Config:
    """A configuration with other parameters of a pool's strategy."""

    def changed(each: PoolConfig) -> PoolConfig:
        given = {**each.strategy_parameters.get(strategy, {}), **values}
        return each.model_copy(update={"strategy_parameters": {**each.strategy_parameters, strategy: given}})

    pools = [changed(each) if each.name == pool else each for each in config.pools]
    return config.model_copy(update={"pools": pools})

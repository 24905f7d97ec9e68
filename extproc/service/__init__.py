"""Composition root: builds the service from a configuration, starts it, reloads it, drains it.

Owns the clock, the chance, the signals and the periodic work. Everything it puts together is built
to know nothing of the rest.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import msgspec

from extproc.config.cautions import cautions
from extproc.config.engine_keys import engine_keys
from extproc.config.model import Config
from extproc.config.restart import restart_needed
from extproc.config.secret import service_tokens
from extproc.control.names import event_cluster
from extproc.core.experiment import Experiments
from extproc.core.fleet import Fleet
from extproc.core.outcome import Outcome
from extproc.core.quota import ExactBooks
from extproc.core.scheduler import Scheduler
from extproc.core.tenant import Tenant
from extproc.history.follow import Follow
from extproc.observe.audit import AuditLog
from extproc.observe.record import Recorder
from extproc.observe.stats import Stats
from extproc.observe.tenants import tenants_view
from extproc.service.adjustment import Adjustment
from extproc.service.administration import Administration
from extproc.service.agents import Agents, shared_quotas
from extproc.service.alerts import AlertsPart
from extproc.service.analytics import AnalyticsPart
from extproc.service.build import (
    attempts_of,
    body_bounds,
    directory_of,
    families_of,
    policy_of,
    pool_specs,
    quota_limits,
    scheduler_limits,
)
from extproc.service.credentials import place_of, seal_of, tls_of
from extproc.service.experiments import ExperimentsPart
from extproc.service.explanations import Explanations
from extproc.service.journal import QuotaJournal
from extproc.service.metrics import MetricsPart
from extproc.service.operators import Operators
from extproc.service.parts import Part, ServiceParts
from extproc.service.picker import PickerPart
from extproc.service.probes import ProbesPart
from extproc.service.reload import Reread, read_again, uncollected
from extproc.service.roster import Roster
from extproc.service.tracing import TracingPart
from extproc.service.tuner import TunerPart
from extproc.wire.health import HealthService
from extproc.wire.orders import Command, OrdersServer
from extproc.wire.processor import Processor
from extproc.wire.server import BindError, Server

if TYPE_CHECKING:
    from extproc.state.quota.books import RedisQuota

__all__ = ["App", "directory_of", "pool_specs", "restart_needed"]

log = logging.getLogger(__name__)

#: How often time passes for the fleet: health follows, reservations expire, Envoys are told.
TICK_S = 0.25
#: How often who is held is tried again without an event, and overdue first tokens are counted as come.
PUMP_S = 0.02
#: Mistakes of a refused configuration that the audit log repeats.
PROBLEMS_NOTED = 10


class App:
    """One running service."""

    def __init__(self, config: Config, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.config = config
        self.clock = clock
        #: The file that was refused last, if no Envoy took its endpoints from here then.
        self._refused_unseen: Path | None = None
        instance = os.urandom(6).hex()
        # None where no other service shares them.
        self._shared = shared_quotas(config, instance, clock=clock)
        self.quotas: ExactBooks | RedisQuota = (
            ExactBooks(quota_limits(config)) if self._shared is None else self._shared
        )
        self.scheduler = Scheduler(
            Fleet(pool_specs(config)),
            instance=instance,
            default_model=config.default_model,
            limits=scheduler_limits(config),
            rng=Random(instance),
            zone=config.service.zone,
            policy=policy_of(config),
            quotas=self.quotas,
            # A shadow's chance is its own: it must not move the decisions'.
            experiments=Experiments(rng=Random(f"{instance} shadows")),
        )
        self.scheduler.families = families_of(config)
        self.roster = Roster(config, self.scheduler.fleet)
        self._tokens = service_tokens(config.service)
        self.agents = Agents(
            config,
            self.scheduler,
            self.roster,
            clock=clock,
            # Who shares the token has the token's key.
            seal=None if self._tokens else lambda: self.processor.seal,
        )
        self.stats = Stats()
        self.adjusting = Adjustment(config, self.scheduler, self.stats)
        self.processor = Processor(
            self.scheduler,
            directory_of(config),
            self.stats,
            decisions_concurrent_max=config.limits.decisions_concurrent_max,
            body_bytes_max=config.gateway.body_bytes_max,
            clock=clock,
            attempts=attempts_of(config),
            event_cluster=event_cluster(config),
            body_bounds=body_bounds(config),
            refused_bytes_per_minute=config.limits.refused_bytes_per_minute,
            engine_keys=engine_keys(config),
            extra_routes=frozenset(config.gateway.extra_routes),
            large_bytes_per_second=config.limits.large_bytes_per_second,
            decision_timeout_ms=config.gateway.decision_timeout_ms,
        )
        if not self.processor.event_cluster:
            log.warning(
                "none of gateway.services is an address of service.listen: "
                "Envoy cannot tell this service of first tokens"
            )
        self.audit = self.processor.audit = AuditLog(config.audit)
        self.keeping = QuotaJournal(
            config, self.scheduler, self.adjusting, failed=self.processor.failed, clock=clock
        )
        self.record = Recorder(config.record, instance=instance, clock=clock)
        self.tuned = TunerPart(config, self.scheduler, self.audit)
        self.experimenting = ExperimentsPart(config, self.scheduler, self.audit, clock=clock)
        self.operators = Operators(
            self.scheduler,
            self.processor.recent,
            tenants=self._tenants,
            clock=clock,
            note=self.audit.event,
            audited=lambda: self.audit.settings.file is not None,
        )
        self.explaining = Explanations(self.scheduler, tenants=self._tenants, clock=clock)
        self.measuring = MetricsPart(config, self.scheduler, tenants=self._tenants, clock=clock)
        self.picking = PickerPart(
            config,
            self.processor,
            self.roster,
            settle=self.settle,
            first_token=self.first_token,
            clock=clock,
        )
        self.analysing = AnalyticsPart(
            config, self.scheduler, clock=clock, connected=lambda: self.agents.sharing
        )
        self.alerting = AlertsPart(config, self.scheduler, clock=clock)
        self.measuring.firing = self.alerting.firing
        #: What operators may ask and order, at their socket and at the admin port.
        self.orders: dict[str, Command] = {
            "Drain": self._drain,
            "ClearFaults": self._clear_faults,
            "Tenant": self.operators.tenant,
            "Shadow": self.operators.shadow,
            "Credit": self.operators.credit,
            "Explain": self.explaining.explain,
            "Experiment": self.experimenting.order,
            "Report": self.analysing.order,
            "Alerts": self.alerting.order,
        }
        self.administering = Administration(
            config,
            self.scheduler,
            self.stats,
            tenants=self._tenants,
            brief=self._brief,
            orders=self.orders,
            parts=lambda: self.operating.parts,
            serving=lambda: not self._stop.is_set(),
            file=lambda: self.experimenting.file,
            note=self.audit.event,
            failed=self.processor.failed,
            clock=clock,
        )
        self.operating = ServiceParts(self._parts(), failed=self.processor.failed)
        self._observe()
        self.follow: Follow | None = None
        self.started_ns = clock()
        self.server: Server | None = None
        self.orders_server: OrdersServer | None = None
        self._stop = asyncio.Event()
        self.addresses: list[str] = []
        self.telemetry_addresses: list[str] = []

    async def start(self) -> list[str]:
        """Listen; returns the addresses. Raises wire.server.BindError."""
        for caution in cautions(self.config):
            log.warning("%s", caution)
        place = place_of(self.config)
        self.processor.seal = seal_of(self._tokens, place.key if place is not None else None)
        await self.keeping.start()
        self.server = Server(
            self.processor,
            settle=self.settle,
            message_bytes_max=self.config.gateway.body_bytes_max,
            handlers=[self.roster.publisher.handler()],
            first_token=self.first_token,
            picker=self.picking.picker,
            ready=lambda: self.roster.complete,
            tokens=[token.encode() for token in self._tokens],
            credentials=tls_of(self.config),
        )
        self.addresses = await self.server.start(self.config.service.listen)
        try:
            if place is not None:
                await self._take_orders(place.orders, self.server.health)
            self.telemetry_addresses = await self.agents.start()
        except OSError as error:
            await self._unlisten()
            raise BindError(str(error)) from error
        try:
            await self.operating.start()
        except OSError:
            await self.agents.stop()
            await self._unlisten()
            raise
        if self._shared is not None:
            await self._shared.start()
        self.roster.start()
        return self.addresses

    async def _unlisten(self) -> None:
        assert self.server is not None
        await self.server.drain(0.0)
        if self.orders_server is not None:
            await self.orders_server.stop()

    async def _take_orders(self, socket: Path, health: HealthService) -> None:
        """At the operators' socket. Raises BindError."""
        self.orders_server = OrdersServer(status=self.status_json, commands=self.orders, health=health)
        await self.orders_server.start(socket)

    def _parts(self) -> list[Part]:
        """What shows and watches this service."""
        tracing = TracingPart(self.config, self.scheduler, self.processor, clock=self.clock)
        probing = ProbesPart(self.config, self.scheduler.fleet, clock=self.clock)
        return [
            probing,
            self.measuring,
            self.picking,
            self.analysing,
            self.alerting,
            self.administering,
            tracing,
        ]

    def handle_signals(self, config_file: Path | None = None, *, kept_of: Path | None = None) -> None:
        """SIGTERM and SIGINT end `run`, SIGHUP reloads; before `start`, so that none comes too early.

        `run` also takes the file when it has changed, unless it is a supervisor's copy of `kept_of`: then
        the supervisor says when, and what is written goes into the original.
        """
        self.experimenting.file = self.tuned.file = kept_of or config_file
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self.stop)
        if config_file is not None:
            self.follow = Follow(
                config_file, partial(self.reload_live, config_file), supervised=kept_of is not None
            )
            loop.add_signal_handler(signal.SIGHUP, self.follow.now)

    def stop(self) -> None:
        """Let `run` drain and return, as SIGTERM does."""
        self._stop.set()

    async def run(self, *, config_file: Path | None = None, kept_of: Path | None = None) -> None:
        """Serve until SIGTERM or SIGINT, then drain; SIGHUP or a changed file reloads. After `start`."""
        assert self.server is not None
        self.handle_signals(config_file, kept_of=kept_of)
        tasks = [
            asyncio.create_task(self._tick()),
            asyncio.create_task(self._pump()),
            asyncio.create_task(self._keep_audit()),
            asyncio.create_task(self.keeping.run()),
        ]
        if self.follow is not None:
            tasks.append(asyncio.create_task(self.follow.run()))
        try:
            await self._stop.wait()
            service = self.config.service
            log.info("draining for at most %.1f s", service.drain_s)
            await self.roster.stop()
            # What still runs is settled meanwhile: the books stay open until nothing comes any more.
            await self.server.drain(service.drain_s, quiet_s=service.drain_quiet_s)
            await self.agents.stop()
            await self.operating.stop()
            if self._shared is not None:
                await self._shared.close()
            if self.orders_server is not None:
                await self.orders_server.stop()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.keeping.stop()
            self.record.watch(self.scheduler, now_ns=self.clock(), last=True)
            await asyncio.to_thread(self.audit.flush, last=True)
            await asyncio.to_thread(self.record.flush, last=True)

    def settle(self, outcome: Outcome) -> None:
        """Take one access-log outcome into books and figures."""
        now_ns, outcome = self.clock(), self.scheduler.metered(outcome)
        if self.scheduler.settle(outcome, now_ns=now_ns):
            elsewhere = not outcome.reservation.id.startswith(f"{self.scheduler.instance}-")
            self.stats.ended(outcome, now_ns=now_ns, decided_elsewhere=elsewhere)
            self.processor.recent.ended(outcome, now_ns=now_ns)
            for observer in self.scheduler.observers:
                observer.ended(outcome, now_ns=now_ns, here=not elsewhere)

    def first_token(self, reservation_id: str, refused: bool) -> bool:
        """A stream's first chunk has come, by Envoy's event; whether the request was known."""
        now_ns = self.clock()
        known = self.scheduler.first_token(reservation_id, now_ns=now_ns, refused=refused)
        if known:
            for observer in self.scheduler.observers:
                observer.first_token(reservation_id, refused=refused, now_ns=now_ns)
        return known

    def reload(self, path: Path) -> bool:
        """Read the configuration again; a bad or unappliable one changes nothing. True when applied."""
        return self._take(path, read_again(path, self.config, live=self.roster.live))

    async def reload_live(self, path: Path) -> bool:
        """`reload`, with all that takes long in a thread: decisions go on meanwhile."""
        live = self.roster.live
        with uncollected():
            read = await asyncio.to_thread(read_again, path, self.config, live=live)
        # A service that has just begun knows no Envoy yet that would take a new pool from it.
        self._refused_unseen = path if isinstance(read, list) and not live else None
        return self._take(path, read)

    async def _take_after_all(self) -> None:
        """Read a refused file again once an Envoy takes its endpoints from here: what needed a restart
        before may not any more."""
        path = self._refused_unseen
        if path is not None and self.roster.live:
            await self.reload_live(path)

    def _take(self, path: Path, read: Reread | list[str]) -> bool:
        if isinstance(read, list):
            return self._refuse(read)
        new, directory, families = read.config, read.directory, read.families
        if new.identity.failed_attempts != self.config.identity.failed_attempts:
            self.processor.attempts = attempts_of(new)
        self.processor.body_bounds = body_bounds(new)
        self.processor.refusals.bytes_per_minute = new.limits.refused_bytes_per_minute
        self.processor.extra_routes = frozenset(new.gateway.extra_routes)
        self.processor.body_rate.bytes_per_second = new.limits.large_bytes_per_second
        self.audit.settings = new.audit
        self.record.apply(new.record)
        new = self.tuned.overlaid(new)
        for name, facts in read.events:
            self.audit.event(name, stage="applied", **facts)
        self.audit.event("config_reloaded", file=str(path))
        self.config = new
        self.roster.apply(new)
        self.scheduler.apply(read.policy, now_ns=self.clock())
        self.adjusting.apply(new)
        self.experimenting.apply(new)
        self.scheduler.default_model = new.default_model
        self.scheduler.families = families
        self.scheduler.limits = scheduler_limits(new)
        self.scheduler.ledger.ttl_ns = self.scheduler.limits.reservation_ttl_ns
        self.scheduler.ledger.remembered_max = self.scheduler.limits.settled_remembered_max
        self.quotas.bound(quota_limits(new))
        self.processor.directory = directory
        self.processor.engine_keys = read.engine_keys
        self.processor.decisions_concurrent_max = new.limits.decisions_concurrent_max
        self.stats.forget_endpoints(self.scheduler.fleet)
        self.operating.apply(new)
        self._observe()
        self.scheduler.counts["reload.applied"] += 1
        log.info("configuration reloaded from %s", path)
        return True

    def _observe(self) -> None:
        """The scheduler tells of its decisions whoever the configuration wants told."""
        recorded = (self.record,) if self.record.on else ()
        tuned = (self.tuned,) if self.config.tuning.enabled else ()
        self.scheduler.observers = (*recorded, *tuned, *self.operating.observers)

    def _refuse(self, problems: list[str]) -> bool:
        for problem in problems:
            log.error("reload refused, the last good configuration stays: %s", problem)
        self.scheduler.counts["reload.refused"] += 1
        self.audit.event("config_refused", problems=problems[:PROBLEMS_NOTED], count=len(problems))
        return False

    def _tenants(self) -> Mapping[str, Tenant]:
        directory = self.processor.directory
        if directory.required:
            return directory.tenants
        # A gateway that is trusted names the others.
        named = directory.tenants if self.config.picker.trust_headers else {}
        return {directory.anonymous.name: directory.anonymous, **named}

    def status(self) -> dict[str, object]:
        """Everything `steersman status` shows."""
        now_ns = self.clock()
        return {
            **self._brief(),
            **self.stats.snapshot(self.scheduler.fleet, now_ns=now_ns),
            "use": tenants_view(self.scheduler, self._tenants().values(), now_ns=now_ns),
        }

    def _brief(self) -> dict[str, object]:
        """The status without what grows with tenants and endpoints."""
        now_ns = self.clock()
        return {
            "instance": self.scheduler.instance,
            "uptime_s": round((now_ns - self.started_ns) / 1e9, 1),
            # For who compares clocks (`steersman doctor`).
            "unix_ms": time.time_ns() // 1_000_000,
            "open_exchanges": self.processor.open_exchanges,
            "in_flight": len(self.scheduler.ledger),
            "counts": dict(sorted(self.scheduler.counts.items())),
            "pools": {
                pool.name: {
                    "models": list(pool.models),
                    "strategy": pool.strategy,
                    "bytes_per_token": round(pool.calibration.bytes_per_token, 3),
                    "output_tokens_mean": round(pool.calibration.output_tokens, 1),
                }
                for pool in self.scheduler.fleet.pools.values()
            },
            # Medians of |predicted − observed| / observed over the last requests; None before the first.
            "predictions": {
                "ttft_error_median": self.scheduler.feedback.ttft.median,
                "completion_error_median": self.scheduler.feedback.completion.median,
                "count": self.scheduler.feedback.ttft.count,
            },
            "roster": {
                "counts": dict(sorted(self.roster.counts.items())),
                "ads": self.roster.publisher.counts,
                "versions": self.roster.publisher.versions,
            },
            **self.agents.status(),
            "quotas": {
                "shared": self._shared is not None,
                "connected": self._shared is not None and self._shared.connected,
                "reconciled": self._shared is None or self._shared.reconciled,
                "counts": dict(sorted(self.quotas.counts.items())),
                "journal": self.keeping.status(),
            },
            "held": len(self.scheduler.queue),
            "record": {"on": self.record.on, **self.record.counts},
            "tuning": self.tuned.status(),
            "experiments": self.experimenting.status(),
            **self.operating.status(),
        }

    def status_json(self) -> bytes:
        """`status` as the status RPC sends it."""
        return msgspec.json.encode(self.status())

    async def _keep_audit(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            if self.audit.waiting:
                await asyncio.to_thread(self.audit.flush)
            if self.record.waiting:
                await asyncio.to_thread(self.record.flush)
            if self.experimenting.waiting:
                await asyncio.to_thread(self.experimenting.write)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for what, work in (("expiry", self._expire), ("stepping the fleet", self._step)):
                try:
                    work()
                except Exception as error:  # noqa: BLE001 (without this task nothing would expire again)
                    self.processor.failed(error, what)
            for what, task in (
                ("rendering for Envoy", self.roster.refresh),
                ("tuning", self._tune),
                ("a reload", self._take_after_all),
            ):
                try:
                    await task()
                except Exception as error:  # noqa: BLE001 (without this task nothing would expire again)
                    self.processor.failed(error, what)

    async def _tune(self) -> None:
        move = self.tuned.step(now_ns=self.clock())
        if move is None:
            return
        recorded = await asyncio.to_thread(self.tuned.record, move)
        new = self.tuned.done(move, self.config, recorded=recorded)
        if new is not None:
            self.config = new
            self.roster.apply(new)

    async def _pump(self) -> None:
        while True:
            await asyncio.sleep(PUMP_S)
            try:
                self.scheduler.tick(now_ns=self.clock())
            except Exception as error:  # noqa: BLE001 (without this task late binding would stall)
                self.processor.failed(error, "pumping")

    def _step(self) -> None:
        now_ns = self.clock()
        self.roster.forget(now_ns=now_ns)
        self.scheduler.fleet.step(now_ns=now_ns)
        self.roster.publish()
        self.scheduler.pump_all(now_ns=now_ns)
        self.adjusting.step(now_ns=now_ns)
        self.record.watch(self.scheduler, now_ns=now_ns)
        self.experimenting.step()
        self.operating.step(now_ns=now_ns)

    def _drain(self, body: bytes) -> bytes:
        """`{"address": "ip:port", "draining": true}`; answers `{"found": true}`."""
        order = msgspec.json.decode(body, type=_DrainOrder)
        found = self.scheduler.fleet.drain(order.address, draining=order.draining)
        self.roster.publish()
        return msgspec.json.encode({"found": found})

    def _clear_faults(self, body: bytes) -> bytes:
        """`{"address": "ip:port"}`; answers `{"found": true, "cleared": ["gpu …"]}`."""
        cleared = self.scheduler.fleet.clear_faults(msgspec.json.decode(body, type=_ClearOrder).address)
        return msgspec.json.encode({"found": cleared is not None, "cleared": cleared or []})

    def _expire(self) -> None:
        for reservation in self.scheduler.expire(now_ns=self.clock()):
            self.stats.expired(reservation)
            for observer in self.scheduler.observers:
                observer.expired(reservation, now_ns=self.clock())
            log.warning(
                "reservation %s on %s expired: its end never came", reservation.id, reservation.address
            )


class _DrainOrder(msgspec.Struct):
    address: str
    draining: bool = True


class _ClearOrder(msgspec.Struct):
    address: str

"""One running service: what it is built of, how it begins, takes another configuration, and ends.

Owns the clock, the chance and the signals. Everything it puts together is built to know nothing of the rest.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from extproc.config.cautions import cautions
from extproc.config.model import Config
from extproc.config.secret import service_tokens
from extproc.history.follow import Follow
from extproc.observe.audit import AuditLog
from extproc.observe.record import Recorder
from extproc.observe.stats import Stats
from extproc.observe.what_if import Recent
from extproc.service.adapters import AdaptersPart
from extproc.service.adjustment import Adjustment
from extproc.service.administration import Administration
from extproc.service.advice import AdvicePart
from extproc.service.agents import Agents, SharedQuotasPart
from extproc.service.alerts import AlertsPart
from extproc.service.analytics import AnalyticsPart
from extproc.service.cache import CachePart
from extproc.service.cache_orders import CacheOrders
from extproc.service.credentials import place_of, seal_of, tls_of
from extproc.service.experiments import ExperimentsPart
from extproc.service.explanations import Explanations
from extproc.service.journal import QuotaJournal
from extproc.service.launcher import LauncherPart
from extproc.service.metrics import MetricsPart
from extproc.service.operators import Operators
from extproc.service.parts import ServiceParts
from extproc.service.picker import PickerPart
from extproc.service.probes import ProbesPart
from extproc.service.records import AuditPart, ExpiryLog, RecordPart
from extproc.service.reload import Reread, Unusable, built, read_again, uncollected
from extproc.service.remote import SitesPart
from extproc.service.requests import Requests
from extproc.service.responses import ResponsesPart
from extproc.service.rpc import RpcPart
from extproc.service.scale_view import ScaleView
from extproc.service.scalers import ScalersPart
from extproc.service.scaling import ScalingPart
from extproc.service.schedule import Schedule
from extproc.service.semantic import SemanticPart
from extproc.service.spill import SpillPart
from extproc.service.status import Status
from extproc.service.tokens import TokensPart
from extproc.service.tracing import TracingPart
from extproc.service.tuner import TunerPart
from extproc.wire.server import BindError, Server

log = logging.getLogger(__name__)

#: Mistakes of a refused configuration that the audit log repeats.
PROBLEMS_NOTED = 10


class App:
    """One running service."""

    def __init__(self, config: Config, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.config, self.clock = config, clock
        #: The file that was refused last, if it is well and no Envoy took its endpoints from here then.
        self._refused_unseen: Path | None = None
        self._tokens = service_tokens(config.service)
        self._stop = asyncio.Event()
        self.follow: Follow | None = None
        self.server: Server | None = None
        self.addresses: list[str] = []
        self.requests = Requests(built(config), clock=clock)
        self.scheduler, self.processor = self.requests.scheduler, self.requests.processor
        self.roster, self.settle = self.requests.roster, self.requests.settle
        self.audit = self.processor.audit = AuditLog(config.audit)
        self._add_parts()
        self.schedule = Schedule(self.scheduler, clock=clock, failed=self.processor.failed)
        self.schedule.late = self.measuring.counting.lagged
        self._observe()

    def _add_parts(self) -> None:
        """What keeps, watches and shows the service."""
        config, scheduler, clock, failed = self.config, self.scheduler, self.clock, self.processor.failed
        tenants, shared = self.requests.tenants, self.requests.shared
        self.stats = Stats()
        #: The last requests, for dry runs of quotas.
        self.recent = Recent()
        # Who shares the token has the token's key.
        seal = None if self._tokens else lambda: self.processor.seal
        self.agents = Agents(config, scheduler, self.roster, clock=clock, seal=seal)
        self.adjusting = Adjustment(config, scheduler, self.stats)
        self.keeping = QuotaJournal(config, scheduler, self.adjusting, failed=failed, clock=clock)
        self.record = Recorder(config.record, instance=scheduler.instance, clock=clock)
        self.tuned = TunerPart(config, self.audit)
        self.experimenting = ExperimentsPart(
            config, scheduler.experiments, self.audit, counts=scheduler.counts, clock=clock
        )
        self.measuring = MetricsPart(config, scheduler, tenants=tenants, clock=clock)
        self.picking = PickerPart(
            config,
            self.processor,
            self.roster,
            settle=self.settle,
            first_token=self.requests.first_token,
            clock=clock,
        )
        self.analysing = AnalyticsPart(
            config, scheduler.fleet, scheduler.peers, clock=clock, connected=lambda: self.agents.sharing
        )
        self.alerting = AlertsPart(config, scheduler, clock=clock)
        self.measuring.firing = self.alerting.firing
        self.caching = CachePart(config, self.processor, tenants=tenants, clock=clock)
        cache_orders = CacheOrders(self.caching, self.processor, tenants=tenants, clock=clock)
        self.semantic = SemanticPart(config, self.caching, instance=scheduler.instance, clock=clock)
        self.caching.semantic = self.semantic.status
        self.measuring.caching = lambda: self.caching.seen()._replace(semantic=self.semantic.seen())
        self.counting = TokensPart(config, scheduler.fleet, way=self.requests.upstreams.way)
        self.measuring.tokens = self.counting.seen
        self.adapters = AdaptersPart(
            config, scheduler, clock=clock, way=self.requests.upstreams.way, failed=failed
        )
        self.measuring.adapter_calls = lambda: self.adapters.calls
        self.scaling = ScalingPart(config, scheduler, clock=clock, failed=failed)
        self.agents.refused = lambda: self.scaling.lost
        self.agents.refused_elsewhere = self.scaling.lost_elsewhere
        self.scalers = ScalersPart(config, scheduler, self.scaling, clock=clock)
        self.measuring.scaling, self.alerting.values.scaling = self.scalers.seen, self.scalers.signals
        self.launching = LauncherPart(
            config,
            scheduler,
            self.roster,
            self.scaling,
            clock=clock,
            file=lambda: self.experimenting.file,
            asking=self.requests.upstreams.ask,
        )
        self.advising = AdvicePart(config, scheduler, clock=clock)
        self.measuring.bound = self.alerting.values.bound = self.advising.bound
        scale_view = ScaleView(lambda: self.config, self.scaling, self.advising, clock=clock)
        operators = Operators(
            scheduler,
            self.recent,
            tenants=tenants,
            clock=clock,
            note=self.audit.event,
            audited=lambda: self.audit.settings.file is not None,
        )
        self.view = Status(
            self.requests,
            self.stats,
            self.agents,
            self.keeping,
            parts=lambda: {**self.kept.status(), **self.operating.status()},
            clock=clock,
        )
        self.rpc = RpcPart(
            scheduler,
            self.roster,
            status=self.view.json,
            commands={
                "Tenant": operators.tenant,
                "Shadow": operators.what_if,
                "Credit": operators.credit,
                "Explain": Explanations(
                    scheduler, tenants=tenants, clock=clock, extra=lambda: self.processor.extra_routes
                ).explain,
                "Experiment": self.experimenting.order,
                "Report": self.analysing.order,
                "Alerts": self.alerting.order,
                "Scaling": scale_view.order,
                "Cache": cache_orders.order,
                "PurgeCache": cache_orders.purge,
            },
            health=lambda: self._listening.health,
        )
        self.administering = Administration(
            config,
            scheduler,
            self.stats,
            tenants=tenants,
            brief=self.view.brief,
            orders=self.rpc.commands,
            parts=lambda: self.operating.parts,
            scaling=scale_view,
            cache=self.caching.status,
            serving=lambda: not self._stop.is_set(),
            file=lambda: self.experimenting.file,
            note=self.audit.event,
            failed=failed,
            clock=clock,
        )
        #: What is there before anybody is let in, and outlives them.
        self.kept = ServiceParts(
            [
                AuditPart(self.audit),
                RecordPart(self.record, scheduler, clock=clock),
                self.keeping,
                SpillPart(config, scheduler, clock=clock),
                ResponsesPart(config, self.processor.responses, clock=clock),
            ],
            failed=failed,
        )
        self.operating = ServiceParts(
            [
                self.rpc,
                self.adjusting,
                self.experimenting,
                self.tuned,
                self.requests.upstreams,
                SitesPart(
                    config,
                    scheduler,
                    door=lambda: self.processor.sites,
                    way=self.requests.upstreams.way,
                    clock=clock,
                ),
                ProbesPart(config, scheduler.fleet, clock=clock, asking=self.requests.upstreams.ask),
                self.measuring,
                self.picking,
                self.analysing,
                self.alerting,
                self.scaling,
                self.scalers,
                self.launching,
                self.advising,
                self.caching,
                self.semantic,
                self.counting,
                self.adapters,
                self.administering,
                TracingPart(config, scheduler.peers, self.processor, clock=clock),
                *([SharedQuotasPart(shared)] if shared is not None else []),
                self.agents,
            ],
            failed=failed,
        )

    @property
    def _listening(self) -> Server:
        assert self.server is not None
        return self.server

    @property
    def ads_addresses(self) -> list[str]:
        """Where Envoy is told of endpoints, where that is apart."""
        return self._listening.ads_addresses

    @property
    def telemetry_addresses(self) -> list[str]:
        """Where agents are listened for."""
        return self.agents.addresses

    async def start(self) -> list[str]:
        """Listen; returns the addresses. Raises wire.server.BindError."""
        for caution in cautions(self.config):
            log.warning("%s", caution)
        place = place_of(self.config)
        self.processor.seal = seal_of(self._tokens, place.key if place is not None else None)
        self.rpc.place = place
        await self.kept.start()
        self.server = Server(
            self.processor,
            settle=self.settle,
            message_bytes_max=self.config.gateway.body_bytes_max,
            handlers=[self.roster.publisher.handler()],
            first_token=self.requests.first_token,
            picker=self.picking.picker,
            ready=lambda: self.roster.complete,
            tokens=[token.encode() for token in self._tokens],
            tls=tls_of(self.config),
            transport=self.config.transport,
            ads_listen=self.config.service.ads_listen,
        )
        self.addresses = await self.server.start(self.config.service.listen)
        try:
            await self.operating.start()
        except OSError as error:
            await self.server.drain(0.0)
            raise error if isinstance(error, BindError) else BindError(str(error)) from error
        await self.roster.start()
        return self.addresses

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
        self.handle_signals(config_file, kept_of=kept_of)
        slow = (
            ("rendering for Envoy", self.roster.refresh),
            ("tuning", self._tune),
            ("a reload", self._take_after_all),
        )
        works = [
            self.schedule.steps(("stepping the service", self._step)),
            self.schedule.beside(*slow),
            self.schedule.beside(("writing", self.kept.write), ("writing", self.operating.write)),
            self.keeping.run(),
            *([self.follow.run()] if self.follow is not None else []),
        ]
        tasks = [asyncio.create_task(each) for each in works]
        try:
            await self._stop.wait()
            service = self.config.service
            log.info("draining for at most %.1f s", service.drain_s)
            await self.roster.stop()
            # What still runs is settled meanwhile: the books stay open until nothing comes any more.
            await self._listening.drain(service.drain_s, quiet_s=service.drain_quiet_s)
            await self.operating.stop()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.kept.stop()

    def reload(self, path: Path) -> bool:
        """Read the configuration again; a bad or unappliable one changes nothing. True when applied."""
        return self._take(path, read_again(path, self.config, live=self.roster.live))

    async def reload_live(self, path: Path) -> bool:
        """`reload`, with all that takes long in a thread: decisions go on meanwhile."""
        live = self.roster.live
        with uncollected():
            read = await asyncio.to_thread(read_again, path, self.config, live=live)
        # A service that has just begun knows no Envoy yet that would take a new pool from it.
        unseen = isinstance(read, Unusable) and read.restart and not live
        self._refused_unseen = path if unseen else None
        return self._take(path, read)

    async def _take_after_all(self) -> None:
        """Read a refused file again once an Envoy takes its endpoints from here: what needed a restart
        before may not any more."""
        path = self._refused_unseen
        if path is not None and self.roster.live:
            await self.reload_live(path)

    def _take(self, path: Path, read: Reread | Unusable) -> bool:
        if isinstance(read, Unusable):
            return self._refuse(read.problems)
        self.config = self.tuned.overlaid(read.config)
        self.roster.apply(self.config)
        self.requests.put(read)
        for parts in (self.kept, self.operating):
            parts.apply(self.config)
        self.stats.forget_endpoints(self.scheduler.fleet)
        self._observe()
        for name, facts in read.events:
            self.audit.event(name, stage="applied", **facts)
        self.audit.event("config_reloaded", file=str(path))
        self.scheduler.counts["reload.applied"] += 1
        log.info("configuration reloaded from %s", path)
        return True

    def _refuse(self, problems: list[str]) -> bool:
        for problem in problems:
            log.error("reload refused, the last good configuration stays: %s", problem)
        self.scheduler.counts["reload.refused"] += 1
        self.audit.event("config_refused", problems=problems[:PROBLEMS_NOTED], count=len(problems))
        return False

    def _observe(self) -> None:
        """The scheduler tells of its decisions whoever the configuration wants told."""
        parts = (*self.kept.observers, *self.operating.observers)
        self.processor.questions = self.record.question if self.record.repeats else None
        self.scheduler.events.observers = (
            self.scheduler.dispatcher.decisions,
            self.stats,
            self.recent,
            ExpiryLog(),
            self.processor.responses,
            *parts,
        )

    async def _tune(self) -> None:
        new = await self.tuned.tune(self.config, now_ns=self.clock())
        if new is not None:
            self.config = new
            self.roster.apply(new)

    def _step(self, now_ns: int) -> None:
        self.roster.forget(now_ns=now_ns)
        self.roster.publish()
        for parts in (self.kept, self.operating):
            parts.step(now_ns=now_ns)

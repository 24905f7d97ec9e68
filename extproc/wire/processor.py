"""What all ext_proc streams share: who asks, who is held, what failed.

Owns identification and the held requests' bodies; knows a stream only as one that is held. One
stream's phases are `exchange`'s.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

from extproc.core.attempts import AttemptLimiter, network_of
from extproc.core.bodies import BOUNDS, BodyBounds
from extproc.core.body_rate import BodyRate
from extproc.core.client_places import NOWHERE
from extproc.core.decide import serving
from extproc.core.errors import Error
from extproc.core.outcome import Reject, Routed
from extproc.core.refusals import RefusalBudget
from extproc.core.request import Request
from extproc.core.responses import HeldResponses
from extproc.core.routes import NO_ROUTES, Routes
from extproc.core.scheduler import Scheduler
from extproc.core.tenant import Credentials, Directory, Identity, Tenant
from extproc.observe.audit import AuditLog, offered
from extproc.observe.tracing.request_trace import NO_TRACES, StreamTraces
from extproc.wire.caching import AnswerCache
from extproc.wire.seal import Seal
from extproc.wire.sites import SiteDoor

log = logging.getLogger(__name__)

#: Bytes of refused bodies a minute for each tenant, where nothing is said.
REFUSED_BYTES_PER_MINUTE = 64 * 1024 * 1024
#: No engine asks for a key.
NO_KEYS: Mapping[str, tuple[str, str]] = MappingProxyType({})
#: Bytes of large bodies a second for each tenant, where nothing is said.
LARGE_BYTES_PER_SECOND = 32 * 1024 * 1024
#: The largest form, where nothing is said.
UPLOAD_BYTES_MAX = 25 * 1024 * 1024
#: Envoy's patience, where nothing is said; and how long a large body may wait for its turn, of which the
#: patience must leave as much again.
DECISION_TIMEOUT_MS = 2_000
PACE_WAIT_NS_MAX = 1_000_000_000
#: Nanoseconds between two log lines about the same failing decision path.
FAILURE_LOG_EVERY_NS = 1_000_000_000


class HeldStream(Protocol):
    """A stream whose request is held."""

    @property
    def body_bytes(self) -> int:
        """What it keeps of its body meanwhile."""

    def release(self, decision: Routed | Reject) -> None:
        """It is decided on."""


class Processor:
    """What all streams share."""

    def __init__(
        self,
        scheduler: Scheduler,
        directory: Directory,
        *,
        decisions_concurrent_max: int,
        body_bytes_max: int,
        clock: Callable[[], int],
        attempts: AttemptLimiter | None = None,
        wall_clock: Callable[[], float] = time.time,
        event_cluster: str = "",
        body_bounds: BodyBounds = BOUNDS,
        refused_bytes_per_minute: int = REFUSED_BYTES_PER_MINUTE,
        engine_keys: Mapping[str, tuple[str, str]] = NO_KEYS,
        seal: Seal | None = None,
        extra_routes: Routes = NO_ROUTES,
        large_bytes_per_second: int = LARGE_BYTES_PER_SECOND,
        decision_timeout_ms: int = DECISION_TIMEOUT_MS,
        upload_bytes_max: int = UPLOAD_BYTES_MAX,
        upload_kept_bytes_max: int = 0,
    ) -> None:
        self.scheduler = scheduler
        self.directory = directory
        self.decisions_concurrent_max = decisions_concurrent_max
        self.body_bytes_max = body_bytes_max
        self.body_bounds = body_bounds
        #: The largest form, whose head alone comes here.
        self.upload_bytes_max = upload_bytes_max
        #: And the largest that our own Envoy keeps whole, and so can send again.
        self.upload_kept_bytes_max = upload_kept_bytes_max
        #: How fast large bodies are taken, and how long one may wait: Envoy waits for our answer meanwhile.
        self.body_rate = BodyRate(large_bytes_per_second)
        self.pace_wait_ns = min(PACE_WAIT_NS_MAX, decision_timeout_ms * 1_000_000 // 2)
        #: The routes that are served beside the usual ones.
        self.extra_routes = extra_routes
        #: In which headers the file's routes find their model, and a trusted proxy says where clients are.
        self.model_headers: frozenset[str] = frozenset()
        #: What bodies that are refused may cost, by tenant.
        self.refusals = RefusalBudget(refused_bytes_per_minute)
        #: The engines' own keys by pool, as header and value: for gateways that are not ours. Our own Envoy
        #: puts them in itself.
        self.engine_keys = engine_keys
        #: What stands before each path at a pool's replicas, by pool.
        self.path_prefixes: Mapping[str, str] = {}
        self.clock = clock
        #: Envoy's cluster of this service alone, for first-token events; none when empty.
        self.event_cluster = event_cluster
        #: Unix time: keys are valid by the calendar.
        self.wall_clock = wall_clock
        self.attempts = attempts
        #: What rides with requests is sealed with it; one of this process's own when left out.
        self.seal = seal if seal is not None else Seal()
        #: Who failed to prove who they are is noted here.
        self.audit: AuditLog | None = None
        #: The response cache; None where there is none.
        self.cache: AnswerCache | None = None
        #: Other sites; None where there are none.
        self.sites: SiteDoor | None = None
        #: Where clients are.
        self.places = NOWHERE
        #: For the record: what shows that a request equals another of its tenant; None where nobody asks.
        self.questions: Callable[[Request, bytes, str], str] | None = None
        #: Which replica holds which response.
        self.responses = HeldResponses()
        #: Who notes each request's way, for its spans.
        self.request_traces: StreamTraces = NO_TRACES
        self.open_exchanges = 0
        #: Those of them that have been decided, whose responses pass through here (the picker protocol).
        self.following = 0
        #: Those that wait for the answer of an equal request.
        self.joined = 0
        #: Exchanges whose requests are held, by reservation id.
        self._held: dict[str, HeldStream] = {}
        #: The size of their bodies, as far as they are kept.
        self.bodies_bytes = 0
        scheduler.dispatcher.on_release = self._released
        scheduler.events.failed = self.failed
        self._logged_ns = -FAILURE_LOG_EVERY_NS
        self._forged_ns = -FAILURE_LOG_EVERY_NS

    def took(self, since_ns: int) -> int:
        """A decision was made that was begun at `since_ns`; returns the time."""
        now_ns = self.clock()
        self.scheduler.events.decided(now_ns - since_ns, now_ns=now_ns)
        return now_ns

    @property
    def deciding(self) -> int:
        """Exchanges open, not held and not decided: what the bound on concurrent decisions counts."""
        return self.open_exchanges - len(self._held) - self.following - self.joined

    def _released(self, reservation_id: str, decision: Routed | Reject) -> None:
        """The scheduler has decided on a held request."""
        exchange = self._held.pop(reservation_id, None)
        if exchange is None:
            # Its client left in the same moment.
            if isinstance(decision, Routed):
                self.scheduler.cancel(reservation_id, now_ns=self.clock())
            return
        self.bodies_bytes -= exchange.body_bytes
        exchange.release(decision)

    def hold(self, reservation_id: str, exchange: HeldStream) -> None:
        """An exchange waits for the scheduler."""
        self._held[reservation_id] = exchange
        self.bodies_bytes += exchange.body_bytes

    def gave_up(self, reservation_id: str) -> None:
        """A held request's client has left."""
        exchange = self._held.pop(reservation_id, None)
        if exchange is not None:
            self.bodies_bytes -= exchange.body_bytes
        self.scheduler.leave(reservation_id, now_ns=self.clock())

    def forgo_quota(self, reservation_id: str) -> None:
        """Who left had its quota asked for: a reservation is refunded, an unknown one is nothing."""
        self.scheduler.cancel(reservation_id, now_ns=self.clock())

    def left_flight(self, name: str) -> None:
        """A request that waited for an equal one's answer is given up."""
        self.joined -= 1
        if self.cache is not None:
            self.cache.leave(name)

    def undo(self, reservation_id: str) -> None:
        """A decision was not delivered."""
        self.scheduler.cancel(reservation_id, now_ns=self.clock())

    def identify(self, evidence: Credentials, *, site: str = "", alone: bool = False) -> Identity | Reject:
        """Who asks. Failures of a source that has failed too often are told to wait; a proof is never.

        Many share an address (NAT, balancers): one's wrong keys must keep nobody else out. `site` is another
        site's word, before which nothing else counts; `alone` as in `SiteDoor.identify`.
        """
        directory, attempts, source = self.directory, self.attempts, evidence.source
        # Behind a trusted proxy are many clients; one of them must not lock the others out. Where it says
        # which of them it is, that one is counted.
        sites = self.sites if site and self.sites is not None and self.sites.accepts else None
        guesses = sites is not None or (evidence.guesses and directory.required)
        counted = attempts is not None and source != "" and guesses
        if counted and directory.proxy is not None and directory.proxy.covers(source):
            counted = False
        if sites is not None:
            identity = sites.identify(site, directory, alone=alone)
        else:
            identity = directory.identify(evidence, now_s=self.wall_clock())
        if isinstance(identity, Reject):
            if (
                counted
                and attempts is not None
                and (wait_s := attempts.blocked_s(source, now_ns=self.clock()))
            ):
                self.scheduler.counts["identity.limited"] += 1
                return Error.TOO_MANY_ATTEMPTS.reject(retry_after_s=wait_s)
            self.scheduler.counts["identity.failed"] += 1
            blocked = counted and attempts is not None and attempts.failed(source, now_ns=self.clock())
            if blocked:
                self.scheduler.counts["identity.blocked"] += 1
                log.warning(
                    "audit: %s failed too often to prove who it is and is refused for a while", source
                )
            if self.audit is not None:
                self.audit.identity_failed(
                    source=source,
                    code=identity.code,
                    reason=identity.message,
                    methods=offered(evidence),
                    blocked=blocked,
                )
        return identity

    def refused(self, tenant: str, source: str, body_bytes: int) -> None:
        """A body of a tenant was refused for what was in it."""
        self.refusals.charge(self._sender(tenant, source), body_bytes, now_ns=self.clock())

    def refused_too_much(self, tenant: str, source: str) -> int:
        """Seconds until a tenant's bodies are read again; 0 when they are now."""
        wait_s = self.refusals.spent_s(self._sender(tenant, source), now_ns=self.clock())
        if wait_s:
            self.scheduler.counts["bound.refused_bytes_per_minute"] += 1
        return wait_s

    def paced(self, tenant: str, source: str, body_bytes: int) -> float | Reject:
        """How many seconds a large body is to wait before Envoy reads it; a 429 where that is too long."""
        now_ns = self.clock()
        sender = self._sender(tenant, source)
        wait_ns = self.body_rate.take(sender, body_bytes, most_ns=self.pace_wait_ns, now_ns=now_ns)
        if wait_ns <= self.pace_wait_ns:
            return wait_ns / 1e9
        self.scheduler.counts["bound.large_bytes_per_second"] += 1
        message = "this tenant sends large bodies faster than they are read"
        return Error.OVERLOADED.reject(message, retry_after_s=-(-wait_ns // 1_000_000_000))

    def _sender(self, tenant: str, source: str) -> str:
        # Where nobody is asked who they are all are one tenant: addresses are told apart instead.
        return tenant if self.directory.required else f"{tenant} {network_of(source)}"

    def engine_for(self, model: str | None, tenant: Tenant) -> str:
        """What the replicas run that would serve a model; "" where none does."""
        name = model or tenant.default_model or self.scheduler.settings.default_model
        # Of a model that is not this tenant's nothing is told, the engine's way to refuse included.
        pool = serving(name, tenant, self.scheduler.fleet)
        return pool.engine if pool is not None else ""

    def forged(self) -> None:
        """Count a record or an event of no decision that is known here, and say it now and then."""
        self.scheduler.counts["settled.forged"] += 1
        now_ns = self.clock()
        if now_ns - self._forged_ns >= FAILURE_LOG_EVERY_NS:
            self._forged_ns = now_ns
            log.warning(
                "a record of no decision of ours was not taken: forged, or of a service that shares neither "
                "service.token_file nor Redis with this one"
            )

    def failed(self, error: Exception, what: str) -> None:
        """Count an exception of ours, and log it now and then with its traceback."""
        self.scheduler.counts[f"exception.{what}"] += 1
        now_ns = self.clock()
        if now_ns - self._logged_ns >= FAILURE_LOG_EVERY_NS:
            self._logged_ns = now_ns
            log.error("%s failed; going on without", what, exc_info=error)

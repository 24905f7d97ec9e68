"""What stands on a request's way in one service: the scheduler, the roster of replicas, Envoy's streams.

Owns what they go by, from the first configuration on: it is put in place here and nowhere else.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from random import Random
from typing import TYPE_CHECKING

from extproc.config.engine_keys import key_headers
from extproc.config.model import FailedAttempts
from extproc.config.own_routes import own_routes
from extproc.config.site_checks import places_of
from extproc.control.names import event_cluster
from extproc.core.experiment import Experiments
from extproc.core.fleet import Fleet
from extproc.core.outcome import Outcome
from extproc.core.quota import ExactBooks
from extproc.core.routes import EXTRA_ROUTES, by_path
from extproc.core.scheduler import Scheduler
from extproc.core.tenant import Tenant
from extproc.service.agents import shared_quotas
from extproc.service.build import attempts_of, body_bounds, pool_specs, quota_limits
from extproc.service.reload import Reread
from extproc.service.remote import site_policy
from extproc.service.roster import Roster
from extproc.service.upstreams import Upstreams
from extproc.wire.processor import Processor
from extproc.wire.sites import SiteDoor

if TYPE_CHECKING:
    from extproc.state.quota.books import RedisQuota

log = logging.getLogger(__name__)


class Requests:
    """Decides on requests, and settles them."""

    def __init__(self, read: Reread, *, clock: Callable[[], int]) -> None:
        config, settings = read.config, read.settings
        self._clock = clock
        self._attempts: FailedAttempts | None = None
        instance = os.urandom(6).hex()
        # None where no other service shares them.
        self.shared = shared_quotas(config, instance, clock=clock)
        self.quotas: ExactBooks | RedisQuota = self.shared or ExactBooks(quota_limits(config))
        self.scheduler = Scheduler(
            Fleet(pool_specs(config)),
            instance=instance,
            default_model=settings.default_model,
            limits=settings.limits,
            rng=Random(instance),
            zone=settings.zone,
            policy=settings.policy,
            quotas=self.quotas,
            # A shadow's chance is its own: it must not move the decisions'.
            experiments=Experiments(rng=Random(f"{instance} shadows")),
        )
        self.roster = Roster(config, self.scheduler.fleet, keys=lambda: self.upstreams.keys)
        self.upstreams = Upstreams(
            read,
            pool_of=self.scheduler.fleet.owner,
            asked_for=self.roster.asked_for,
            changed=self._rekey,
        )
        self.processor = Processor(
            self.scheduler,
            read.directory,
            decisions_concurrent_max=config.limits.decisions_concurrent_max,
            body_bytes_max=config.gateway.body_bytes_max,
            upload_bytes_max=config.gateway.upload_bytes_max,
            upload_kept_bytes_max=0 if config.picker.enabled else config.gateway.upload_kept_bytes_max,
            clock=clock,
            event_cluster=event_cluster(config),
            decision_timeout_ms=config.gateway.decision_timeout_ms,
        )
        if not self.processor.event_cluster:
            log.warning(
                "none of gateway.services is an address of service.listen: "
                "Envoy cannot tell this service of first tokens"
            )
        self.put(read)

    async def _rekey(self, keys: dict[str, str]) -> None:
        self.processor.engine_keys = key_headers(self._config, keys)
        await self.roster.rekey()

    def put(self, read: Reread) -> None:
        """Go by a configuration."""
        config, processor = read.config, self.processor
        self.upstreams.put(read)
        self._config = config
        if config.identity.failed_attempts != self._attempts:
            self._attempts = config.identity.failed_attempts
            processor.attempts = attempts_of(config)
        processor.body_bounds = body_bounds(config)
        processor.refusals.bytes_per_minute = config.limits.refused_bytes_per_minute
        own = own_routes(config.routes)
        extra = (row for path in config.gateway.extra_routes for row in EXTRA_ROUTES[path])
        processor.extra_routes = by_path((*extra, *own))
        named = (row.own.model_header for row in own if row.own is not None)
        processor.places = places_of(config)
        processor.model_headers = frozenset(filter(None, (*named, processor.places.header)))
        processor.body_rate.bytes_per_second = config.limits.large_bytes_per_second
        processor.directory = read.directory
        policy = site_policy(config, read.site_keys)
        if policy is None:
            processor.sites = None
        elif processor.sites is None:
            processor.sites = SiteDoor(self.scheduler, policy, wall=processor.wall_clock, clock=self._clock)
        else:
            processor.sites.policy = policy
        processor.engine_keys = key_headers(config, read.engine_keys)
        processor.path_prefixes = {
            pool.name: pool.upstream.path_prefix for pool in config.pools if pool.upstream.path_prefix
        }
        processor.decisions_concurrent_max = config.limits.decisions_concurrent_max
        self.quotas.bound(quota_limits(config))
        self.scheduler.apply(read.settings, now_ns=self._clock())

    def settle(self, outcome: Outcome) -> None:
        """Take one access-log outcome into the books."""
        self.scheduler.settlement.settle(outcome, now_ns=self._clock())

    def first_token(self, reservation_id: str, refused: bool, served_by: str) -> bool:
        """A stream's first chunk has come, by Envoy's event; whether the request was known."""
        return self.scheduler.settlement.first_token(
            reservation_id, now_ns=self._clock(), refused=refused, served_by=served_by
        )

    def tenants(self) -> Mapping[str, Tenant]:
        """Who may ask, by name."""
        directory = self.processor.directory
        if directory.required:
            return directory.tenants
        # A gateway that is trusted names the others.
        named = directory.tenants if self._config.picker.trust_headers else {}
        return {directory.anonymous.name: directory.anonymous, **named}

"""The roster: who is in the fleet, from every source, and that Envoy knows it before a decision names it.

Owns the sources' lifetimes, the agents' registrations and the publishing over ADS.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import msgspec

from extproc.addresses import joined, port_of, split
from extproc.config.check_upstream import is_named
from extproc.config.model import Config, EndpointConfig, PoolConfig
from extproc.control.ads_server import AdsPublisher
from extproc.control.snapshot import EndpointState, SnapshotBuilder
from extproc.core.fleet import Fleet, Member
from extproc.core.reports import ReplicaReport
from extproc.discovery import member as discovered
from extproc.discovery.dns import DnsName, DnsSource
from extproc.discovery.file import FileSource
from extproc.discovery.merge import Membership
from extproc.service.admission import refusal
from extproc.service.build import member_of, pool_specs
from extproc.service.parts import Part

log = logging.getLogger(__name__)

#: What an endpoint may take at once where no source says: TGI's default.
MAX_CONCURRENT = 128
#: The least health above nought that Envoy is told.
HEALTH_TOLD_MIN = 0.01
#: Endpoints that other gateways may name for one pool (picker).
REGISTERED_MAX = 4096
#: Refused registrations, by node and reason, that the log tells of.
REFUSALS_TOLD_MAX = 1_000
#: How long a start waits for the sources before it tells Envoys who is there. Less than a starting Envoy
#: waits for us (resources.FETCH_TIMEOUT_MS).
GRACE_S = 3.0
#: How often a watched file is looked at; it is read when two looks have seen the same.
FILE_POLL_S = 0.5


class Roster(Part):
    """Keeps the fleet's members and Envoy's endpoints one."""

    def __init__(self, config: Config, fleet: Fleet, *, keys: Callable[[], Mapping[str, str]] = dict) -> None:
        """`keys` are the engines' own, by pool."""
        self.fleet = fleet
        self.publisher = AdsPublisher()
        self.counts: Counter[str] = Counter()
        self._config = config
        self._keys = keys
        self._membership = Membership(pool.name for pool in config.pools)
        self._registered: dict[str, dict[str, tuple[discovered.DiscoveredMember, int]]] = {}
        #: The name by which each replica is asked for, where it has one.
        self._asked_for: dict[str, str] = {}
        #: Who registered an address, and what was refused to whom (told once each).
        self._registrar: dict[str, str] = {}
        self._refused: set[tuple[str, str]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._builder: SnapshotBuilder | None = None
        self._rendering: asyncio.Task[None] | None = None
        self._building = asyncio.Lock()
        self._published = -1
        self._outdated = False
        #: Who has not spoken since the start, as (source, pool or node). While there is one and the grace
        #: lasts, no Envoy is told: one that knew our predecessor would lose the members still to come.
        self._awaited = set(_sources(config))
        self._grace: asyncio.TimerHandle | None = None
        self._list_static()

    async def start(self) -> None:
        """Follow the sources; tell Envoys that ask, when clusters are rendered and every source has spoken.

        For those that do not speak nobody waits longer than GRACE_S. Decisions go on meanwhile.
        """
        self._follow()
        self._rendering = asyncio.create_task(self._render())
        self._grace = asyncio.get_running_loop().call_later(GRACE_S, self._end_grace)

    async def stop(self) -> None:
        """Stop following; Envoys keep what they have."""
        self.publisher.close()
        if self._grace is not None:
            self._grace.cancel()
        if self._rendering is not None:
            self._rendering.cancel()
            await asyncio.gather(self._rendering, return_exceptions=True)
        await self._unfollow()

    def spoke(self, source: str, name: str) -> None:
        """A source has told all that it knows of a pool, or a node's agent of its replicas."""
        if (source, name) in self._awaited:
            self._awaited.discard((source, name))
            self.publish()

    def apply(self, config: Config) -> None:
        """A new configuration's pools and lists, at once; `refresh` lets sources and Envoys follow."""
        said = self._membership.said
        self._config = config
        # It renders the old pools' clusters and knows no new ones; until `refresh` Envoys are told nothing.
        self._builder = None
        self._membership = Membership(pool.name for pool in config.pools)
        asking = {pool.name for pool in config.pools if pool.discovery.agents}
        self._registered = {pool: each for pool, each in self._registered.items() if pool in asking}
        for pool in config.pools:
            for source, members in said.get(pool.name, {}).items():
                # A pool that asks no more has no registered replicas any more.
                if source != "static" and (source != "agent" or pool.name in asking):
                    self._membership.update(pool.name, source, members)
            self._membership.update(pool.name, "static", _static(pool))
        merged = self._merged()
        self.fleet.apply(replace(spec, endpoints=tuple(merged[spec.name])) for spec in pool_specs(config))
        self._announce()
        self._outdated = True

    async def refresh(self) -> None:
        """After `apply`: follow the new sources, render the new clusters. Nothing to do otherwise."""
        if self._outdated:
            self._outdated = False
            try:
                await self._unfollow()
                self._follow()
                if self.publisher.wanted.is_set():
                    await self._rebuild()
            except BaseException:
                self._outdated = True  # the next call tries again
                raise

    def heard(self, reports: Iterable[ReplicaReport], *, now_ns: int) -> None:
        """Take an agent's reports; a replica that nobody listed is registered where its pool allows."""
        for report in reports:
            if not report.pool:
                report = msgspec.structs.replace(report, pool=self.fleet.owner(report.address) or "")
            registered = self._registered.get(report.pool, {})
            known = registered.get(report.address)
            if known is not None:
                registered[report.address] = (known[0], now_ns)
            elif self.fleet.owner(report.address) is None:
                self._register(report, now_ns)
            if not self.fleet.heard(report, now_ns=now_ns):
                self.counts["reports.no_member"] += 1

    def told(self, pool: str, source: str, members: tuple[discovered.DiscoveredMember, ...]) -> None:
        """All members of a pool that a source knows of."""
        self._on_members(pool, source, members)

    def forget(self, *, now_ns: int) -> None:
        """Let go of registered replicas that no agent has spoken of for `telemetry.forget_s`."""
        telemetry = self._config.telemetry
        if telemetry is None:
            return
        for pool, registered in self._registered.items():
            silent = [
                address
                for address, (_, heard_ns) in registered.items()
                if now_ns - heard_ns > telemetry.forget_s * 1_000_000_000
            ]
            for address in silent:
                del registered[address]
                self._registrar.pop(address, None)
                log.info("pool %s: %s is forgotten: no agent spoke of it", pool, address)
            if silent:
                self._list_registered(pool)

    def publish(self) -> None:
        """Tell Envoys what changed, and let decisions name what every Envoy has accepted."""
        if self._builder is not None and not self._awaited and self._published != self.fleet.version:
            self._published = self.fleet.version
            self.publisher.publish(
                self._builder.build(
                    {
                        name: [
                            EndpointState(
                                address=endpoint.address,
                                zone=endpoint.zone,
                                region=endpoint.region,
                                # Envoy takes 0 for dead; what is merely faint is not.
                                health=endpoint.health.value
                                and max(HEALTH_TOLD_MIN, round(endpoint.health.value, 2)),
                                draining=endpoint.draining,
                                host=self.asked_for(endpoint.address),
                            )
                            for endpoint in pool.endpoints
                        ]
                        for name, pool in self.fleet.pools.items()
                    }
                )
            )
        self._announce()

    def asked_for(self, address: str) -> str:
        """The name by which a replica is asked for (SNI, Host); empty for none."""
        return self._asked_for.get(address, "")

    @property
    def complete(self) -> bool:
        """Whether every source has told of its members, or had its time to."""
        return not self._awaited

    @property
    def live(self) -> bool:
        """Whether an Envoy takes its endpoints from us."""
        return self.publisher.counts["streams"] > 0

    def _register(self, report: ReplicaReport, now_ns: int) -> None:
        pool = next((pool for pool in self._config.pools if pool.name == report.pool), None)
        if pool is None or not pool.discovery.agents:
            self.counts["registrations.refused"] += 1
            return
        telemetry = self._config.telemetry
        if telemetry is not None and (why := refusal(self._config, report.node, report.address)):
            self._refuse(report, why)
            return
        registered = self._registered.setdefault(report.pool, {})
        of_node = sum(
            node == report.node for each in self._registered.values() for node in self._nodes_of(each)
        )
        if telemetry is not None and (
            len(registered) >= telemetry.registrations_per_pool_max
            or of_node >= telemetry.registrations_per_node_max
        ):
            self._refuse(report, "too_many")
            return
        member = discovered.DiscoveredMember(
            report.address, zone=report.zone, region=report.region, max_concurrent=report.max_concurrent
        )
        registered[report.address] = (member, now_ns)
        self._registrar[report.address] = report.node
        self.counts["registrations"] += 1
        log.info(
            "pool %s: %s registered by node %s; it is looked at before it gets any traffic",
            report.pool,
            report.address,
            report.node,
        )
        self._list_registered(report.pool)
        self.fleet.newcomer(report.address, now_ns=now_ns)

    def _nodes_of(self, registered: Iterable[str]) -> Iterator[str]:
        return (self._registrar.get(address, "") for address in registered)

    def _refuse(self, report: ReplicaReport, why: str) -> None:
        self.counts[f"registrations.{why}"] += 1
        told = (report.node, why)
        if told not in self._refused and len(self._refused) < REFUSALS_TOLD_MAX:
            self._refused.add(told)
            log.warning(
                "pool %s: node %s may not register %s: %s", report.pool, report.node, report.address, why
            )

    def _list_registered(self, pool: str) -> None:
        self._on_members(pool, "agent", tuple(member for member, _ in self._registered[pool].values()))

    def _list_static(self) -> None:
        for pool in self._config.pools:
            self._membership.update(pool.name, "static", _static(pool))
        self._settle()

    def _on_members(self, pool: str, source: str, members: tuple[discovered.DiscoveredMember, ...]) -> None:
        before = self._membership.conflicts
        if self._membership.update(pool, source, members):
            self._settle()
        self.spoke(source, pool)
        for conflict in set(self._membership.conflicts) - set(before):
            log.warning(
                "pool %s: %s says %s is its own, but it is pool %s's; it stays there",
                conflict.pool,
                conflict.source,
                conflict.address,
                conflict.owner,
            )

    def _merged(self) -> dict[str, list[Member]]:
        merged: dict[str, list[Member]] = {}
        asked: dict[str, str] = {}
        pools = {pool.name: pool for pool in self._config.pools}
        for name, members in self._membership.members.items():
            pool = pools[name]
            known = {endpoint.address: endpoint for endpoint in pool.endpoints}
            merged[name] = [
                _member(pool, known.get(_listed(each), known.get(each.address)), each) for each in members
            ]
            asked |= {each.address: host for each in members if (host := pool.upstream.asked_for(each.host))}
        self._asked_for = asked
        return merged

    def _settle(self) -> None:
        self.fleet.set_members(self._merged())
        self._announce()
        self.publish()

    def _announce(self) -> None:
        """Let decisions name what every Envoy has accepted, and nothing before."""
        acked = self.publisher.acked_addresses()
        for endpoint in self.fleet.endpoints:
            # What drains is not in Envoy's list, and no decision names it anyway.
            known = acked is None or endpoint.draining or (endpoint.pool, endpoint.address) in acked
            if known != endpoint.announced:
                endpoint.announced = known
                endpoint.refresh()

    def _follow(self) -> None:
        for pool in self._config.pools:
            found = pool.discovery
            if names := _names(pool):
                self._tasks.append(asyncio.create_task(DnsSource(pool.name, names, self._on_members).run()))
            if found.file:
                self._tasks.append(
                    asyncio.create_task(
                        FileSource(pool.name, found.file, self._on_members, poll_s=FILE_POLL_S).run()
                    )
                )

    async def _unfollow(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def _end_grace(self) -> None:
        if self._awaited:
            silent = ", ".join(f"{source} {name}" for source, name in sorted(self._awaited)[:8])
            log.warning("telling Envoys without %d sources that are silent: %s", len(self._awaited), silent)
            self._awaited.clear()
            self.publish()

    async def _render(self) -> None:
        """Once an Envoy asks by ADS; one whose pools stand in its own file never does."""
        await self.publisher.wanted.wait()
        await self._rebuild()

    async def rekey(self) -> None:
        """An engine's key is another one: tell Envoys."""
        if self.publisher.wanted.is_set():
            await self._rebuild()

    async def _rebuild(self) -> None:
        # In a thread: envoy-data-plane takes long to import, and decisions go on meanwhile. One at a time: of
        # two threads that import it, one may see classes that the other has not finished.
        async with self._building:
            config = self._config
            builder = await asyncio.to_thread(SnapshotBuilder, config, keys=self._keys())
        if config is not self._config:
            return  # `refresh` renders the newer one
        self._builder = builder
        self._published = -1
        self.publish()


def _sources(config: Config) -> Iterator[tuple[str, str]]:
    """Every source that is to be heard of: names and files by their pool, listed nodes by their name."""
    for pool in config.pools:
        if _names(pool):
            yield "dns", pool.name
        if pool.discovery.file:
            yield "file", pool.name
        if pool.scaling is not None and pool.scaling.launcher is not None:
            yield "launcher", pool.name
    if config.telemetry is not None and any(pool.discovery.agents for pool in config.pools):
        for node in config.telemetry.nodes:
            yield "node", node.name


def _member(pool: PoolConfig, known: EndpointConfig | None, said: discovered.DiscoveredMember) -> Member:
    """One endpoint: place and permits as its sources say, what it runs on as the configuration says."""
    listed = member_of(pool, known or EndpointConfig(address=said.address))
    limit = said.max_concurrent or MAX_CONCURRENT
    return listed._replace(address=said.address, zone=said.zone, max_concurrent=limit, region=said.region)


def _static(pool: PoolConfig) -> list[discovered.DiscoveredMember]:
    return [
        discovered.DiscoveredMember(e.address, zone=e.zone, region=e.region, max_concurrent=e.max_concurrent)
        for e in pool.endpoints
        if not is_named(e.address)
    ]


def _names(pool: PoolConfig) -> list[DnsName]:
    """What is looked up for a pool: its endpoints that are host names, and those of its discovery."""
    listed = [
        DnsName(*split(e.address), zone=e.zone, region=e.region, max_concurrent=e.max_concurrent)
        for e in pool.endpoints
        if is_named(e.address)
    ]
    found = [DnsName(each.name, each.port, each.interval_s, each.gone_after_s) for each in pool.discovery.dns]
    return [*listed, *found]


def _listed(member: discovered.DiscoveredMember) -> str:
    """The `host:port` by which a member would be listed."""
    return joined(member.host, port_of(member.address)) if member.host else member.address

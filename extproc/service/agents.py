"""The agents' side of the service: telemetry over gRPC, shared between services through Redis.

Owns how reports reach the roster, and how peers' work in flight reaches the endpoints.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from extproc import extras
from extproc.config.load import ConfigError, Problem
from extproc.config.model import Config, Telemetry
from extproc.core.peers import owner_of
from extproc.core.reports import ReplicaReport
from extproc.core.scheduler import Scheduler
from extproc.service.build import quota_limits
from extproc.service.parts import Part
from extproc.service.roster import Roster
from extproc.state.share import PeerLoads
from extproc.telemetry.ingest import Ingest, PushingNode
from extproc.telemetry.server import TelemetryServer, Tls
from extproc.wire.seal import Seal

if TYPE_CHECKING:
    from extproc.state.quota.books import RedisQuota
    from extproc.state.redis_share import RedisShare


class Agents(Part):
    """Telemetry and sharing of one service; both are optional."""

    def __init__(
        self,
        config: Config,
        scheduler: Scheduler,
        roster: Roster,
        *,
        clock: Callable[[], int],
        seal: Callable[[], Seal] | None = None,
    ) -> None:
        """`seal`: the one whose key services agree on through Redis; None where they do otherwise."""
        self._scheduler = scheduler
        self._roster = roster
        self._clock = clock
        self._peered: set[tuple[str, str]] = set()
        #: What was refused here since the service began, by pool, for the peers; and who hears of theirs.
        self.refused: Callable[[], Mapping[str, int]] = dict
        self.refused_elsewhere: Callable[[Mapping[str, int]], None] = lambda _: None
        self.server: TelemetryServer | None = None
        self.ingest: Ingest | None = None
        self.share: RedisShare | None = None
        self._listen: list[str] = []
        #: Where it listens for agents.
        self.addresses: list[str] = []
        if config.telemetry is not None:
            self._listen = config.telemetry.listen
            self.ingest = self._ingest(config.telemetry)
            self.server = _server(self.ingest, config.telemetry, clock)
        if config.sharing is not None:
            from extproc.state.redis_share import RedisShare
            from extproc.state.shared_key import SharedKey

            self.share = RedisShare(
                config.sharing.redis,
                service_id=scheduler.instance,
                prefix=config.sharing.prefix,
                interval_ms=config.sharing.interval_ms,
                loads=self._loads,
                needs=lambda: self._scheduler.peers.needs(
                    self._scheduler.dispatcher.queue, now_ns=self._clock()
                ),
                refused=self._refused,
                on_peers=self._on_peers,
                on_report=self._on_relayed,
                clock=clock,
                shared_key=SharedKey(
                    config.sharing.prefix,
                    own=lambda: seal().key,
                    learn=lambda key: seal().learn(key),
                )
                if seal is not None
                else None,
            )

    @property
    def sharing(self) -> bool:
        """Whether the peers' work is known at the moment."""
        return self.share is not None and self.share.connected

    async def start(self) -> None:
        """Listen for agents and begin to share. OSError when the address is taken."""
        self.addresses = await self.server.start(self._listen) if self.server is not None else []
        if self.share is not None:
            await self.share.start()

    async def stop(self) -> None:
        """Say good-bye to peers and agents."""
        if self.share is not None:
            await self.share.close()
        if self.server is not None:
            await self.server.stop()

    def figures(self) -> dict[str, object]:
        """Figures of both."""
        return {
            "telemetry": {
                "streams": self.server.streams if self.server is not None else 0,
                "counts": dict(sorted(self.ingest.counts.items())) if self.ingest is not None else {},
            },
            "sharing": {
                "connected": self.share.connected if self.share is not None else False,
                "deciders": self.share.peers.deciders if self.share is not None else 1,
                "counts": dict(sorted(self.share.counts.items())) if self.share is not None else {},
            },
        }

    def _ingest(self, telemetry: Telemetry) -> Ingest:
        nodes = [
            PushingNode(name=node.name, networks=tuple(ipaddress.ip_network(each) for each in node.networks))
            for node in telemetry.nodes
        ]
        return Ingest(
            nodes,
            anyone=telemetry.auth == "none",
            on_reports=self._on_reports,
            on_leaving=self._on_leaving,
            on_taken=self._on_taken,
        )

    def _on_reports(self, node: str, reports: list[ReplicaReport], now_ns: int) -> None:
        self._roster.heard(reports, now_ns=now_ns)
        self._roster.spoke("node", node)

    def _on_leaving(self, node: str, _: int) -> None:
        for endpoint in self._scheduler.fleet.endpoints:
            if endpoint.report is not None and endpoint.report.node == node:
                self._scheduler.fleet.silenced(endpoint.address)

    def _on_taken(self, node: str, data: bytes) -> None:
        if self.share is not None:
            self.share.publish_report(node, data)

    def _on_relayed(self, node: str, data: bytes) -> None:
        """A report that a peer took: authenticated there, checked again here."""
        if self.ingest is not None:
            now_ns, now_unix_ms = self._clock(), int(time.time() * 1000)
            self.ingest.take(data, node, now_ns=now_ns, now_unix_ms=now_unix_ms, relayed=True)

    def _loads(self) -> Mapping[tuple[str, str], tuple[int, int, int]]:
        return {
            (endpoint.pool, endpoint.address): (endpoint.requests, endpoint.permits, endpoint.tokens)
            for endpoint in self._scheduler.fleet.endpoints
            if endpoint.requests
        }

    def _refused(self) -> Mapping[str, int]:
        return self.refused()

    def _on_peers(self, peers: PeerLoads) -> None:
        # What was reckoned between two messages is said now, also where it came to nothing.
        reckoned = self._scheduler.peers.hear(map(owner_of, peers.names), peers.needs)
        now_loaded = set(peers.sums)
        for key in self._peered | now_loaded | reckoned:
            endpoint = self._scheduler.fleet.endpoint(*key)
            if endpoint is not None:
                load = peers.load(*key)
                endpoint.peer_requests, endpoint.peer_permits, endpoint.peer_tokens = load
        self._peered = now_loaded
        if refused := peers.refused():
            self.refused_elsewhere(refused)


def shared_quotas(config: Config, instance: str, *, clock: Callable[[], int]) -> RedisQuota | None:
    """The quotas that several services hold together; None without a `sharing` section.

    Raises ConfigError where the extra is missing that everything of this section needs.
    """
    if config.sharing is None:
        return None
    if extras.missing("redis"):
        raise ConfigError([Problem("", None, "sharing", extras.needed("redis", by="it"))])
    from extproc.state.quota.books import RedisQuota

    return RedisQuota(
        config.sharing.redis,
        service_id=instance,
        prefix=config.sharing.prefix,
        services=len(config.service_addresses),
        limits=quota_limits(config),
        clock=clock,
    )


class SharedQuotasPart(Part):
    """Asks Redis while the service runs."""

    def __init__(self, quotas: RedisQuota) -> None:
        self._quotas = quotas

    async def start(self) -> None:
        """Connect."""
        await self._quotas.start()

    async def stop(self) -> None:
        """Give back what is leased, and part."""
        await self._quotas.close()


def _server(ingest: Ingest, telemetry: Telemetry, clock: Callable[[], int]) -> TelemetryServer:
    tls = telemetry.tls
    return TelemetryServer(
        ingest,
        tokens={node.token_sha256: node.name for node in telemetry.nodes if node.token_sha256},
        tls=None
        if tls is None
        else Tls(certificate=Path(tls.certificate), key=Path(tls.key), client_ca=Path(tls.client_ca)),
        clock=clock,
    )

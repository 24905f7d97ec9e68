"""Starts, kills and stops replicas: one listening socket each, all on the calling event loop.

A port is not bound until its replica is ready, as with TGI: a loading replica refuses connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from aiohttp import web

from extproc.addresses import joined
from extproc.sim.server import ReplicaServer
from extproc.sim.spec import ReplicaSpec

__all__ = ["ReplicaSpec", "RunningReplicas", "start_replicas"]


class RunningReplicas:
    """Replicas that listen. `await stop()` closes them; also an async context manager."""

    def __init__(self) -> None:
        self._live: dict[str, tuple[ReplicaServer, web.AppRunner]] = {}
        self._ports: dict[str, int] = {}
        self._specs: dict[str, ReplicaSpec] = {}

    @property
    def ports(self) -> list[int]:
        """The ports, in the order of the specs; a killed replica keeps its own."""
        return list(self._ports.values())

    @property
    def addresses(self) -> list[str]:
        """`host:port` of each, in the order of the specs."""
        return [joined(spec.host, self._ports[name]) for name, spec in self._specs.items()]

    @property
    def servers(self) -> list[ReplicaServer]:
        """The replicas that are up, for tests that look inside."""
        return [server for server, _ in self._live.values()]

    async def kill(self, name: str) -> None:
        """Cut a replica's connections and refuse new ones, as a crash does; `KeyError` if not up."""
        server, runner = self._live.pop(name)
        server.engine.close()
        await runner.cleanup()

    async def revive(self, name: str) -> None:
        """Start a killed replica afresh (empty cache) on the port it had; `ValueError` if it is up."""
        await self.start(replace(self._specs[name], port=self._ports[name]))

    async def stop(self) -> None:
        """Stop listening and cut what is in flight. Safe to call twice."""
        await asyncio.gather(*(self.kill(name) for name in list(self._live)))

    async def start(self, spec: ReplicaSpec) -> None:
        """Start one more; `ValueError` where its name is up, `OSError` where its port is taken."""
        if spec.name in self._live:
            raise ValueError(f"replica {spec.name!r} is up; replicas need names of their own")
        server = ReplicaServer(spec)
        runner = web.AppRunner(
            server.app(),
            access_log=None,
            handler_cancellation=True,  # a client that leaves ends its handler, and so frees its work
            shutdown_timeout=0.01,  # seconds; 0 would mean for ever
            keepalive_timeout=3600.0,  # gateways pool connections; hyper has no idle limit either
        )
        self._live[spec.name] = (server, runner)
        try:
            await runner.setup()
            await web.TCPSite(runner, spec.host, spec.port).start()
        except BaseException:
            await self.kill(spec.name)
            raise
        server.port = runner.addresses[0][1]
        self._ports[spec.name] = server.port
        self._specs.setdefault(spec.name, spec)

    async def __aenter__(self) -> RunningReplicas:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()


async def start_replicas(specs: Sequence[ReplicaSpec]) -> RunningReplicas:
    """Start a replica per spec.

    `ValueError` where two share a name, `OSError` where a port is taken; then none is left running.
    """
    running = RunningReplicas()
    try:
        for spec in specs:
            await running.start(spec)
    except BaseException:
        await running.stop()
        raise
    return running

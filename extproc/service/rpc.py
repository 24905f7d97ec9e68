"""What operators may ask and order, at their socket and at the admin port: one table of commands.

Owns the socket, and the commands about replicas; the others are their parts'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from extproc.core.scheduler import Scheduler
from extproc.service.credentials import RunFolder
from extproc.service.parts import Part
from extproc.service.roster import Roster
from extproc.wire.health import HealthService
from extproc.wire.orders import Command, OrdersServer


class RpcPart(Part):
    """The operators' socket, where `place` says; `health` is the service's own, known before it starts."""

    def __init__(
        self,
        scheduler: Scheduler,
        roster: Roster,
        *,
        status: Callable[[], bytes],
        commands: Mapping[str, Command],
        health: Callable[[], HealthService],
    ) -> None:
        self._scheduler, self._roster = scheduler, roster
        self._status, self._health = status, health
        self.commands: dict[str, Command] = {
            "Drain": self._drain,
            "ClearFaults": self._clear_faults,
            **commands,
        }
        self.place: RunFolder | None = None
        self.server: OrdersServer | None = None

    async def start(self) -> None:
        """Listen, where the service has a place on the disk. Raises BindError."""
        if self.place is not None:
            server = OrdersServer(status=self._status, commands=self.commands, health=self._health())
            await server.start(self.place.orders)
            self.server = server

    async def stop(self) -> None:
        """Answer nobody any more."""
        if self.server is not None:
            await self.server.stop()

    def _drain(self, body: bytes) -> bytes:
        """`{"address": "ip:port", "draining": true}`; answers `{"found": true}`."""
        order = msgspec.json.decode(body, type=_DrainOrder)
        found = self._scheduler.fleet.drain(order.address, draining=order.draining)
        self._roster.publish()
        return msgspec.json.encode({"found": found})

    def _clear_faults(self, body: bytes) -> bytes:
        """`{"address": "ip:port"}`; answers `{"found": true, "cleared": ["gpu …"]}`."""
        cleared = self._scheduler.fleet.clear_faults(msgspec.json.decode(body, type=_ClearOrder).address)
        return msgspec.json.encode({"found": cleared is not None, "cleared": cleared or []})


class _DrainOrder(msgspec.Struct):
    address: str
    draining: bool = True


class _ClearOrder(msgspec.Struct):
    address: str

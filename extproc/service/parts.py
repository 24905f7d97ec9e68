"""What a running service is made of beside its requests: parts that are started, stepped and stopped.

Owns the order of the parts and what becomes of their mistakes: one that fails is said and counted, and never
touches a decision. What a part shows is its own module's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from extproc.config.model import Config
from extproc.core.events import Observer


class Part:
    """One part of the service; each method does nothing until it is overridden."""

    #: What its figures are called in the status; "" when it has none.
    name = ""

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Who hears of requests; asked again after each change of the configuration."""
        return ()

    async def start(self) -> None:
        """Begin. Raises wire.server.BindError where an address cannot be listened on."""

    async def stop(self) -> None:
        """End, and send what is still to be sent; takes seconds at the most."""

    def step(self, *, now_ns: int) -> object:
        """A quarter of a second has passed; returns within a millisecond, on the event loop."""

    @property
    def waiting(self) -> bool:
        """Whether something is to be written."""
        return False

    def write(self) -> None:
        """Write it, in a thread: it waits for the disk."""

    def apply(self, config: Config) -> None:
        """A new configuration holds."""

    def status(self) -> object:
        """Its figures, for `steersman status`."""
        return {}


class ServiceParts:
    """All parts as one. `failed` hears of exceptions, with the part's name."""

    def __init__(self, parts: Sequence[Part], *, failed: Callable[[Exception, str], None]) -> None:
        self.parts = tuple(parts)
        self._failed = failed

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Everybody who wants to hear of requests."""
        return tuple(observer for part in self.parts for observer in part.observers)

    async def start(self) -> None:
        """Begin, in order; what had begun is ended when one cannot."""
        begun: list[Part] = []
        try:
            for part in self.parts:
                await part.start()
                begun.append(part)
        except BaseException:
            for part in reversed(begun):
                await self._stop(part)
            raise

    async def stop(self) -> None:
        """End, the last begun first."""
        for part in reversed(self.parts):
            await self._stop(part)

    def step(self, *, now_ns: int) -> None:
        """A quarter of a second has passed."""
        for part in self.parts:
            try:
                part.step(now_ns=now_ns)
            except Exception as error:  # noqa: BLE001 (what shows the service must not stop it)
                self._failed(error, part.name or type(part).__name__)

    def apply(self, config: Config) -> None:
        """A new configuration holds."""
        for part in self.parts:
            try:
                part.apply(config)
            except Exception as error:  # noqa: BLE001 (the rest of the configuration holds already)
                self._failed(error, part.name or type(part).__name__)

    async def write(self) -> None:
        """Write what waits for the disk."""
        for part in self.parts:
            if part.waiting:
                await asyncio.to_thread(part.write)

    def status(self) -> dict[str, object]:
        """Each part's figures under its name."""
        return {part.name: part.status() for part in self.parts if part.name}

    async def _stop(self, part: Part) -> None:
        try:
            await part.stop()
        except Exception as error:  # noqa: BLE001 (the others are to end as well)
            self._failed(error, part.name or type(part).__name__)

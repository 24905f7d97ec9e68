"""ADS over grpc.aio: carries bytes between Envoys and their `AdsStream`s, and says what they know.

Owns the streams and the handler that any grpc.aio server can take. Everything here runs on the
server's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from extproc.control.ads import SHORT, AdsStream, RemoteProtocolError
from extproc.control.snapshot import TYPES, FleetSnapshot

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
METHOD = "StreamAggregatedResources"

#: Envoys connected at once; more are told RESOURCE_EXHAUSTED and try another service.
STREAMS_MAX = 256


@dataclass(eq=False, slots=True)
class _Link:
    """A stream's state, and its responses that are not yet written: never more than one a type."""

    stream: AdsStream
    unwritten: deque[bytes] = field(default_factory=deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, responses: list[bytes]) -> None:
        self.unwritten.extend(responses)
        assert len(self.unwritten) <= len(TYPES)
        if responses:
            self.wake.set()


class AdsPublisher:
    """Tells every connected Envoy the newest snapshot, and knows which of it they have accepted."""

    def __init__(self, *, streams_max: int = STREAMS_MAX) -> None:
        self._streams_max = streams_max
        self._snapshot: FleetSnapshot | None = None
        self._links: set[_Link] = set()
        self._counts: Counter[str] = Counter()
        self._acked: frozenset[tuple[str, str]] | None = None
        self._acked_stands = False
        self._closed = asyncio.Event()
        #: Set once an Envoy has asked: until then nobody need build a snapshot.
        self.wanted = asyncio.Event()

    def publish(self, snapshot: FleetSnapshot) -> None:
        """Make a snapshot the newest; returns at once, Envoys are sent what changed for them."""
        self._snapshot = snapshot
        for link in self._links:
            link.send(link.stream.publish(snapshot))

    @property
    def versions(self) -> dict[str, str]:
        """The newest snapshot's versions, `cds` and `eds`; empty before the first."""
        if self._snapshot is None:
            return {}
        return {SHORT[type_url]: self._snapshot.of(type_url).version for type_url in TYPES}

    @property
    def counts(self) -> dict[str, int]:
        """`streams` open now; since the start: `acks`, `nacks`, `responses`, `connections` and more."""
        return {"acks": 0, "nacks": 0, **self._counts, "streams": len(self._links)}

    def acked_addresses(self) -> frozenset[tuple[str, str]] | None:
        """The (pool, address) pairs that every connected Envoy has accepted.

        An Envoy that has accepted no endpoints yet is not counted: it has just (re)connected, and what
        it routes by was told it by an earlier stream. None when there is no other: nothing is known then,
        and nothing should be ruled out.
        """
        # Decisions ask for this often; the answer stands until an Envoy says something, comes or goes.
        if not self._acked_stands:
            known = [each for link in self._links if (each := link.stream.known) is not None]
            self._acked = frozenset.intersection(*known) if known else None
            self._acked_stands = True
        return self._acked

    def close(self) -> None:
        """End all streams, and every new one: Envoys keep what they have and try another service."""
        self._closed.set()

    def handler(self) -> Any:
        """The generic RPC handler to add to a grpc.aio server."""
        method = grpc.stream_stream_rpc_method_handler(self._serve)
        return grpc.method_handlers_generic_handler(SERVICE, {METHOD: method})

    async def _serve(self, _: AsyncIterator[bytes], context: Any) -> None:
        if self._closed.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
        if len(self._links) >= self._streams_max:
            self._counts["refused_streams"] += 1
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._streams_max} streams are open")
        self.wanted.set()
        link = _Link(AdsStream(self._counts))
        if self._snapshot is not None:
            link.send(link.stream.publish(self._snapshot))
        self._links.add(link)
        self._acked_stands = False
        self._counts["connections"] += 1
        # Whichever ends first ends the stream.
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._read(link, context)),
            asyncio.create_task(self._write(link, context)),
            asyncio.create_task(self._closed.wait()),
        ]
        try:
            done, _pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except RemoteProtocolError as error:
            self._counts["protocol_errors"] += 1
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            self._links.discard(link)
            self._acked_stands = False
            for task in tasks:
                task.cancel()
            for task in tasks:
                # Whatever a stream that is over still had to say.
                with contextlib.suppress(asyncio.CancelledError, grpc.RpcError, RemoteProtocolError):
                    await task

    async def _read(self, link: _Link, context: Any) -> None:
        while (data := await context.read()) is not grpc.aio.EOF:
            self._acked_stands = False
            link.send(link.stream.receive(data))

    async def _write(self, link: _Link, context: Any) -> None:
        while True:
            while link.unwritten:
                # Waits for as long as the Envoy takes nothing; meanwhile newer snapshots replace each other.
                await context.write(link.unwritten.popleft())
            link.wake.clear()
            await link.wake.wait()

"""What listens for connections of HTTP/2, and bounds them all together.

Owns the sockets, the number of connections, the bytes of unfinished messages, and the graceful end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from extproc.wire.bind import listening
from extproc.wire.calls import Begin, Methods
from extproc.wire.gate import TokenCheck
from extproc.wire.http2.bridge import Bridge
from extproc.wire.http2.connection import ConnectionSettings, Http2Connection
from extproc.wire.tls import TlsFiles

#: Connections at once; an Envoy has one a worker thread and cluster.
CONNECTIONS_MAX = 4_096
#: How long after the first GOAWAY, which asks for no further streams, the last one follows.
NOTICE_S = 0.05
TLS_HANDSHAKE_S = 10.0


def _uncounted(_: str) -> None:
    """Nobody counts."""


class Http2Transport:
    """The transport of calls.py over libnghttp2. `handlers` are generic ones of grpc's kind.

    `buffered_bytes_max` says how many bytes of messages that are not whole yet are kept over all connections;
    `count` hears of each bound that was reached, by name.
    """

    def __init__(
        self,
        methods: Methods,
        *,
        message_bytes_max: int,
        tokens: TokenCheck | None,
        tls: TlsFiles | None,
        handlers: Sequence[Any] = (),
        settings: ConnectionSettings | None = None,
        connections_max: int = CONNECTIONS_MAX,
        buffered_bytes_max: Callable[[], int],
        count: Callable[[str], None] = _uncounted,
    ) -> None:
        self.message_bytes_max, self.tokens = message_bytes_max, tokens
        self.settings = ConnectionSettings() if settings is None else settings
        self._methods, self._bridge = methods, Bridge(handlers)
        self._tls = None if tls is None else tls.context()
        self._connections_max, self._buffered_bytes_max = connections_max, buffered_bytes_max
        self.connections: set[Http2Connection] = set()
        self.buffered_bytes = 0
        self._count = count
        self._servers: list[asyncio.Server] = []
        #: The unix sockets that are ours, with what tells them from a successor's.
        self._sockets: list[tuple[Path, int]] = []
        self._emptied: asyncio.Event | None = None

    async def start(self, addresses: Sequence[str]) -> list[str]:
        """Listen; returns the addresses with the real ports. Raises BindError."""
        loop, bound = asyncio.get_running_loop(), []
        try:
            for address in addresses:
                sock = listening(address)
                if address.startswith("unix:"):
                    self._sockets.append(_identity(address))
                    server = await loop.create_unix_server(self._connection, sock=sock)
                    bound.append(address)
                else:
                    context = self._tls
                    server = await loop.create_server(
                        self._connection,
                        sock=sock,
                        ssl=context,
                        ssl_handshake_timeout=TLS_HANDSHAKE_S if context is not None else None,
                    )
                    bound.append(f"{address.rpartition(':')[0]}:{sock.getsockname()[1]}")
                self._servers.append(server)
        except OSError:
            self._unlisten()
            raise
        return bound

    async def stop(self, grace_s: float) -> None:
        """Take no more connections and calls; those that run may end for so long."""
        self._unlisten()
        if self.connections:
            for connection in tuple(self.connections):
                connection.notify()
            # What was on its way meanwhile is served as well.
            await asyncio.sleep(min(NOTICE_S, grace_s))
        for connection in tuple(self.connections):
            connection.go_away()
        await self._all_gone(grace_s)
        for connection in tuple(self.connections):
            connection.end()
        await self._all_gone(grace_s)
        for connection in tuple(self.connections):
            connection.abort()
        await self._all_gone(grace_s)

    # for connections

    def method(self, path: str) -> Begin | None:
        """What is served there: by us, else by the other handlers."""
        return self._methods.get(path) or self._bridge.method(path)

    def buffered(self, more: int) -> bool:
        """So many bytes of unfinished messages more (or less); False where they are too many."""
        self.buffered_bytes += more
        if more <= 0 or self.buffered_bytes <= self._buffered_bytes_max():
            return True
        self._count("bound.http2_buffered_bytes_max")
        return False

    def opened(self, connection: Http2Connection) -> bool:
        """A connection has come; False where there are too many."""
        if len(self.connections) >= self._connections_max:
            self._count("bound.http2_connections_max")
            return False
        self.connections.add(connection)
        return True

    def gone(self, connection: Http2Connection) -> None:
        """It is no more."""
        self.connections.discard(connection)
        if self._emptied is not None and not self.connections:
            self._emptied.set()

    def _connection(self) -> Http2Connection:
        return Http2Connection(self)

    def _unlisten(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()
        for path, inode in self._sockets:
            # A successor may have its own there already.
            with contextlib.suppress(OSError):
                if path.stat().st_ino == inode:
                    path.unlink()
        self._sockets.clear()

    async def _all_gone(self, within_s: float) -> None:
        if self.connections:
            self._emptied = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._emptied.wait()
            self._emptied = None


def _identity(address: str) -> tuple[Path, int]:
    path = Path(address.removeprefix("unix:"))
    return path, path.stat().st_ino

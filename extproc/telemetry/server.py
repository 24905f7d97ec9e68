"""The agents' gRPC server: proves who speaks, carries reports and acknowledgements.

Owns grpc, TLS and tokens. One stream an agent; a hung agent holds nothing but its connection.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from extproc.grpc_peers import PeerBounds
from extproc.telemetry.ingest import Ingest

log = logging.getLogger(__name__)

TELEMETRY = "steersman.telemetry.v1.Telemetry"
#: A report above this is refused by the transport.
REPORT_BYTES_MAX = 512 * 1024
#: A longer token is refused unread.
TOKEN_BYTES_MAX = 4096
#: Streams at once; more are refused by the transport.
STREAMS_MAX = 20_000
#: A stream is read no faster than this: an agent that floods waits in its own window, not in our loop.
SPACING_S = 0.01
#: An agent has one connection.
PEERS = PeerBounds(connections_max=STREAMS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files of a mutual TLS: our certificate and key, and the authority of the agents' certificates."""

    certificate: Path
    key: Path
    client_ca: Path


class TelemetryServer:
    """Serves `Push`; `tokens` are node names by the SHA-256 of their tokens."""

    def __init__(
        self,
        ingest: Ingest,
        *,
        tokens: Mapping[str, str],
        tls: Tls | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        unix_clock: Callable[[], float] = time.time,
        peers: PeerBounds = PEERS,
    ) -> None:
        self.ingest = ingest
        self.tokens = tokens
        self._tls = tls
        self._clock = clock
        self._unix_clock = unix_clock
        self.streams = 0
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", REPORT_BYTES_MAX),
                ("grpc.so_reuseport", 0),
                *peers.options(),
            ],
            maximum_concurrent_rpcs=STREAMS_MAX,
        )
        handler = grpc.stream_stream_rpc_method_handler(self._push)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(TELEMETRY, {"Push": handler}),)
        )

    async def start(self, addresses: Sequence[str]) -> list[str]:
        """Listen; returns the addresses with the real ports. OSError names what cannot be had."""
        bound = []
        for address in addresses:
            try:
                port = self._bind(address)
            except RuntimeError as error:
                raise OSError(
                    f"cannot listen on {address} for telemetry: it is taken or not this machine's; "
                    "free it or change telemetry.listen"
                ) from error
            bound.append(address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}")
        await self._server.start()
        return bound

    def _bind(self, address: str) -> int:
        if self._tls is None:
            port: int = self._server.add_insecure_port(address)
            return port
        credentials = grpc.ssl_server_credentials(
            [(self._tls.key.read_bytes(), self._tls.certificate.read_bytes())],
            root_certificates=self._tls.client_ca.read_bytes(),
            require_client_auth=True,
        )
        secure: int = self._server.add_secure_port(address, credentials)
        return secure

    async def stop(self) -> None:
        """Stop; agents reconnect elsewhere."""
        await self._server.stop(grace=0.2)

    async def _push(self, messages: AsyncIterator[bytes], context: Any) -> None:
        identity = self._identity(context)
        if identity is None and not self.ingest.anyone:
            # At once, and nothing read: what a stranger sends is not worth parsing.
            self.ingest.counts["rejected.unauthenticated"] += 1
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no known token or certificate")
        self.streams += 1
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        try:
            async for data in messages:
                answer = self.ingest.take(
                    data,
                    identity,
                    now_ns=self._clock(),
                    now_unix_ms=int(self._unix_clock() * 1000),
                )
                await context.write(answer)
                if loop.time() < next_s:
                    await asyncio.sleep(next_s - loop.time())
                next_s = loop.time() + SPACING_S
        finally:
            self.streams -= 1

    def _identity(self, context: Any) -> str | None:
        """The node that the connection proves to be: a certificate's SAN, or a token's owner."""
        if self._tls is not None:
            names = context.auth_context().get("x509_subject_alternative_name", [])
            known: list[str] = [name.decode() for name in names if name.decode() in self.ingest.nodes]
            if known:
                return known[0]
        metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        scheme, _, token = str(metadata.get("authorization", "")).partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > TOKEN_BYTES_MAX:
            return None
        owner: str | None = self.tokens.get(hashlib.sha256(token.encode()).hexdigest())
        return owner

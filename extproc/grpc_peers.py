"""What a gRPC server of ours lets its callers keep: connections, and time without a call.

Owns grpc's options for it. grpc itself keeps any number of connections: one that sends nothing or half a
preface for two minutes, one that has sent its settings, or half its headers, for ever.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerBounds:
    """`connections_max` at once: grpc closes further ones unread. Within `handshake_ms` TLS and the preface
    have come. Who has no call for `idle_ms`, or does not answer a ping (every `ping_ms`, within `answer_ms`),
    is let go.
    """

    connections_max: int
    handshake_ms: int = 10_000
    idle_ms: int = 300_000
    ping_ms: int = 30_000
    answer_ms: int = 10_000

    def options(self) -> list[tuple[str, int]]:
        """For grpc.aio.server."""
        return [
            ("grpc.max_allowed_incoming_connections", self.connections_max),
            ("grpc.server_handshake_timeout_ms", self.handshake_ms),
            ("grpc.max_connection_idle_ms", self.idle_ms),
            ("grpc.keepalive_time_ms", self.ping_ms),
            ("grpc.keepalive_timeout_ms", self.answer_ms),
            # Half a call's headers are no call: without this nobody would ask whether its sender is there.
            ("grpc.keepalive_permit_without_calls", 1),
        ]

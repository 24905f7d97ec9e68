"""Pushes reports to one service over a bidirectional gRPC stream, for as long as the agent lives.

Owns the stream: credentials, acknowledgements, spacing, reconnecting. It keeps the newest view alone
(a report stands alone), so a slow or hung service costs freshness, never memory, and never collection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import grpc
import grpc.aio

from extproc._pb import telemetry_pb2 as pb
from steersman_agent.config import AgentConfig
from steersman_agent.figures import NodeView
from steersman_agent.report import encode

log = logging.getLogger(__name__)

METHOD: Final = "/steersman.telemetry.v1.Telemetry/Push"
#: Full jitter: before attempt n, a random pause up to min(cap, first · 2ⁿ). The cap is below the time for
#: which a service that has come back waits for its agents, before Envoys lose what nobody else lists.
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.1, 2.0
#: Reports on their way without an acknowledgement; at the bound the sender waits.
UNACKED_MAX: Final = 4
#: A stream without the acknowledgement of a report for so long is given up.
ACK_TIMEOUT_S: Final = 3.0
#: How long the last report may take.
LEAVE_S: Final = 1.0
#: An acknowledgement is a few bytes.
ACK_BYTES_MAX: Final = 4096
TOKEN_BYTES_MAX: Final = 16 * 1024

#: How a stream ends when the service, the way there or the token's file fails; the last two are gRPC's
#: for a write to a stream that has just ended.
_STREAM_ENDS: Final = (grpc.RpcError, OSError, ValueError, asyncio.InvalidStateError, grpc.aio.UsageError)


class PushBackoff:
    """Exponential with full jitter; `rng` decides."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._attempt = 0

    def pause_s(self) -> float:
        """The pause before the next attempt."""
        ceiling = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(self._attempt, 16))
        self._attempt += 1
        return self._rng.uniform(0.0, ceiling)

    def reset(self) -> None:
        """It works again."""
        self._attempt = 0


class Numbers:
    """The agent's boot id and its sequence, shared by all streams: each sees rising numbers."""

    def __init__(self, boot_id: int) -> None:
        self.boot_id = boot_id
        self._last = 0

    def next(self) -> int:
        """1, 2, 3 …"""
        self._last += 1
        return self._last


@dataclass(slots=True)
class PushStats:
    """Counts since the start, for tests and logs."""

    sent: int = 0
    acked: int = 0
    rejected: int = 0
    streams: int = 0


class Pusher:
    """Pushes to one of `addresses` at a time, the next when one fails. `offer` views, then `run`."""

    def __init__(
        self, addresses: tuple[str, ...], config: AgentConfig, *, numbers: Numbers, rng: Random
    ) -> None:
        self.addresses = addresses
        self.stats = PushStats()
        self._config = config
        self._numbers = numbers
        self._rng = rng
        self._backoff = PushBackoff(rng)
        self._newest: NodeView | None = None
        self._dirty = False
        self._left = asyncio.Event()
        #: Set whenever something happened: a new view, an acknowledgement, leaving.
        self._stirred = asyncio.Event()
        self._told: tuple[str, str] | None = None

    def offer(self, view: NodeView) -> None:
        """Replace what is waiting to be sent."""
        self._newest, self._dirty = view, True
        self._stirred.set()

    def leave(self) -> None:
        """Send `leaving` with the newest view as the last report; `run` then ends."""
        self._left.set()
        self._stirred.set()

    async def run(self) -> None:
        """Until left or cancelled."""
        place = 0
        while not self._left.is_set():
            address = self.addresses[place % len(self.addresses)]
            acked = self.stats.acked
            try:
                await self._stream(address)
            except _STREAM_ENDS as error:
                self._tell(address, _reason(error))
            if self.stats.acked == acked:
                place += 1
            # Leaving ends the pause: nobody waits for a service that is away.
            await self._until(time.monotonic() + self._backoff.pause_s())

    async def _until(self, until_s: float) -> None:
        """Until a moment, or leaving."""
        while not self._left.is_set() and (left_s := until_s - time.monotonic()) > 0:
            await self._stir(left_s)

    async def _stir(self, at_most_s: float | None) -> None:
        """Until something happened, or so long."""
        self._stirred.clear()
        try:
            async with asyncio.timeout(at_most_s):
                await self._stirred.wait()
        except TimeoutError:
            return

    async def _stream(self, address: str) -> None:
        """One stream from its beginning to its end."""
        async with self._channel(address) as channel:
            call = channel.stream_stream(
                METHOD,
                request_serializer=pb.Report.SerializeToString,
                response_deserializer=pb.Ack.FromString,
            )(metadata=self._metadata())
            self.stats.streams += 1
            # Sequence and time of sending of what is not acknowledged, oldest first.
            unacked: deque[tuple[int, float]] = deque(maxlen=UNACKED_MAX + 1)
            self._dirty = self._newest is not None  # a new stream begins with what is known
            acks = asyncio.create_task(self._read_acks(address, call, unacked))
            sends = asyncio.create_task(self._send(call, unacked))
            try:
                done, _ = await asyncio.wait({acks, sends}, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in (acks, sends):
                    task.cancel()
                await asyncio.gather(acks, sends, return_exceptions=True)
                call.cancel()

    async def _send(self, call: Any, unacked: deque[tuple[int, float]]) -> None:
        """Send the newest view whenever there is one, until leaving."""
        leaving = False
        while not leaving:
            await self._until_due(unacked)
            leaving = self._left.is_set()
            if self._newest is None:
                continue
            self._dirty = False
            sequence, sent_s = self._numbers.next(), time.monotonic()
            report = encode(
                self._newest,
                boot_id=self._numbers.boot_id,
                sequence=sequence,
                unix_ms=time.time_ns() // 1_000_000,
                leaving=leaving,
            )
            unacked.append((sequence, sent_s))
            async with asyncio.timeout(LEAVE_S if leaving else ACK_TIMEOUT_S):
                await call.write(report)
                self.stats.sent += 1
                while leaving and unacked:
                    await self._stir(None)
            await self._until(sent_s + self._config.spacing_ms / 1000)
        await call.done_writing()

    async def _until_due(self, unacked: deque[tuple[int, float]]) -> None:
        """Until there is something to send and room for it; `TimeoutError` where no ack comes."""
        while not self._left.is_set():
            overdue_s = unacked[0][1] + ACK_TIMEOUT_S - time.monotonic() if unacked else None
            if overdue_s is not None and overdue_s <= 0:
                raise TimeoutError(f"no acknowledgement for {ACK_TIMEOUT_S:g} s")
            if self._dirty and len(unacked) < UNACKED_MAX:
                return
            await self._stir(overdue_s)

    async def _read_acks(self, address: str, call: Any, unacked: deque[tuple[int, float]]) -> None:
        while True:
            ack = await call.read()
            if ack is grpc.aio.EOF:
                code = await call.code()
                raise OSError(f"{code.name}: {await call.details() or 'the service ended the stream'}")
            while unacked and unacked[0][0] <= ack.sequence:  # it covers what was sent before it, too
                unacked.popleft()
            self.stats.acked += 1
            self._stirred.set()
            self._backoff.reset()
            if ack.rejected:
                self.stats.rejected += 1
                self._tell(address, f"the report was refused: {ack.rejected[:200]}")
            elif self._told is not None:
                self._told = None
                log.info("reporting to %s", address)

    def _tell(self, address: str, what: str) -> None:
        """Each trouble once, until it changes or is over."""
        if self._told != (address, what):
            self._told = (address, what)
            log.warning("%s: %s", address, what)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        token = read_token(self._config)
        return (("authorization", f"Bearer {token}"),) if token is not None else ()

    def _channel(self, address: str) -> Any:
        """A channel of its own for each attempt: gRPC's shared reconnect backoff must not add to ours."""
        options: list[tuple[str, Any]] = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", ACK_BYTES_MAX),
            ("grpc.enable_retries", 0),
            # No proxy from the environment between a node and its service.
            ("grpc.enable_http_proxy", 0),
        ]
        tls = self._config.tls
        if tls is None:
            return grpc.aio.insecure_channel(address, options=options)
        if tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", tls.server_name))
        # Read anew for each attempt: certificates are rotated under us.
        credentials = grpc.ssl_channel_credentials(
            root_certificates=tls.ca.read_bytes(),
            private_key=tls.key.read_bytes() if tls.key is not None else None,
            certificate_chain=tls.cert.read_bytes() if tls.cert is not None else None,
        )
        return grpc.aio.secure_channel(address, credentials, options=options)


def read_token(config: AgentConfig) -> str | None:
    """The bearer token, read anew each time (it may be rotated); `ValueError` where it cannot be one."""
    if config.token_file is not None:
        with config.token_file.open("rb") as file:
            token = file.read(TOKEN_BYTES_MAX).decode("utf-8", "replace").strip()
        source = str(config.token_file)
    elif config.token_env is not None:
        token, source = os.environ.get(config.token_env, "").strip(), config.token_env
    else:
        return None
    if not token or not token.isascii() or not token.isprintable():
        raise ValueError(f"{source} holds no usable token")
    return token


def pushers_for(config: AgentConfig, *, numbers: Numbers, rng: Random) -> list[Pusher]:
    """One for each service (`each`), or one that walks through them (`any`)."""
    groups = [config.services] if config.mode == "any" else [(address,) for address in config.services]
    return [Pusher(group, config, numbers=numbers, rng=rng) for group in groups if group]


def _reason(error: BaseException) -> str:
    """A failure for people, without gRPC's dump."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {(error.details() or '')[:200]}"
    return str(error)[:200] or type(error).__name__

"""Shares loads and reports through Redis: the shell around share.py.

Owns the connections, the tasks and the one log line per transition. Nothing here is on the way of a
request (law: Redis within its budget): callbacks come out of background tasks, and without Redis the peers'
loads age away and this service decides on what it knows alone.

Each session has two connections: one that publishes and one that is subscribed. Everything essential
goes through one channel; beside it each service keeps its last full load under a key of its own with a
TTL, so that a new service need not wait for the others to speak. That store may refuse (full, no
permission, another slot's node) without harm; a server that is read-only may not, since then it is not
the one that the others publish to.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from random import Random
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import MovedError, ReadOnlyError, RedisError, ResponseError

from extproc.core.turns import TurnRow
from extproc.state import messages, redis_client
from extproc.state.messages import MESSAGE_BYTES_MAX, VERSION, Hello, Key, Load, Reports
from extproc.state.outbox import Outbox
from extproc.state.share import PEER_SILENT_NS, PEERS_MAX, OwnLoad, PeerLoads
from extproc.state.shared_key import SharedKey

log = logging.getLogger(__name__)

#: Reports that arrive within this time go together.
REPORT_SPACING_S = 0.02
#: Peers that have fallen silent are looked for this often.
EXPIRE_EVERY_S = 0.25
#: Our own heartbeat comes back each second; without it for this long the subscription is dead.
ECHO_NS_MAX = 3_000_000_000
#: We ask for everything at most this often.
HELLO_EVERY_NS = 1_000_000_000
#: A session that lasted this long was a good one: the next failure begins with the shortest backoff.
GOOD_SESSION_NS = 5_000_000_000
#: The set of ids outlives every key that it names.
INDEX_TTL_MS = 60_000
STORE_TTL_MS = PEER_SILENT_NS // 1_000_000


class SilentError(RedisError):
    """The connections stand but nothing comes through."""


class RedisShare:
    """One service among several; `peers` is what the others carry, `connected` whether Redis is there."""

    def __init__(
        self,
        url: str,
        *,
        service_id: str,
        prefix: str = "steersman",
        interval_ms: int = 100,
        loads: Callable[[], Mapping[Key, Load]],
        needs: Callable[[], Mapping[str, Iterable[TurnRow]]] = dict,
        refused: Callable[[], Mapping[str, int]] = dict,
        on_peers: Callable[[PeerLoads], None],
        on_report: Callable[[str, bytes], None],
        clock: Callable[[], int] = time.monotonic_ns,
        shared_key: SharedKey | None = None,
    ) -> None:
        """Raises ValueError for a URL that names no Redis.

        `loads` is our own ledger's sums now, `needs` who waits and runs where somebody waits,
        `refused` how many found no room since the service began, by pool. `on_peers` is
        called when sums, needs or deciders are different, at most once a turn of the loop; `peers.changed`
        names the endpoints during the call.
        """
        #: A restarted service is another one: its predecessor's load fades by itself.
        self.id = f"{service_id}-{secrets.token_hex(4)}"
        self.counts: Counter[str] = Counter()
        self.peers = PeerLoads(self.id, counts=self.counts)
        self.connected = False
        self._url = url
        self._loads, self._needs, self._refused = loads, needs, refused
        self._on_peers, self._on_report, self._clock = on_peers, on_report, clock
        self._shared_key = shared_key
        self._own = OwnLoad(self.id, interval_ns=interval_ms * 1_000_000)
        self._own_prefix = messages.prefix(self.id)
        self._outbox = Outbox(self.counts)
        # The braces keep all of a prefix in one slot of a cluster.
        self._channel = f"{{{prefix}}}:share:v{VERSION}"
        self._index = f"{{{prefix}}}:services:v{VERSION}"
        self._transitions = redis_client.Transitions(url, self.counts, log)
        self._hello_ns = -HELLO_EVERY_NS
        self._telling = False
        self._closing = False
        self._work = asyncio.Event()
        self._closed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        redis_client.connect(url)

    async def start(self) -> None:
        """Begin in the background; returns at once, with or without Redis."""
        assert not self._tasks, "started twice"
        self._tasks = [
            asyncio.create_task(self._run(), name="redis-share"),
            asyncio.create_task(self._expire(), name="redis-share-expire"),
        ]

    def publish_report(self, node: str, data: bytes) -> None:
        """Relay a report that an agent gave to this service; never waits, and may be dropped.

        Not for reports that came through `on_report`: those have reached everybody.
        """
        if not 0 < len(node) <= messages.NODE_CHARACTERS_MAX or len(data) > messages.REPORT_BYTES_MAX:
            self.counts["reports_dropped"] += 1
            return
        self._outbox.put(node, data, now_ns=self._clock())
        self._work.set()

    async def close(self) -> None:
        """Say goodbye if Redis is there, and end within two seconds if it is not."""
        self._closing = True
        self._work.set()
        self._closed.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2 * redis_client.OPERATION_TIMEOUT_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        self.connected = False

    async def _run(self) -> None:
        """One session after the other."""
        backoff = redis_client.Backoff(Random(secrets.randbits(64)))
        while not self._closing:
            begun_ns = self._clock()
            try:
                await self._session()
            except Exception as error:  # noqa: BLE001 - whatever ends a session must not end sharing
                self._lost(redis_client.reason(error))
            if self._clock() - begun_ns > GOOD_SESSION_NS:
                backoff.reset()
            await self._pause(backoff.next_s())

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()

    async def _session(self) -> None:
        """Subscribe, learn, then publish and receive until something breaks or we close."""
        whole = redis_client.connect(self._url)
        client, pubsub = whole, None
        try:
            async with asyncio.timeout(2 * redis_client.OPERATION_TIMEOUT_S):
                # All of ours is in one slot, so one node of a cluster is enough for a session.
                client = await redis_client.at(whole, self._channel)
                pubsub = client.pubsub()
                await pubsub.subscribe(self._channel)
                if await pubsub.get_message(timeout=redis_client.OPERATION_TIMEOUT_S) is None:
                    raise SilentError("no answer to SUBSCRIBE")
                await self._learn(client)
            async with asyncio.TaskGroup() as group:
                receiver = group.create_task(self._receive(pubsub))
                await self._publish(client)
                receiver.cancel()
        finally:
            with suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
                    if pubsub is not None:
                        await pubsub.aclose()  # type: ignore[no-untyped-call]
                    await client.aclose()
                    if whole is not client:
                        await whole.aclose()

    def _key(self, service_id: str) -> str:
        return f"{self._index}:{service_id}"

    async def _learn(self, client: Redis) -> None:
        """Take what the live services have left in the store, each as old as it is."""
        try:
            members: Any = await client.srandmember(self._index, 2 * PEERS_MAX)
            texts = [member.decode("ascii", "replace") for member in members or ()]
            names = [name for name in texts if messages.is_sender(name) and name != self.id]
            if not names:
                return
            pipeline = client.pipeline(transaction=False)
            for name in names:
                pipeline.getrange(self._key(name), 0, MESSAGE_BYTES_MAX)
                pipeline.pttl(self._key(name))
            found = await pipeline.execute()
            now_ns = self._clock()
            gone = []
            for name, frame, left_ms in zip(names, found[::2], found[1::2], strict=True):
                if not frame or left_ms < 0:
                    gone.append(name)
                else:
                    age_ms = max(STORE_TTL_MS - left_ms, 0)
                    self.peers.take(frame, now_ns=now_ns, age_ns=age_ms * 1_000_000)
            self.counts["learned"] += len(names) - len(gone)
            self._tell_soon()
            if gone:
                await client.srem(self._index, *gone)
        except ResponseError:
            self.counts["store_refused"] += 1

    async def _publish(self, client: Redis) -> None:
        """Tell our load and the reports as they come; raises what Redis says, and returns to close."""
        self._own.want_full()
        self.peers.wants_full = True
        if self._shared_key is not None:
            self._shared_key.forget()
        while not self._closing:
            now_ns = self._clock()
            if self._shared_key is not None and not await self._shared_key.agree(client, now_ns=now_ns):
                self.counts["store_refused"] += 1
            if now_ns >= self._own.due_ns:
                await self._send_load(client, now_ns)
                if not self.connected:
                    self._back()
            await self._send_reports(client)
            await self._next_work()
        await self._execute(
            client,
            [("PUBLISH", self._channel, self._own.bye())],
            [("DEL", self._key(self.id)), ("SREM", self._index, self.id)],
        )

    async def _next_work(self) -> None:
        """Wait until our load is due, or a moment after a report has come."""
        if not self._work.is_set():
            wait_ns = min(max(self._own.due_ns - self._clock(), 0), self._own.interval_ns)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_ns / 1e9):
                    await self._work.wait()
        if self._work.is_set():
            if not self._closing:
                await asyncio.sleep(REPORT_SPACING_S)
            self._work.clear()

    async def _send_load(self, client: Redis, now_ns: int) -> None:
        essential: list[tuple[Any, ...]] = []
        stored: list[tuple[Any, ...]] = []
        if self.peers.wants_full and now_ns - self._hello_ns >= HELLO_EVERY_NS:
            self.peers.wants_full = False
            self._hello_ns = now_ns
            essential.append(("PUBLISH", self._channel, self._own.hello()))
        publication = self._own.next(
            self._loads(), now_ns=now_ns, needs=self._needs(), refused=self._refused()
        )
        if publication is not None:
            essential.append(("PUBLISH", self._channel, publication.frame))
            self.counts["published_full" if publication.full else "published_delta"] += 1
            if publication.full:
                stored = [
                    ("SET", self._key(self.id), publication.frame, "PX", STORE_TTL_MS),
                    ("SADD", self._index, self.id),
                    ("PEXPIRE", self._index, INDEX_TTL_MS),
                ]
        await self._execute(client, essential, stored)

    async def _send_reports(self, client: Redis) -> None:
        batch = self._outbox.batch(now_ns=self._clock())
        if not batch:
            return
        if len(self._outbox):
            self._work.set()
        try:
            frame = messages.encode(self.id, Reports(batch))
            await self._execute(client, [("PUBLISH", self._channel, frame)])
        except BaseException:
            self.counts["reports_dropped"] += len(batch)
            raise
        self.counts["reports_published"] += len(batch)

    async def _execute(
        self,
        client: Redis,
        essential: list[tuple[Any, ...]],
        stored: list[tuple[Any, ...]] | None = None,
    ) -> None:
        """One round trip; raises for an essential command, counts for one that only stores."""
        commands = essential + (stored or [])
        if not commands:
            return
        pipeline = client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
            results = await pipeline.execute(raise_on_error=False)
        for number, result in enumerate(results):
            if not isinstance(result, Exception):
                continue
            if number < len(essential) or isinstance(result, ReadOnlyError | MovedError):
                raise result
            self.counts["store_refused"] += 1

    async def _receive(self, pubsub: PubSub) -> None:
        """Take frames as they come; raises when our own no longer do."""
        echoed_ns = self._clock()
        while True:
            message = await pubsub.get_message(timeout=ECHO_NS_MAX / 1e9)
            now_ns = self._clock()
            if message is not None and message["type"] == "message":
                frame: bytes = message["data"]
                if frame.startswith(self._own_prefix):
                    echoed_ns = now_ns
                else:
                    self._take(frame, now_ns)
            if now_ns - echoed_ns >= ECHO_NS_MAX:
                raise SilentError("the subscription has fallen silent")
            # What is buffered already is read without waiting; the others get their turn all the same.
            await asyncio.sleep(0)

    def _take(self, frame: bytes, now_ns: int) -> None:
        match self.peers.take(frame, now_ns=now_ns):
            case Hello():
                self._own.want_full()
            case Reports(reports=reports):
                self.counts["reports_taken"] += len(reports)
                for node, data in reports:
                    try:
                        self._on_report(node, data)
                    except Exception:  # noqa: BLE001 - logged there; another's words must not end our sharing
                        self._callback_failed()
        self._tell_soon()

    def _tell_soon(self) -> None:
        if self.peers.news and not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._telling = False
        try:
            self._on_peers(self.peers)
        except Exception:  # noqa: BLE001 - logged there
            self._callback_failed()
        finally:
            self.peers.told()

    def _callback_failed(self) -> None:
        self.counts["callback_failed"] += 1
        if self.counts["callback_failed"] == 1:
            log.exception("a callback of the share failed; further ones are only counted")

    async def _expire(self) -> None:
        """Peers age whether or not Redis is there."""
        while not self._closing:
            self.peers.expire(now_ns=self._clock())
            self._tell_soon()
            due_ns = self._clock() + round(EXPIRE_EVERY_S * 1e9)
            await self._pause(EXPIRE_EVERY_S)
            self.peers.absence.away(since_ns=due_ns, now_ns=self._clock())

    def _lost(self, why: str) -> None:
        self.connected = False
        self._transitions.lost(why, "deciding on what this service alone knows", closing=self._closing)

    def _back(self) -> None:
        self.connected = True
        again = "load and reports are shared again"
        self._transitions.back(again, sharing="load and reports", name=self.id)

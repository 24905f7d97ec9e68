"""Quotas of several services through Redis: the shell around quota_lease.py and quota_journal.py.

Owns the connections, the tasks, and one log line per transition. A decision spends a lease that was taken
beforehand and waits for nothing; where that does not suffice, one question goes to Redis and waits for no
longer than its budget. Without Redis a service decides on its own share; what it admitted is charged when
Redis is back, before anything is shared again. Over-admission: see quota_lease.py.

Redis's books of a tenant are five keys with the tenant as hash tag, so one slot of a cluster holds them.
Time there is the server's.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha1
from importlib.resources import files
from random import Random
from typing import Any
from urllib.parse import quote

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError, ResponseError

from extproc.core.quota import (
    ASK,
    Account,
    Amounts,
    Ask,
    Granted,
    LimitUsage,
    QuotaLimits,
    RateFigures,
    Refused,
    share,
)
from extproc.core.quota.scopes import Scopes
from extproc.core.quota.values import CONCURRENT
from extproc.state import quota_lease, redis_client
from extproc.state.quota_journal import Journal, Op, ending
from extproc.state.quota_lease import LEASE_NS, LeasedReservation, QuotaLease, ReserveReply, Units

log = logging.getLogger(__name__)

#: Operations in one round trip, and the least time between two.
BATCH_MAX, FLUSH_SPACING_S = 256, 0.01
#: Without anything to say we look this often for leases that go back, and ask this often who is there.
LOOK_EVERY_S, HELLO_EVERY_NS = 0.1, 500_000_000
#: A service that has not said that it is there for this long is not.
SERVICE_SILENT_S = 3
#: Questions under way; above it the local share decides.
ASKS_MAX = 64
#: After a question without an answer nobody asks for this long.
ASK_PAUSE_NS = 100_000_000
#: Accounts whose leases want filling up at once.
HUNGRY_MAX = 10_000
#: A session that lasted this long was a good one.
GOOD_SESSION_NS = 5_000_000_000
#: What a script is told whose user may not run a command of it.
NO_RIGHTS = "The user executing the script"

Script = tuple[str, str]


def scripts() -> tuple[Script, Script]:
    """The reserve and the settle script, each with its SHA-1."""
    folder = files("extproc.state") / "lua"
    common = (folder / "quota_common.lua").read_text(encoding="utf-8")
    found = []
    for name in ("quota_reserve.lua", "quota_settle.lua"):
        text = common + (folder / name).read_text(encoding="utf-8")
        found.append((text, sha1(text.encode(), usedforsecurity=False).hexdigest()))
    return found[0], found[1]


class RedisQuota:
    """The quota port over Redis; `connected` says whether quotas are shared at the moment."""

    def __init__(
        self,
        url: str,
        *,
        service_id: str,
        prefix: str = "steersman",
        services: int = 1,
        limits: QuotaLimits | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Raises ValueError for a URL that names no Redis.

        `services` is how many are expected: the share while Redis is away is never of fewer. `clock` is the
        clock of every `now_ns`.
        """
        self.id = f"{service_id}-{secrets.token_hex(4)}"
        self.limits = limits or QuotaLimits()
        self.counts: Counter[str] = Counter()
        self.connected = False
        self.services = self._expected = max(services, 1)
        self.journal = Journal(self.counts)
        self._url, self._prefix, self._clock = url, prefix, clock
        self._reserve_script, self._settle_script = scripts()
        self._wallets = Scopes(QuotaLease, most=self.limits.scopes_max, counts=self.counts)
        self._held: OrderedDict[str, LeasedReservation] = OrderedDict()
        self._ended: OrderedDict[str, LeasedReservation | None] = OrderedDict()
        self._epochs: dict[str, str] = {}
        self._keys: dict[str, tuple[str, ...]] = {}
        self._hungry: dict[tuple[str, str, str], Account] = {}
        self._leasing: dict[tuple[str, str, str], Account] = {}
        self._sending = False
        self._attempt = 0
        self._away_until_ns = 0
        self._hello_ns = 0
        self._transitions = redis_client.Transitions(url, self.counts, log)
        self._closing = False
        self._work = asyncio.Event()
        self._closed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._asks: set[asyncio.Task[ReserveReply]] = set()
        self._asker = redis_client.connect(url)
        self._refused_by_server: ResponseError | None = None

    @property
    def reconciled(self) -> bool:
        """Whether Redis has heard everything."""
        return not self._sending and not len(self.journal)

    # -- the port ---------------------------------------------------------------------------------------

    def reserve(
        self,
        account: Account,
        reservation_id: str,
        amounts: Amounts,
        *,
        now_ns: int,
        idle_capacity: bool = False,  # noqa: ARG002 - a lease is of the tenant's own; `ask` may borrow
    ) -> Granted | Refused | Ask:
        """Decide from the leases, or from the local share while Redis is away; else `Ask`."""
        wallets = self._wallets.of(account, now_ns=now_ns)
        if reservation_id in self._held or reservation_id in self._ended:
            self.counts["reserved.again"] += 1
            return Granted(_figures(account, wallets, now_ns), borrowed=False)
        units = amounts.units()
        if not self.connected or now_ns < self._away_until_ns:
            return self._alone(account, wallets, reservation_id, units, self._next(), now_ns)
        taken, low = quota_lease.from_lease(account, wallets, units, now_ns=now_ns)
        if taken is None:
            return ASK
        if low and len(self._hungry) < HUNGRY_MAX:
            self._hungry[_name(account)] = account
            self._work.set()
        epoch = self._epochs.get(account.tenant, "")
        entry = LeasedReservation(
            taken, units, self._next(), paid=True, epoch=epoch, heard_ns=now_ns, unheard=True
        )
        self._enter(account, reservation_id, entry)
        self.counts["reserved.leased"] += 1
        return Granted(_figures(account, wallets, now_ns), borrowed=False)

    async def ask(
        self,
        account: Account,
        reservation_id: str,
        amounts: Amounts,
        *,
        budget_s: float = 0.005,
        idle_capacity: bool = False,
    ) -> Granted | Refused:
        """One round trip, or the local share when it takes longer than the budget."""
        asked_ns = self._clock()
        wallets = self._wallets.of(account, now_ns=asked_ns)
        if reservation_id in self._held or reservation_id in self._ended:
            self.counts["reserved.again"] += 1
            return Granted(_figures(account, wallets, asked_ns), borrowed=False)
        units, attempt = amounts.units(), self._next()
        if not self.connected or asked_ns < self._away_until_ns or len(self._asks) >= ASKS_MAX:
            return self._alone(account, wallets, reservation_id, units, attempt, asked_ns)
        lend = quota_lease.begin_loan(wallets)
        words = quota_lease.words(
            "ask", account, wallets, units=units, lend=lend, give_back=lend, idle_capacity=idle_capacity
        )
        task = asyncio.create_task(
            self._question(account, wallets, words, reservation_id, attempt, lend, asked_ns)
        )
        self._asks.add(task)
        task.add_done_callback(self._asked)
        # Not cancelled when it is late: what it brings (a lease) is taken when it comes.
        done, _ = await asyncio.wait({task}, timeout=budget_s)
        now_ns = self._clock()
        answer = task.result() if done and not task.cancelled() and task.exception() is None else None
        if reservation_id in self._held:
            self.counts["reserved.again"] += 1
            return Granted(_figures(account, wallets, now_ns), borrowed=False)
        if answer is None:
            self._away_until_ns = now_ns + ASK_PAUSE_NS
            self.counts["ask_failed" if done else "ask_late"] += 1
            decision = self._alone(account, wallets, reservation_id, units, attempt, now_ns)
            if isinstance(decision, Refused):
                # Redis may have granted what we did not.
                nothing = share.Taken(account, wallets, [0] * _buckets(account), 0, flies=False)
                unknown = LeasedReservation(nothing, units, attempt, paid=False, epoch="", heard_ns=now_ns)
                self._tell(Op("cancel", reservation_id, account, unknown))
            return decision
        if not answer.ok:
            return self._refused(account, wallets, answer, now_ns)
        costs = [word[3] if answer.borrowed >> at & 1 else word[1] for at, word in enumerate(words["b"])]
        self._count_borrowed(account, wallets, answer)
        for wallet in wallets:
            wallet.in_flight += 1
        taken = share.Taken(account, wallets, costs, answer.borrowed)
        entry = LeasedReservation(taken, units, attempt, paid=True, epoch=answer.epoch, heard_ns=now_ns)
        self._held[reservation_id] = entry
        self.counts["reserved.asked"] += 1
        return Granted(_figures(account, wallets, now_ns), borrowed=answer.borrowed != 0)

    def settle(
        self, reservation_id: str, actual: Amounts, *, now_ns: int, account: Account | None = None
    ) -> bool:
        """True for the first time here; Redis charges it once, whoever says it."""
        entry = self._held.pop(reservation_id, None)
        if entry is None and reservation_id in self._ended:
            entry = self._ended[reservation_id]
            if entry is None:
                self.counts["settled.duplicate"] += 1
                return False
            self.counts["settled.late"] += 1
        elif entry is None:
            self.counts["settled.unknown" if account else "settled.nobody"] += 1
        else:
            self.counts["settled"] += 1
        self._end(reservation_id, None)
        units = actual.units()
        if entry is not None:
            share.settle(entry.taken, units, now_ns=now_ns)
            account = entry.taken.account
        if account is not None:
            self._tell(Op("settle", reservation_id, account, entry, units))
        return True

    def renew(self, reservation_id: str, *, now_ns: int, so_far: Amounts | None = None) -> bool:
        """Begin the time to live anew, here and in Redis; charge what was used beyond the reservation."""
        entry = self._held.get(reservation_id)
        if entry is None:
            return False
        op = Op("renew", reservation_id, entry.taken.account, entry)
        # Of what Redis has not heard yet it is told first; the next time that it runs is soon enough.
        if so_far is not None and not self.journal.waits(op):
            op.units = so_far.units()
            before = list(entry.taken.costs)
            if share.grow(entry.taken, op.units, now_ns=now_ns) and entry.began is None:
                entry.began = before
        entry.heard_ns = now_ns
        self._held.move_to_end(reservation_id)
        self._tell(op)
        return True

    def cancel(self, reservation_id: str, *, now_ns: int) -> None:
        """Give everything back, to Redis."""
        entry = self._held.pop(reservation_id, None)
        if entry is not None:
            share.settle(entry.taken, (0, 0, 0, 0, 0), now_ns=now_ns)
            self.counts["cancelled"] += 1
            self._tell(Op("cancel", reservation_id, entry.taken.account, entry))

    def expire(self, *, now_ns: int) -> list[str]:
        """The ids that were not heard of; Redis ends them by its own clock."""
        expired = []
        while self._held:
            reservation_id, entry = next(iter(self._held.items()))
            if now_ns - entry.heard_ns < self.limits.reservation_ttl_ns:
                break
            del self._held[reservation_id]
            share.land(entry.taken)
            self.counts["expired"] += 1
            self._end(reservation_id, entry)
            expired.append(reservation_id)
        return expired

    def credit(self, account: Account, amounts: Amounts, *, credit_id: str, now_ns: int) -> None:
        """Give back what was used: here at once, in Redis as the end of a request of less than none."""
        if credit_id in self._ended:
            return
        self._end(credit_id, None)
        units = amounts.units()
        share.credit(account, self._wallets.of(account, now_ns=now_ns), units, now_ns=now_ns)
        requests, tokens_in, tokens_out, gpu_us, money = units
        self._tell(
            Op("settle", credit_id, account, None, (-requests, -tokens_in, -tokens_out, -gpu_us, -money))
        )
        self.counts["credited"] += 1

    def usage(self, account: Account, *, now_ns: int) -> tuple[LimitUsage, ...]:
        """Every limit as last heard, with what this service has added since."""
        return share.usage(account, self._wallets.known(account), now_ns=now_ns)

    # -- decisions ---------------------------------------------------------------------------------------

    def _next(self) -> str:
        self._attempt += 1
        return f"{self.id}-{self._attempt}"

    def _alone(
        self,
        account: Account,
        wallets: tuple[QuotaLease, ...],
        reservation_id: str,
        units: Units,
        attempt: str,
        now_ns: int,
    ) -> Granted | Refused:
        taken = quota_lease.alone(account, wallets, units, now_ns=now_ns, services=self.services)
        if isinstance(taken, Refused):
            self.counts["refused.alone"] += 1
            return taken
        entry = LeasedReservation(taken, units, attempt, paid=False, epoch="", heard_ns=now_ns)
        self._enter(account, reservation_id, entry)
        self.counts["reserved.alone"] += 1
        return Granted(_figures(account, wallets, now_ns), borrowed=False)

    def _refused(
        self, account: Account, wallets: tuple[QuotaLease, ...], answer: ReserveReply, now_ns: int
    ) -> Refused:
        self.counts["refused"] += 1
        names = [
            (name, bucket.name, bucket.kind, wallet)
            for (name, limits), wallet in zip(account.scopes, wallets, strict=True)
            for bucket in limits.buckets
        ]
        names += [
            (name, CONCURRENT, -1, wallet) for (name, _), wallet in zip(account.scopes, wallets, strict=True)
        ]
        scope, limit, kind, wallet = names[answer.worst]
        share.throttled(wallet, kind)
        return Refused(scope, limit, answer.wait_ns / 1e9, _figures(account, wallets, now_ns))

    @staticmethod
    def _count_borrowed(account: Account, wallets: tuple[QuotaLease, ...], answer: ReserveReply) -> None:
        at = 0
        for (_, limits), wallet in zip(account.scopes, wallets, strict=True):
            for bucket in limits.buckets:
                if answer.borrowed >> at & 1:
                    share.lent(wallet, bucket.kind)
                at += 1

    def _enter(self, account: Account, reservation_id: str, entry: LeasedReservation) -> None:
        self._held[reservation_id] = entry
        self._tell(Op("enter", reservation_id, account, entry))

    def _tell(self, op: Op) -> None:
        self.journal.put(op)
        self._work.set()

    def _end(self, reservation_id: str, entry: LeasedReservation | None) -> None:
        self._ended[reservation_id] = entry
        while len(self._ended) > self.limits.ended_remembered_max:
            self._ended.popitem(last=False)

    # -- talking to Redis --------------------------------------------------------------------------------

    def _keys_of(self, tenant: str) -> tuple[str, ...]:
        keys = self._keys.get(tenant)
        if keys is None:
            if len(self._keys) >= self.limits.scopes_max:
                self._keys.clear()
            tag = f"{{{self._prefix}:quota:{quote(tenant, safe='')}}}"
            keys = self._keys[tenant] = tuple(f"{tag}:{part}" for part in "brxez")
        return keys

    @property
    def _ttl_ms(self) -> int:
        return max(self.limits.reservation_ttl_ns // 1_000_000, 1)

    def _reserve_words(self, words: dict[str, Any], reservation_id: str, entry: tuple[str, str]) -> bytes:
        attempt, epoch = entry
        return msgspec.msgpack.encode(
            {
                **words,
                "id": reservation_id,
                "attempt": attempt,
                "service": self.id,
                "ttl": self._ttl_ms,
                "epoch": epoch,
                "lease_ms": LEASE_NS // 1_000_000,
            }
        )

    def _command(self, script: Script, tenant: str, words: bytes) -> tuple[Any, ...]:
        return ("EVALSHA", script[1], 5, *self._keys_of(tenant), words)

    async def _call(self, client: Redis, script: Script, tenant: str, words: bytes) -> Any:
        try:
            return await client.execute_command(  # type: ignore[no-untyped-call]
                *self._command(script, tenant, words)
            )
        except NoScriptError:
            self.counts["script_reloaded"] += 1
            return await client.execute_command(  # type: ignore[no-untyped-call]
                "EVAL", script[0], 5, *self._keys_of(tenant), words
            )

    async def _question(
        self,
        account: Account,
        wallets: tuple[QuotaLease, ...],
        words: dict[str, Any],
        reservation_id: str,
        attempt: str,
        lend: bool,
        asked_ns: int,
    ) -> ReserveReply:
        try:
            epoch = self._epochs.get(account.tenant, "")
            data = self._reserve_words(words, reservation_id, (attempt, epoch))
            client = self._asker
            answer = quota_lease.reply(await self._call(client, self._reserve_script, account.tenant, data))
            self._hear(answer, account, wallets, lend, asked_ns)
            return answer
        except BaseException as error:
            if lend:
                self._end_unread(account, wallets, words, error)
            raise

    def _end_unread(
        self, account: Account, wallets: tuple[QuotaLease, ...], words: dict[str, Any], error: BaseException
    ) -> None:
        """The loan came to nothing that we know of; what an error shows to be unread is still owed."""
        _end_loan(wallets)
        if isinstance(error, ResponseError) and not _poison(error):
            quota_lease.not_given_back(account, wallets, words)
            self._leasing[_name(account)] = account

    def _asked(self, task: asyncio.Task[ReserveReply]) -> None:
        self._asks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, ResponseError) and not _poison(error):
                # Who answers is no server for us (any more): a master that was demoted keeps its connections.
                self._refused_by_server = error
            self._work.set()

    def _hear(
        self,
        answer: ReserveReply,
        account: Account,
        wallets: tuple[QuotaLease, ...],
        lend: bool,
        asked_ns: int,
    ) -> None:
        self._epoch(account.tenant, answer.epoch)
        quota_lease.hear(answer, account, wallets, lent=lend, asked_ns=asked_ns, now_ns=self._clock())
        if lend and any(wallet.slots or any(wallet.credit) for wallet in wallets):
            self._leasing[_name(account)] = account

    def _epoch(self, tenant: str, epoch: str) -> None:
        """Redis has forgotten this tenant: leases are void, what is in flight is entered again."""
        known = self._epochs.get(tenant)
        if known == epoch:
            return
        self._epochs[tenant] = epoch
        if known is None:
            return
        self.counts["forgotten_by_redis"] += 1
        for account in [found for found in self._leasing.values() if found.tenant == tenant]:
            for wallet in self._wallets.of(account, now_ns=self._clock()):
                wallet.void()
        for reservation_id, entry in self._held.items():
            if entry.taken.account.tenant == tenant and entry.epoch != epoch:
                self._tell(Op("enter", reservation_id, entry.taken.account, entry))

    async def start(self) -> None:
        """Begin in the background; returns at once, with or without Redis."""
        assert self._task is None, "started twice"
        self._task = asyncio.create_task(self._run(), name="redis-quota")

    async def close(self) -> None:
        """Tell what there is to tell if Redis is there; ends within two seconds if it is not."""
        self._closing = True
        self._work.set()
        self._closed.set()
        tasks: set[asyncio.Task[Any]] = {*self._asks, *([self._task] if self._task else [])}
        if tasks:
            await asyncio.wait(tasks, timeout=2 * redis_client.OPERATION_TIMEOUT_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._task = None
        self.connected = False
        with suppress(RedisError, OSError, TimeoutError):
            await self._asker.aclose()

    async def _run(self) -> None:
        backoff = redis_client.Backoff(Random(secrets.randbits(64)))
        while not self._closing:
            begun_ns = self._clock()
            client = redis_client.connect(self._url)
            try:
                await self._renew_asker()
                await self._session(client)
            except Exception as error:  # noqa: BLE001 - whatever ends a session must not end the books
                self._lost(redis_client.reason(error))
            finally:
                with suppress(RedisError, OSError, TimeoutError):
                    async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
                        await client.aclose()
            if self._clock() - begun_ns > GOOD_SESSION_NS:
                backoff.reset()
            if not self._closing:
                await self._pause(self._closed, backoff.next_s())

    async def _renew_asker(self) -> None:
        """New connections for questions too: an address may have come to mean another server."""
        before, self._asker = self._asker, redis_client.connect(self._url)
        self._refused_by_server = None
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
                await before.aclose()

    async def _session(self, client: Redis) -> None:
        """Square the books, then share, until something breaks or we close."""
        await self._hello(client)
        async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
            # So that the first question finds its connection and its script.
            for text, _ in (self._reserve_script, self._settle_script):
                await self._asker.script_load(text)
        while len(self.journal) and not self._closing:
            await self._flush(client)
        self._back()
        while not self._closing:
            await self._pause(self._work, LOOK_EVERY_S)
            self._work.clear()
            if self._refused_by_server is not None:
                raise self._refused_by_server
            if self._clock() - self._hello_ns >= HELLO_EVERY_NS:
                await self._hello(client)
            while len(self.journal):
                await self._flush(client)
            await self._lend(client)
            await self._give_back(client, all_of_it=False)
            await self._pause(self._closed, FLUSH_SPACING_S)
        while len(self.journal):
            await self._flush(client)
        await self._give_back(client, all_of_it=True)
        await client.zrem(f"{{{self._prefix}:quota}}:services", self.id)

    @staticmethod
    async def _pause(event: asyncio.Event, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()

    async def _hello(self, client: Redis) -> None:
        """Say that we are there, and count who else is. Writes: a read-only server fails here."""
        key = f"{{{self._prefix}:quota}}:services"
        async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
            seconds = await redis_client.server_time_s(client, key)
            pipeline = client.pipeline(transaction=False)
            pipeline.zadd(key, {self.id: seconds})
            pipeline.zremrangebyscore(key, "-inf", seconds - SERVICE_SILENT_S)
            pipeline.zcard(key)
            pipeline.expire(key, 60)
            self.services = max(self._expected, (await pipeline.execute())[2])
        self._hello_ns = self._clock()

    async def _flush(self, client: Redis) -> None:
        """Send the oldest of the journal in one round trip; what was perhaps not heard stays in it."""
        ops = self.journal.take(BATCH_MAX)
        self._sending = True
        try:
            pipeline = client.pipeline(transaction=False)
            for op in ops:
                script, words = self._op_words(op)
                pipeline.execute_command(*self._command(script, op.account.tenant, words))
            async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
                results = await pipeline.execute(raise_on_error=False)
                if any(isinstance(result, NoScriptError) for result in results):
                    self.counts["script_reloaded"] += 1
                    for text, _ in (self._reserve_script, self._settle_script):
                        await client.script_load(text)
        except BaseException:
            self.journal.put_back(ops)
            raise
        finally:
            self._sending = False
        failed = [
            (op, result)
            for op, result in zip(ops, results, strict=True)
            if isinstance(result, Exception) and not _poison(result)
        ]
        for op, result in zip(ops, results, strict=True):
            if op.entry is not None and (not isinstance(result, Exception) or _poison(result)):
                quota_lease.told(op.entry)
            if isinstance(result, bytes):
                self._epoch(op.account.tenant, quota_lease.reply(result).epoch)
            elif isinstance(result, Exception) and _poison(result):
                self.counts["script_failed"] += 1
                if self.counts["script_failed"] == 1:
                    log.error("a quota script failed: %s", redis_client.reason(result))
        if failed:
            self.journal.put_back([op for op, _ in failed])
            real = next((error for _, error in failed if not isinstance(error, NoScriptError)), None)
            if real is not None:
                raise real

    def _op_words(self, op: Op) -> tuple[Script, bytes]:
        if op.how != "enter":
            words = ending(op)
            return self._settle_script, msgspec.msgpack.encode(
                {**words, "ttl": self._ttl_ms, "service": self.id, "lease_ms": LEASE_NS // 1_000_000}
            )
        entry = op.entry
        assert entry is not None, op
        taken = entry.taken
        # Alone, costs were counted for a share; Redis is charged for what they are.
        costs = None if taken.share > 1 or taken.borrowed else entry.costs
        wallets = tuple(wallet for wallet in taken.scopes if isinstance(wallet, QuotaLease))
        words = quota_lease.words(
            "lease" if entry.paid else "force", op.account, wallets, units=entry.units, costs=costs
        )
        return self._reserve_script, self._reserve_words(words, op.id, (entry.attempt, entry.epoch))

    async def _lend(self, client: Redis) -> None:
        """Fill up the leases that run low, before they are needed."""
        hungry, self._hungry = list(self._hungry.values()), {}
        for start in range(0, len(hungry), BATCH_MAX):
            await self._loans(client, hungry[start : start + BATCH_MAX], give_back=False)

    async def _give_back(self, client: Redis, *, all_of_it: bool) -> None:
        """Return leases that have come to their end (or all); never twice, so a lost answer loses them."""
        now_ns = self._clock()
        over = [
            account
            for account in self._leasing.values()
            if all_of_it
            or all(wallet is None or wallet.ends_ns <= now_ns for wallet in self._wallets.known(account))
        ]
        for start in range(0, len(over), BATCH_MAX):
            await self._loans(client, over[start : start + BATCH_MAX], give_back=True)

    async def _loans(self, client: Redis, accounts: list[Account], *, give_back: bool) -> None:
        asked_ns = self._clock()
        pipeline = client.pipeline(transaction=False)
        sent: list[tuple[Account, tuple[QuotaLease, ...], dict[str, Any]]] = []
        for account in accounts:
            wallets = self._wallets.of(account, now_ns=asked_ns)
            if not quota_lease.begin_loan(wallets):
                continue
            words = quota_lease.words("lend", account, wallets, lend=not give_back, give_back=give_back)
            epoch = self._epochs.get(account.tenant, "")
            data = self._reserve_words(words, "", ("", epoch))
            pipeline.execute_command(*self._command(self._reserve_script, account.tenant, data))
            sent.append((account, wallets, words))
            if give_back:
                self._leasing.pop(_name(account), None)
        if not sent:
            return
        try:
            async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
                results = await pipeline.execute(raise_on_error=False)
        except BaseException:
            for _, wallets, _ in sent:
                _end_loan(wallets)
            raise
        for (account, wallets, words), result in zip(sent, results, strict=True):
            if isinstance(result, bytes):
                answer = quota_lease.reply(result)
                self._hear(answer, account, wallets, True, asked_ns)
                if give_back:
                    for wallet in wallets:
                        wallet.ends_ns = 0
            else:
                self._end_unread(account, wallets, words, result)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, NoScriptError):
                raise result

    def _lost(self, why: str) -> None:
        self.connected = False
        self._transitions.lost(why, "quotas are this service's share alone", closing=self._closing)

    def _back(self) -> None:
        self.connected = True
        self._away_until_ns = 0
        again = "quotas are shared again and the books reconciled"
        self._transitions.back(again, sharing="quotas", name=self.id)


def _name(account: Account) -> tuple[str, str, str]:
    return (account.tenant, account.key, account.model)


def _end_loan(wallets: tuple[QuotaLease, ...]) -> None:
    """The loan came to nothing that we know of."""
    for wallet in wallets:
        wallet.lending = False
        wallet.unsure = True


def _buckets(account: Account) -> int:
    return sum(len(limits.buckets) for _, limits in account.scopes)


def _figures(account: Account, wallets: tuple[QuotaLease, ...], now_ns: int) -> RateFigures:
    return share.figures(account, wallets, now_ns=now_ns)


def _poison(error: BaseException) -> bool:
    """A fault of the script or of what it found: the same words would fail again.

    What the server itself refuses (READONLY, OOM, NOPERM, NOREPLICAS, MISCONF) is read by a class of its own
    or by the code before the text: redis-py cuts off the codes that it knows. Redis 7 has no code for a user
    with too few rights.
    """
    text = str(error)
    if type(error) is not ResponseError or "user_script" not in text or text.startswith(NO_RIGHTS):
        return False
    code = text.partition(" ")[0]
    return not code.isupper() or code in ("ERR", "WRONGTYPE")

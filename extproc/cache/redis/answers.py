"""Answers in Redis: a store that several services have together.

Owns how it is asked on a request's way, each time within its budget (law: Redis within its budget): whatever
is late, away or refused is a miss. What is kept or forgotten is an errand of the session.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from extproc.cache.purging import AnswerOrigin, PurgeOrder
from extproc.cache.redis.asked import AskedStore
from extproc.cache.redis.errands import Errand
from extproc.cache.redis.scripts import AnswerScripts
from extproc.cache.redis.session import AnswerSession
from extproc.cache.sealed import AnswerSeal, PoisonedError
from extproc.cache.store import ENTRY_BYTES, Absent, KeptAnswer, StoreFigures
from extproc.state.redis_session import ASK_PAUSE_NS, poisonous

#: How long an answer may take, where nothing is said.
BUDGET_S: Final = 0.005
MS: Final = 1_000_000


class RedisAnswers(AskedStore[AnswerSession]):
    """An AnswerStore under a prefix. Raises ValueError for a URL that names no Redis."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str,
        name: str,
        seal: AnswerSeal,
        bytes_max: int,
        clock: Callable[[], int],
        on_purged: Callable[[Sequence[PurgeOrder]], None],
        budget_s: float = BUDGET_S,
    ) -> None:
        counts: Counter[str] = Counter()
        self.seal, self._clock = seal, clock
        self._scripts = AnswerScripts(prefix, counts)
        session = AnswerSession(
            url,
            name=name,
            scripts=self._scripts,
            bytes_max=bytes_max,
            counts=counts,
            clock=clock,
            on_purged=on_purged,
        )
        super().__init__(session, self._scripts, counts=counts, refused=Counter(), budget_s=budget_s)

    @property
    def bytes_max(self) -> int:
        """The bound of all scopes together."""
        return self.session.bytes_max

    @bytes_max.setter
    def bytes_max(self, value: int) -> None:
        self.session.bytes_max = value

    def start(self, unwanted: Callable[[str, AnswerOrigin], bool]) -> None:
        """Begin in the background; what is `unwanted` by scope and whose it is goes when Redis is there."""
        self.session.unwanted = unwanted
        self.session.start()

    def get(self, scope: str, key: bytes, *, now_ns: int) -> KeptAnswer | Absent:  # noqa: ARG002 (the port's)
        """Redis has to be asked, where it may be."""
        return Absent.ASK if self._may_ask(now_ns) else Absent.AWAY

    async def ask(self, scope: str, key: bytes) -> KeptAnswer | Absent:
        """One round trip; LATE when it takes longer than the budget: then nobody asks for a while."""
        return await self._within(scope, key, uses=True)

    async def peek(self, scope: str, key: bytes) -> KeptAnswer | Absent:
        """The same; it does not count as used."""
        if not self.session.connected:
            return Absent.AWAY
        return await self._within(scope, key, uses=False)

    def expects(self, scope: str) -> None:
        """A purge by any service has to know of this scope."""
        self.session.expect(scope)

    def put(
        self, scope: str, key: bytes, answer: KeptAnswer, *, scope_bytes_max: int, begun_ns: int, now_ns: int
    ) -> str:
        """Have it kept, soon; `away` where it cannot be, which drops it."""
        entry = self.seal.write(scope, key, answer)
        size = len(entry) + ENTRY_BYTES
        if size > min(scope_bytes_max, self.bytes_max):
            return "large"
        ttl_ms = (answer.expires_ns - now_ns) // MS
        if ttl_ms <= 0 or not self.session.connected:
            return "away"
        whose = (answer.tenant, answer.model, answer.pool, answer.gpu_ms)
        said = (key, entry, ttl_ms, size, scope_bytes_max, *whose)
        return "kept" if self._errand(Errand("keep", scope, said, len(entry), begun_ns)) else "away"

    def unless_purged(
        self, scope: str, key: bytes, answer: KeptAnswer, *, begun_ns: int, tell: Callable[[bool], None]
    ) -> None:
        """One round trip: our own ears are half a second behind."""
        if not self._may_ask(self._clock()):
            tell(True)
            return
        self._in_background(self._unless_purged(scope, key, answer, begun_ns, tell))

    async def _unless_purged(
        self, scope: str, key: bytes, answer: KeptAnswer, begun_ns: int, tell: Callable[[bool], None]
    ) -> None:
        purged: Any = 0
        began_ms = self.session.began_ms(begun_ns)
        whose = (answer.tenant, answer.model, answer.pool)
        try:
            command = self._scripts.of("since", scope, key, began_ms, *whose)
            purged = await self._looks.ask(command, budget_s=self.budget_s)
        except Exception:  # noqa: BLE001 (what cannot be asked is not known to be purged)
            self.counts["unconfirmed"] += 1
        finally:
            tell(purged != 1)

    def took(self, scope: str, key: bytes, gpu_ms: float) -> None:
        """How much of a replica's time an answer took."""
        if gpu_ms:
            self._errand(Errand("took", scope, (key, gpu_ms)))

    def drop(self, scope: str, key: bytes) -> None:
        """Forget one, soon."""
        self._errand(Errand("drop", scope, (key,)))

    def expire(self, *, now_ns: int, most: int) -> int:  # noqa: ARG002 (the port's)
        """Redis does."""
        return 0

    def figures(self) -> StoreFigures:
        """What it holds, as heard about a second ago."""
        scopes, counts = self.session.figures, self.counts
        names = ("dropped.away", "bound.errands_max", "out_of_memory", "put.purged", "put.large")
        return StoreFigures(
            answers=sum(each.answers for each in scopes.values()),
            size=sum(each.size for each in scopes.values()),
            bytes_max=self.bytes_max,
            evicted=counts["evicted"],
            scopes=scopes,
            kind="redis",
            away=not self.session.connected,
            refused=dict(self.refused),
            dropped={name: counts[name] for name in names if counts[name]},
        )

    async def _within(self, scope: str, key: bytes, *, uses: bool) -> KeptAnswer | Absent:
        command = self._scripts.of("find", scope, key, "1" if uses else "0")
        try:
            found = await self._looks.ask(command, budget_s=self.budget_s)
        except TimeoutError:
            self.session.pause_until_ns = self._clock() + ASK_PAUSE_NS
            return Absent.LATE
        except Exception as error:  # noqa: BLE001 (whatever went wrong there is a miss here)
            if poisonous(error):
                # What stands in its place there is none of ours.
                return self._refuse(scope, key, "unreadable")
            self.session.pause_until_ns = self._clock() + ASK_PAUSE_NS
            return Absent.AWAY
        return self._read(scope, key, found)

    def _read(self, scope: str, key: bytes, found: Any) -> KeptAnswer | Absent:
        """What was found, with its times by our clock; each number there may be anybody's."""
        if found is None:
            return Absent.MISS
        try:
            entry, age_ms, left_ms = found[0], int(found[1]), int(found[2])
            gpu_ms, hits = float(found[3]), int(found[4])
            if age_ms < 0 or not 0 <= gpu_ms < 1e10:
                raise PoisonedError("unreadable")
            answer = self.seal.read(scope, key, entry)
        except PoisonedError as error:
            return self._refuse(scope, key, error.reason)
        except (ValueError, TypeError, IndexError, OverflowError):
            return self._refuse(scope, key, "unreadable")
        if left_ms <= 0:
            return Absent.MISS
        now_ns = self._clock()
        answer.made_ns, answer.expires_ns = now_ns - age_ms * MS, now_ns + left_ms * MS
        answer.gpu_ms, answer.hits = gpu_ms, hits
        return answer

    def _refuse(self, scope: str, key: bytes, reason: str) -> Absent:
        self.refused[reason] += 1
        self.drop(scope, key)
        return Absent.POISONED

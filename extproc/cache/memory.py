"""Answers in this process's memory: by scope, the least recently used goes first.

Owns the bounds in bytes. One scope's answers never push out another's while that has less: at the common
bound whoever has most gives way.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Sequence

from extproc.cache.purging import AnswerOrigin, PurgeOrder, wanted
from extproc.cache.store import Absent, KeptAnswer, ScopeHeld, StoreFigures

#: The table of times is made anew once it holds this many times more than is kept.
STALE_TIMES = 2


class Shelf:
    """One scope's answers, the least recently used first."""

    __slots__ = ("answers", "size")

    def __init__(self) -> None:
        self.answers: OrderedDict[bytes, KeptAnswer] = OrderedDict()
        self.size = 0


class MemoryAnswers:
    """An AnswerStore of at most `bytes_max` bytes; `evicted` counts what went for room."""

    def __init__(self, bytes_max: int, *, clock: Callable[[], int] = lambda: 0) -> None:
        self.bytes_max = bytes_max
        self._clock = clock
        self.size = 0
        self.evicted = 0
        self._count = 0
        self.shelves: dict[str, Shelf] = {}
        #: When each is too old, the first at the top; some are gone already.
        self._times: list[tuple[int, str, bytes]] = []

    def __len__(self) -> int:
        return self._count

    def get(self, scope: str, key: bytes, *, now_ns: int) -> KeptAnswer | Absent:
        """An answer that is kept and not too old."""
        shelf = self.shelves.get(scope)
        answer = shelf.answers.get(key) if shelf is not None else None
        if shelf is None or answer is None:
            return Absent.MISS
        if now_ns >= answer.expires_ns:
            self._remove(scope, shelf, key)
            return Absent.MISS
        shelf.answers.move_to_end(key)
        return answer

    async def ask(self, scope: str, key: bytes) -> KeptAnswer | Absent:
        """The same; nobody has to."""
        return self.get(scope, key, now_ns=self._clock())

    async def peek(self, scope: str, key: bytes) -> KeptAnswer | Absent:
        """The same, and it does not count as used."""
        shelf = self.shelves.get(scope)
        answer = shelf.answers.get(key) if shelf is not None else None
        return answer if answer is not None and self._clock() < answer.expires_ns else Absent.MISS

    def expects(self, scope: str) -> None:
        """Whoever purges knows who is awaited."""

    def put(
        self,
        scope: str,
        key: bytes,
        answer: KeptAnswer,
        *,
        scope_bytes_max: int,
        begun_ns: int = 0,  # noqa: ARG002 (a purge here takes what is awaited along)
        now_ns: int,
    ) -> str:
        """Keep an answer; the least recently used of its scope go for it, then of whichever has most."""
        size = answer.size
        if size > min(scope_bytes_max, self.bytes_max):
            return "large"
        self.expire(now_ns=now_ns, most=8)
        shelf = self.shelves.setdefault(scope, Shelf())
        if key in shelf.answers:
            self._remove(scope, shelf, key)
            shelf = self.shelves.setdefault(scope, Shelf())
        shelf.answers[key] = answer
        shelf.size += size
        self.size += size
        self._count += 1
        while shelf.size > scope_bytes_max:
            self._evict(scope, shelf)
        while self.size > self.bytes_max:
            self._evict(*max(self.shelves.items(), key=lambda item: item[1].size))
        heapq.heappush(self._times, (answer.expires_ns, scope, key))
        if len(self._times) > STALE_TIMES * self._count + 1_000:
            self._retime()
        return "kept" if key in shelf.answers else "large"

    def unless_purged(
        self,
        scope: str,  # noqa: ARG002 (a purge here takes what is awaited along)
        key: bytes,  # noqa: ARG002
        answer: KeptAnswer,  # noqa: ARG002
        *,
        begun_ns: int,  # noqa: ARG002
        tell: Callable[[bool], None],
    ) -> None:
        """It may: nobody else purges."""
        tell(True)

    def took(self, scope: str, key: bytes, gpu_ms: float) -> None:
        """How much of a replica's time an answer took; the first word stands."""
        shelf = self.shelves.get(scope)
        answer = shelf.answers.get(key) if shelf is not None else None
        if answer is not None and not answer.gpu_ms:
            answer.gpu_ms = gpu_ms

    def drop(self, scope: str, key: bytes) -> None:
        """Forget one."""
        shelf = self.shelves.get(scope)
        if shelf is not None and key in shelf.answers:
            self._remove(scope, shelf, key)

    def purge(self, orders: Sequence[PurgeOrder]) -> int:
        """Forget every one that is meant; how many."""
        now_ns = self._clock()
        gone = [
            (scope, key)
            for scope, shelf in self.shelves.items()
            for key, answer in shelf.answers.items()
            if wanted(
                orders,
                scope,
                key,
                AnswerOrigin(answer.tenant, answer.model, answer.pool, now_ns - answer.made_ns),
            )
        ]
        for scope, key in gone:
            self.drop(scope, key)
        return len(gone)

    def expire(self, *, now_ns: int, most: int) -> int:
        """Forget those that are too old."""
        count = 0
        while self._times and count < most and self._times[0][0] <= now_ns:
            expires_ns, scope, key = heapq.heappop(self._times)
            shelf = self.shelves.get(scope)
            answer = shelf.answers.get(key) if shelf is not None else None
            if shelf is not None and answer is not None and answer.expires_ns == expires_ns:
                self._remove(scope, shelf, key)
                count += 1
        return count

    def figures(self) -> StoreFigures:
        """What it holds."""
        scopes = {name: ScopeHeld(len(each.answers), each.size) for name, each in self.shelves.items()}
        return StoreFigures(
            answers=self._count,
            size=self.size,
            bytes_max=self.bytes_max,
            evicted=self.evicted,
            scopes=scopes,
        )

    def _evict(self, scope: str, shelf: Shelf) -> None:
        self.evicted += 1
        self._remove(scope, shelf, next(iter(shelf.answers)))

    def _remove(self, scope: str, shelf: Shelf, key: bytes) -> None:
        size = shelf.answers.pop(key).size
        shelf.size -= size
        self.size -= size
        self._count -= 1
        if not shelf.answers:
            del self.shelves[scope]

    def _retime(self) -> None:
        self._times = [
            (answer.expires_ns, scope, key)
            for scope, shelf in self.shelves.items()
            for key, answer in shelf.answers.items()
        ]
        heapq.heapify(self._times)

"""Answers in this process's memory: by scope, the least recently used goes first.

Owns the bounds in bytes. One scope's answers never push out another's while that has less: at the common
bound whoever has most gives way.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable

from extproc.cache.store import KeptAnswer

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

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.size = 0
        self.evicted = 0
        self._count = 0
        self.shelves: dict[str, Shelf] = {}
        #: When each is too old, the first at the top; some are gone already.
        self._times: list[tuple[int, str, bytes]] = []

    def __len__(self) -> int:
        return self._count

    def get(self, scope: str, key: bytes, *, now_ns: int) -> KeptAnswer | None:
        """An answer that is kept and not too old."""
        shelf = self.shelves.get(scope)
        answer = shelf.answers.get(key) if shelf is not None else None
        if shelf is None or answer is None:
            return None
        if now_ns >= answer.expires_ns:
            self._remove(scope, shelf, key)
            return None
        shelf.answers.move_to_end(key)
        return answer

    def peek(self, scope: str, key: bytes, *, now_ns: int) -> KeptAnswer | None:
        """The same, and it does not count as used."""
        shelf = self.shelves.get(scope)
        answer = shelf.answers.get(key) if shelf is not None else None
        return answer if answer is not None and now_ns < answer.expires_ns else None

    def put(self, scope: str, key: bytes, answer: KeptAnswer, *, scope_bytes_max: int, now_ns: int) -> bool:
        """Keep an answer; the least recently used of its scope go for it, then of whichever has most."""
        size = answer.size
        if size > min(scope_bytes_max, self.bytes_max):
            return False
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
        return key in shelf.answers

    def drop(self, scope: str, key: bytes) -> bool:
        """Forget one; whether it was there."""
        shelf = self.shelves.get(scope)
        if shelf is None or key not in shelf.answers:
            return False
        self._remove(scope, shelf, key)
        return True

    def purge(self, unwanted: Callable[[str, bytes, KeptAnswer], bool]) -> int:
        """Forget every one that is unwanted; how many."""
        gone = [
            (scope, key)
            for scope, shelf in self.shelves.items()
            for key, answer in shelf.answers.items()
            if unwanted(scope, key, answer)
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

"""What is kept of an answer, and the port of whatever keeps it.

Owns the packing: an answer is compressed, and carries its length and whose it is, so that what comes back
from a store is either that answer or refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Final, Protocol

import msgspec

from extproc.cache.purging import PurgeOrder
from extproc.core.cachekeys import Usage

#: Fast: most of what JSON and events repeat is gone at the lowest level.
LEVEL: Final = 1
#: What an entry costs beside its packed bytes: its key, its struct, its places in two tables.
ENTRY_BYTES: Final = 600


class KeptAnswer(msgspec.Struct, kw_only=True, gc=False):
    """One answer in a store. Times by the clock of whoever keeps it."""

    packed: bytes
    length: int
    stream: bool
    tenant: str
    model: str
    pool: str
    usage: Usage
    made_ns: int
    expires_ns: int
    #: Replica time that it took; 0 until its record has come.
    gpu_ms: float = 0.0
    hits: int = 0

    @property
    def size(self) -> int:
        """Bytes that it counts as."""
        return len(self.packed) + ENTRY_BYTES

    def body(self) -> bytes:
        """The answer. Raises ValueError where it is not what was packed."""
        unpacker = zlib.decompressobj()
        try:
            # No more than was packed: what was tampered with must not grow without a bound.
            body = unpacker.decompress(self.packed, self.length + 1)
        except zlib.error as error:
            raise ValueError(f"a kept answer cannot be unpacked: {error}") from None
        # Reaching the end means that zlib's checksum of the whole has been compared.
        if len(body) != self.length or not unpacker.eof:
            raise ValueError("a kept answer is not as long as it was")
        return body


def packed(body: bytes) -> bytes:
    """A body as it is kept."""
    return zlib.compress(body, LEVEL)


class Absent(Enum):
    """Why a store gives no answer."""

    ASK = "ask"  # it has to be asked: `AnswerStore.ask`
    MISS = "miss"
    AWAY = "away"  # it cannot be reached, or was late a moment ago
    LATE = "late"  # it did not answer within its budget
    POISONED = "poisoned"  # what it holds there is not what was kept; it is gone now


class ScopeHeld(msgspec.Struct, frozen=True):
    """What a store holds of one scope."""

    answers: int
    size: int


class StoreFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a store holds. `refused` by what was wrong with it; `away` where it cannot be reached."""

    answers: int
    size: int
    bytes_max: int
    evicted: int
    scopes: dict[str, ScopeHeld]
    kind: str = "memory"
    away: bool = False
    refused: dict[str, int] = {}
    dropped: dict[str, int] = {}


class AnswerStore(Protocol):
    """Keeps answers by scope and key; no answer is ever found under another scope."""

    def get(self, scope: str, key: bytes, *, now_ns: int) -> KeptAnswer | Absent:
        """An answer that is kept and not too old, which counts as used now; or why there is none."""

    async def ask(self, scope: str, key: bytes) -> KeptAnswer | Absent:
        """The same where `get` says ASK; within the store's budget."""

    async def peek(self, scope: str, key: bytes) -> KeptAnswer | Absent:
        """The same, for whoever only wants to know: it does not count as used."""

    def expects(self, scope: str) -> None:
        """An answer of this scope may come: a purge from now on has to know of it."""

    def put(
        self, scope: str, key: bytes, answer: KeptAnswer, *, scope_bytes_max: int, begun_ns: int, now_ns: int
    ) -> str:
        """Keep an answer, in place of an older one; others go for it. What became of it: `kept`, or why not.

        `begun_ns`: when its request went to an engine; what was purged since is not kept.
        """

    def unless_purged(
        self, scope: str, key: bytes, answer: KeptAnswer, *, begun_ns: int, tell: Callable[[bool], None]
    ) -> None:
        """Tell, at once or within the budget, whether an answer may be given to those that wait for it.

        False where another service has purged it since `begun_ns`. True where that cannot be asked.
        """

    def took(self, scope: str, key: bytes, gpu_ms: float) -> None:
        """How much of a replica's time an answer took is known."""

    def drop(self, scope: str, key: bytes) -> None:
        """Forget one."""

    def purge(self, orders: Sequence[PurgeOrder]) -> int | Awaitable[int]:
        """Forget what one of the orders means; how many. What cannot be done now is done later, for sure."""

    def expire(self, *, now_ns: int, most: int) -> int:
        """Forget those that are too old, `most` of them; how many."""

    def figures(self) -> StoreFigures:
        """What it holds, as far as it is known now."""

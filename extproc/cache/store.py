"""What is kept of an answer, and the port of whatever keeps it.

Owns the packing: an answer is compressed, and carries its length and whose it is, so that what comes back
from a store is either that answer or refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

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


class AnswerStore(Protocol):
    """Keeps answers by scope and key; no answer is ever found under another scope."""

    def get(self, scope: str, key: bytes, *, now_ns: int) -> KeptAnswer | None:
        """An answer that is kept and not too old; it counts as used now."""

    def put(self, scope: str, key: bytes, answer: KeptAnswer, *, scope_bytes_max: int, now_ns: int) -> bool:
        """Keep an answer, in place of an older one; others go for it. False where it is larger than all."""

    def drop(self, scope: str, key: bytes) -> bool:
        """Forget one; whether it was there."""

    def purge(self, unwanted: Callable[[str, bytes, KeptAnswer], bool]) -> int:
        """Forget every one that is unwanted by its scope, key and itself; how many."""

    def expire(self, *, now_ns: int, most: int) -> int:
        """Forget those that are too old, `most` of them; how many."""

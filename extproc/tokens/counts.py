"""What texts count, by a keyed hash of each: the least recently used go.

Owns the bound on memory. No text is kept: a key is a BLAKE2b of 16 bytes with a key of this process's own, so
that nobody can make two texts that count as one another.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from hashlib import blake2b
from typing import Final

#: What an entry takes, its key, its number and its place in the order (tests/bench/bench_tokens.py).
ENTRY_BYTES: Final = 240
KEY_BYTES: Final = 16


class SegmentCounts:
    """Tokens by key, of at most `bytes_max` bytes."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._keyed = blake2b(digest_size=KEY_BYTES, key=os.urandom(16))
        self._known: OrderedDict[bytes, int] = OrderedDict()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._known)

    @property
    def size(self) -> int:
        """Bytes, as reckoned."""
        return len(self._known) * ENTRY_BYTES

    def key(self, text: str) -> bytes:
        """What a text is known by: about 1 µs, and another for each KB."""
        hashed = self._keyed.copy()
        hashed.update(text.encode("utf-8", "replace"))
        return hashed.digest()

    def get(self, key: bytes) -> int | None:
        """Its tokens; None where they are not known."""
        tokens = self._known.get(key)
        if tokens is not None:
            self._known.move_to_end(key)
        return tokens

    def put(self, key: bytes, tokens: int) -> None:
        """A text was counted."""
        self._known[key] = tokens
        self._known.move_to_end(key)
        while self._known and self.size > self.bytes_max:
            self._known.popitem(last=False)
            self.evicted += 1

    def clear(self) -> None:
        """Another tokenizer counts from now on."""
        self._known.clear()

"""The seal on what rides with a request and comes back: only who made the decision can have made it.

Owns the keys and the form of a sealed text. Whoever reaches the port can send records; without a key none of
them is one of ours.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from hmac import compare_digest

KEY_BYTES = 32
#: Of the keys that were ever learnt the last so many are known: one's own, the peers', those before a change.
KEYS_MAX = 16
#: 128 bits, in hex.
MARK_BYTES, MARK_CHARS = 16, 32
#: What is sealed: a mark on one kind says nothing of another.
TICKET, EVENT = b"ticket", b"event"


class Seal:
    """Seals with the key last learnt, and knows what was sealed with any of them."""

    def __init__(self, keys: Iterable[bytes] = ()) -> None:
        """`keys`: the last of them seals; one made by chance where there is none."""
        self._keys: list[bytes] = []
        for key in keys:
            self.learn(key)
        if not self._keys:
            self.learn(secrets.token_bytes(KEY_BYTES))

    @property
    def key(self) -> bytes:
        """The key that seals."""
        return self._keys[-1]

    def learn(self, key: bytes) -> None:
        """Seal with this one from now on; what was sealed before stays known."""
        if key in self._keys:
            self._keys.remove(key)
        self._keys.append(key)
        del self._keys[:-KEYS_MAX]

    def sealed(self, text: str, kind: bytes) -> str:
        """The text with its mark before it."""
        return _mark(text, kind, self._keys[-1]) + text

    def opened(self, sealed: str, kind: bytes) -> str | None:
        """The text; None when it was not sealed with a key that is known."""
        mark, text = sealed[:MARK_CHARS], sealed[MARK_CHARS:]
        if len(mark) < MARK_CHARS or not mark.isascii():
            return None
        for key in reversed(self._keys):
            if compare_digest(mark, _mark(text, kind, key)):
                return text
        return None


def _mark(text: str, kind: bytes, key: bytes) -> str:
    mark = _keyed(kind, key).copy()
    mark.update(text.encode("utf-8", "surrogatepass"))
    return mark.hexdigest()


@lru_cache(maxsize=4 * KEYS_MAX)
def _keyed(kind: bytes, key: bytes) -> blake2b:
    """A mark's beginning, which is the same for all texts: a third of its cost."""
    return blake2b(digest_size=MARK_BYTES, key=key, person=kind)

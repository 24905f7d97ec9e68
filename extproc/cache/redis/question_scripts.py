"""The scripts in Redis that keep the semantic cache's questions: how they are called, and on which keys.

Owns those keys, all in one slot of a cluster. A scope's name is hashed into them, so that no name can be
another's or a pattern.
"""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from typing import Any, Final

from extproc.cache.purging import PurgeOrder
from extproc.cache.redis.scripts import DIGITS, ScriptBook, read

NAMES: Final = ("keep", "check", "give", "drop", "list", "read")


class QuestionScripts(ScriptBook):
    """The commands that run them, for one prefix; `name` is who says so."""

    def __init__(self, prefix: str, counts: Counter[str], *, name: str) -> None:
        scripts = {each: read("words/common", f"words/{each}") for each in NAMES}
        scripts["purge"] = read("words/common", "note_purge", "words/purge")
        super().__init__(scripts, counts)
        self._root, self._name = f"{{{prefix}:cache:words}}", name
        #: hash: scopes by their hashes. stream: what has changed.
        self.names_key, self.log_key = f"{self._root}:names", f"{self._root}:log"
        self._keys = (f"{self._root}:bytes", self.names_key, f"{self._root}:purges", self.log_key)

    def of(self, name: str, scope: str, *arguments: Any) -> tuple[Any, ...]:
        """The command that runs a script on a scope; "" for none."""
        digits = sha256(scope.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS] if scope else ""
        whose = (self._root, scope.encode("utf-8", "surrogatepass"), digits, self._name)
        return ("EVALSHA", self._scripts[name].sha, len(self._keys), *self._keys, *whose, *arguments)

    def purge(self, order: PurgeOrder) -> tuple[Any, ...]:
        """The command that has no question kept that an order means, of before."""
        shared = "1" if order.shared else ""
        return self.of("purge", "", order.tenant, order.model, order.pool, order.key, shared)

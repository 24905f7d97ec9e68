"""The scripts in Redis that keep answers: how they are called, and on whose keys.

Owns the keys of a scope, in one slot of a cluster, and the texts of lua/. A scope's name is hashed into its
keys, so that no name can be another's, a pattern or a slot's tag.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha1, sha256
from importlib.resources import files
from typing import Any, Final, NamedTuple

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from extproc.cache.purging import AnswerOrigin, PurgeOrder

#: Keys of scopes kept ready; above it they are made anew.
SCOPES_MAX: Final = 100_000
#: Digits of a scope's hash.
DIGITS: Final = 32


class AnswerScript(NamedTuple):
    """A script's text and its SHA-1."""

    text: str
    sha: str


def read(*names: str) -> AnswerScript:
    """The script of these files together, of lua/."""
    folder = files("extproc.cache.redis") / "lua"
    text = "".join((folder / f"{name}.lua").read_text(encoding="utf-8") for name in names)
    return AnswerScript(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


class ScopeMeta(msgspec.Struct):
    """What the index of a scope says of one answer or question. Times in ms by the server's clock."""

    size: int
    born: int
    tenant: str
    model: str
    pool: str
    gpu: float = 0.0
    hits: int = 0

    def origin(self, *, now_ms: int | None = None) -> AnswerOrigin:
        """Whose it is; without the time as if it were of now."""
        age_ms = 0 if now_ms is None else max(0, now_ms - self.born)
        return AnswerOrigin(self.tenant, self.model, self.pool, age_ms * 1_000_000)


_meta = msgspec.msgpack.Decoder(ScopeMeta)


def read_meta(raw: bytes) -> ScopeMeta | None:
    """None for what cannot be read."""
    try:
        return _meta.decode(raw)
    except (msgspec.MsgspecError, ValueError):
        return None


class ScriptBook:
    """Scripts by their names; `counts` counts those that a server had forgotten."""

    def __init__(self, scripts: Mapping[str, AnswerScript], counts: Counter[str]) -> None:
        self._scripts, self._counts = scripts, counts
        self._texts = {each.sha: each.text for each in scripts.values()}

    async def load(self, client: Redis) -> None:
        """Have the server know all of them."""
        for text in self._texts.values():
            await client.script_load(text)

    async def call(self, client: Redis, command: tuple[Any, ...]) -> Any:
        """The answer to one command, whether or not the server knows its script."""
        try:
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]
        except NoScriptError:
            self._counts["script_reloaded"] += 1
            text = self._texts[command[1]]
            return await client.execute_command("EVAL", text, *command[2:])  # type: ignore[no-untyped-call]


class AnswerScripts(ScriptBook):
    """The commands that run the scripts, for one prefix."""

    def __init__(self, prefix: str, counts: Counter[str]) -> None:
        root = f"{{{prefix}:cache}}"
        #: zset: scopes that hold answers or may, by when (s) they are forgotten.
        self.scopes_key = f"{root}:scopes"
        #: hashes: bytes and answers by scope. list: purges, for what is on its way elsewhere.
        self.bytes_key, self.answers_key = f"{root}:bytes", f"{root}:answers"
        self.purges_key = f"{root}:purges"
        self._prefix = prefix
        named = ("keep", "find", "drop", "trim", "took", "since")
        others = {"report": read("report"), "purge": read("common", "note_purge", "purge")}
        super().__init__({name: read("common", name) for name in named} | others, counts)
        self._keys: dict[str, tuple[str, ...]] = {}

    def of(self, name: str, scope: str, *arguments: Any) -> tuple[Any, ...]:
        """The command that runs a script on a scope."""
        *keys, base = self._keys_of(scope)
        return ("EVALSHA", self._scripts[name].sha, len(keys), *keys, base, *arguments)

    def purge(self, scope: str, order: PurgeOrder) -> tuple[Any, ...]:
        """The command that has a scope keep no answer of before that an order means."""
        return self.of("purge", scope, order.tenant, order.model, order.pool, order.key)

    def report(self, told: Sequence[tuple[str, int, int]]) -> tuple[Any, ...]:
        """The command that tells what scopes hold: bytes and answers."""
        flat = [part for each in told for part in each]
        return ("EVALSHA", self._scripts["report"].sha, 2, self.bytes_key, self.answers_key, *flat)

    def meta_key(self, scope: str) -> str:
        """The index of a scope, for who walks it."""
        return self._keys_of(scope)[0]

    def _keys_of(self, scope: str) -> tuple[str, ...]:
        keys = self._keys.get(scope)
        if keys is None:
            if len(self._keys) >= SCOPES_MAX:
                self._keys.clear()
            digits = sha256(scope.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]
            tag = f"{{{self._prefix}:cache:{digits}}}"
            keys = self._keys[scope] = tuple(f"{tag}:{part}" for part in ("m", "u", "x", "p", "a:"))
        return keys

"""What the semantic cache keeps of a question that was answered, and the port of whatever stores it.

Owns the form in which a question and a check are stored: sealed as the response cache's answers are, each in
a place of its own, so that none can stand for another's.
"""

from __future__ import annotations

import struct
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256
from typing import Final, NamedTuple, Protocol

import msgspec

from extproc.cache.purging import PurgeOrder
from extproc.cache.sealed import LENGTH_MAX, AnswerSeal, PoisonedError
from extproc.cache.store import KeptAnswer
from extproc.core.cachekeys import Usage

#: A kept question counts as so many bytes beside its text and its answer: its embedding, and what is noted.
ENTRY_BYTES: Final = 4_096
#: Checks of one entry that are kept for a process that has to learn it anew: the newest.
CHECKS_KEPT: Final = 64
#: Checks of answers that would have been given, of which the share of wrong ones is told.
WINDOW: Final = 1_000
VERSION_BYTES: Final = 12
_CHECK: Final = struct.Struct("<8sQd?")


class SemanticCheck(NamedTuple):
    """One observation: how alike the questions were, and whether their answers were the same.

    `number` is its own, so that it counts once however often it is told.
    """

    number: int
    similarity: float
    same: bool


class SemanticEntry(msgspec.Struct):
    """A question that was answered. Another answer to the same question is another version."""

    scope: str
    frame: bytes
    key: bytes
    text: str
    answer: KeptAnswer
    said: str
    version: bytes
    checks: list[SemanticCheck] = []

    @property
    def size(self) -> int:
        """Bytes that it counts as."""
        return ENTRY_BYTES + len(self.text) + len(self.said) + len(self.answer.packed)

    def note(self, check: SemanticCheck) -> bool:
        """Keep a check; False where it is known."""
        if any(each.number == check.number for each in self.checks):
            return False
        self.checks = [*self.checks[1 - CHECKS_KEPT :], check]
        return True


class SemanticScope(msgspec.Struct):
    """One scope's entries, the least recently used first, and its checks of what would have been given."""

    entries: OrderedDict[int, SemanticEntry] = msgspec.field(default_factory=OrderedDict)
    keys: dict[bytes, int] = {}
    size: int = 0
    window: deque[bool] = msgspec.field(default_factory=lambda: deque(maxlen=WINDOW))
    off: bool = False

    @property
    def sampled(self) -> int:
        """How many of them there are."""
        return len(self.window)

    @property
    def wrong(self) -> int:
        """How many of them were wrong."""
        return self.window.count(False)


class QuestionStore(Protocol):
    """Keeps questions for other services and for the next start. Nothing of it blocks.

    It tells the cache what others keep, check and forget.
    """

    @property
    def connected(self) -> bool:
        """Whether what is known here is what is known to all."""

    def keep(self, entry: SemanticEntry, *, begun_ns: int) -> None:
        """Keep a question, or the younger answer of one; what was purged since `begun_ns` is not kept."""

    def checked(self, entry: SemanticEntry, check: SemanticCheck, *, would: bool) -> None:
        """An answer was checked; `would`: it could have been given."""

    def confirm(self, entry: SemanticEntry, tell: Callable[[bool], None]) -> None:
        """Tell within the budget whether it is still kept: then it may be given, and counts as used."""

    def drop(self, scope: str, keys: Sequence[bytes]) -> None:
        """Forget some."""

    def purge(self, orders: Sequence[PurgeOrder]) -> Awaitable[int]:
        """Forget what one of the orders means, for all; how many."""


class StoredQuestion(msgspec.Struct, array_like=True, frozen=True):
    """What is stored of an entry, but for its checks. `model_id`: whose similarities they are."""

    model_id: str
    scope: str
    key: bytes
    frame: bytes
    version: bytes
    text: str
    said: str
    tenant: str
    model: str
    pool: str
    stream: bool
    length: int
    input_tokens: int
    output_tokens: int
    gpu_ms: float
    ttl_ms: int
    packed: bytes


class QuestionSeal:
    """Writes and reads questions and checks by an answers' seal; `model_id` names what embeds them here."""

    def __init__(self, seal: AnswerSeal, *, model_id: str = "") -> None:
        self.seal, self._model_id = seal, model_id
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(StoredQuestion).decode

    def write(self, entry: SemanticEntry) -> bytes:
        """An entry, but for its checks."""
        answer = entry.answer
        stored = StoredQuestion(
            *(self._model_id, entry.scope, entry.key, entry.frame, entry.version, entry.text, entry.said),
            *(answer.tenant, answer.model, answer.pool, answer.stream, answer.length),
            *(answer.usage.input_tokens, answer.usage.output_tokens, answer.gpu_ms),
            (answer.expires_ns - answer.made_ns) // 1_000_000,
            answer.packed,
        )
        return self.seal.lock(_place("question", entry.scope), entry.key, self._encode(stored))

    def read(self, scope: str, key: bytes, data: bytes, *, made_ns: int) -> SemanticEntry:
        """The entry of a scope and key, made then. Raises PoisonedError."""
        payload = self.seal.unlock(_place("question", scope), key, data)
        try:
            stored = self._decode(payload)
        except (msgspec.MsgspecError, ValueError):
            raise PoisonedError("unreadable") from None
        if (stored.scope, stored.key) != (scope, key):
            raise PoisonedError("another's")
        if stored.model_id != self._model_id:
            raise PoisonedError("model")
        if not (
            0 < stored.length <= LENGTH_MAX and len(stored.version) == VERSION_BYTES and stored.ttl_ms > 0
        ):
            raise PoisonedError("unreadable")
        answer = KeptAnswer(
            packed=stored.packed,
            length=stored.length,
            stream=stored.stream,
            tenant=stored.tenant,
            model=stored.model,
            pool=stored.pool,
            usage=Usage(stored.input_tokens, stored.output_tokens),
            made_ns=made_ns,
            expires_ns=made_ns + stored.ttl_ms * 1_000_000,
            gpu_ms=stored.gpu_ms,
        )
        return SemanticEntry(scope, stored.frame, key, stored.text, answer, stored.said, stored.version)

    def write_check(self, entry: SemanticEntry, check: SemanticCheck) -> bytes:
        """A check of one version of an entry."""
        return self._write_check("check", entry.scope, entry.key + entry.version, check)

    def read_check(self, entry: SemanticEntry, data: bytes) -> SemanticCheck:
        """The same. Raises PoisonedError."""
        return self._read_check("check", entry.scope, entry.key + entry.version, data)

    def write_sample(self, scope: str, check: SemanticCheck) -> bytes:
        """A check of a scope's answers that could have been given."""
        return self._write_check("sample", scope, b"", check)

    def read_sample(self, scope: str, data: bytes) -> SemanticCheck:
        """The same. Raises PoisonedError."""
        return self._read_check("sample", scope, b"", data)

    def _write_check(self, kind: str, scope: str, of: bytes, check: SemanticCheck) -> bytes:
        place, key = _place(kind, scope), sha256(of).digest()
        return self.seal.lock(place, key, _CHECK.pack(_mark(place, key), *check))

    def _read_check(self, kind: str, scope: str, of: bytes, data: bytes) -> SemanticCheck:
        place, key = _place(kind, scope), sha256(of).digest()
        payload = self.seal.unlock(place, key, data)
        if len(payload) != _CHECK.size:
            raise PoisonedError("unreadable")
        mark, *said = _CHECK.unpack(payload)
        check = SemanticCheck(*said)
        if mark != _mark(place, key):
            raise PoisonedError("another's")
        if not -1.01 <= check.similarity <= 1.01:
            raise PoisonedError("unreadable")
        return check


def _place(kind: str, scope: str) -> str:
    """No scope of answers begins so: none of their entries opens here."""
    return f"{kind} of {scope}"


def _mark(place: str, key: bytes) -> bytes:
    """Without encryption a checksum says nothing of whose it is."""
    return sha256(place.encode("utf-8", "surrogatepass") + key).digest()[:8]

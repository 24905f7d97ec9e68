"""How an answer is written where others could reach it: what comes back is that answer, or is refused.

Owns the form of an entry and its encryption. Without keys an entry carries a checksum, which tells damage;
with keys it is encrypted and authentic (AES-256-GCM), and bound to its scope and key.

    b"SA1" b"p" BLAKE2b-64 payload            b"SA1" b"e" key id (4) nonce (12) ciphertext
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING, Final

import msgspec

from extproc.cache.store import KeptAnswer
from extproc.core.cachekeys import Usage

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PLAIN, ENCRYPTED = b"SA1p", b"SA1e"
CHECK_BYTES, KEY_ID_BYTES, NONCE_BYTES = 8, 4, 12
#: Of a key of AES-256.
KEY_BYTES: Final = 32
#: No answer is longer: cache.answer_bytes_max at the most.
LENGTH_MAX: Final = 1024 * 1024


class PoisonedError(ValueError):
    """An entry is not what was written for this scope and key; `reason` is one word."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"a kept answer is refused: {reason}")
        self.reason = reason


class WrittenAnswer(msgspec.Struct, array_like=True, frozen=True):
    """What an entry holds."""

    scope: str
    key: bytes
    tenant: str
    model: str
    pool: str
    stream: bool
    length: int
    input_tokens: int
    output_tokens: int
    packed: bytes


class AnswerSeal:
    """Writes and reads entries; the first of `keys` (32 bytes each) encrypts, each of them decrypts.

    With keys, what is not encrypted is refused: otherwise whoever can write there would need none.
    """

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._ciphers: dict[bytes, AESGCM] = {}
        self._first = b""
        if keys:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            named = {sha256(b"steersman answers\n" + key).digest()[:KEY_ID_BYTES]: key for key in keys}
            self._first = next(iter(named))
            self._ciphers = {name: AESGCM(key) for name, key in named.items()}
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(WrittenAnswer).decode

    def write(self, scope: str, key: bytes, answer: KeptAnswer) -> bytes:
        """An entry; `answer` as it is kept."""
        said = WrittenAnswer(
            scope,
            key,
            answer.tenant,
            answer.model,
            answer.pool,
            answer.stream,
            answer.length,
            answer.usage.input_tokens,
            answer.usage.output_tokens,
            answer.packed,
        )
        return self.lock(scope, key, self._encode(said))

    @property
    def encrypts(self) -> bool:
        """Whether it has keys."""
        return bool(self._first)

    def lock(self, scope: str, key: bytes, payload: bytes) -> bytes:
        """Any entry of a scope and a key of 32 bytes."""
        if not self._first:
            return PLAIN + _check(payload) + payload
        nonce = os.urandom(NONCE_BYTES)
        head = ENCRYPTED + self._first
        text = self._ciphers[self._first].encrypt(nonce, payload, _bound(head, scope, key))
        return head + nonce + text

    def read(self, scope: str, key: bytes, entry: bytes) -> KeptAnswer:
        """The answer in an entry, with no times. Raises PoisonedError."""
        payload = self.unlock(scope, key, entry)
        try:
            said = self._decode(payload)
        except (msgspec.MsgspecError, ValueError):
            raise PoisonedError("unreadable") from None
        if said.scope != scope or said.key != key:
            raise PoisonedError("another's")
        if not 0 < said.length <= LENGTH_MAX:
            raise PoisonedError("unreadable")
        return KeptAnswer(
            packed=said.packed,
            length=said.length,
            stream=said.stream,
            tenant=said.tenant,
            model=said.model,
            pool=said.pool,
            usage=Usage(said.input_tokens, said.output_tokens),
            made_ns=0,
            expires_ns=0,
        )

    def unlock(self, scope: str, key: bytes, entry: bytes) -> bytes:
        """What was locked for this scope and key. Raises PoisonedError."""
        head, rest = entry[:4], entry[4:]
        if not self._ciphers:
            if head == ENCRYPTED:
                raise PoisonedError("encrypted")
            payload = rest[CHECK_BYTES:]
            if head != PLAIN or rest[:CHECK_BYTES] != _check(payload):
                raise PoisonedError("damaged")
            return payload
        if head != ENCRYPTED:
            raise PoisonedError("unencrypted" if head == PLAIN else "damaged")
        from cryptography.exceptions import InvalidTag

        name = rest[:KEY_ID_BYTES]
        cipher = self._ciphers.get(name)
        if cipher is None:
            raise PoisonedError("key")
        nonce, text = rest[KEY_ID_BYTES : KEY_ID_BYTES + NONCE_BYTES], rest[KEY_ID_BYTES + NONCE_BYTES :]
        try:
            return cipher.decrypt(nonce, text, _bound(head + name, scope, key))
        except (InvalidTag, ValueError):
            raise PoisonedError("damaged") from None


def _check(payload: bytes) -> bytes:
    return blake2b(payload, digest_size=CHECK_BYTES).digest()


def _bound(head: bytes, scope: str, key: bytes) -> bytes:
    """What is authentic beside the text. A key has 32 bytes, so that no two scopes and keys are one."""
    return head + key + scope.encode()

"""What one site signs and another verifies: JSON Web Signatures (RFC 7515, compact).

Owns the form and the keys: HMAC-SHA-256 with a secret that both sites have (HS256), or Ed25519 with a private
key that never leaves its site (EdDSA, RFC 8037). A key has one algorithm: what a token says of it is compared
and never obeyed, so that nobody can sign by HMAC with a public key as the secret. `kind` (the header's `typ`)
keeps what is signed for one purpose from being taken for another.
"""

from __future__ import annotations

import hmac
import re
from base64 import b64decode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

#: A key's id, and the fewest characters of its secret: 128 bits in hex.
KEY_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
SECRET_CHARS_MIN: Final = 32
#: Keys of one file: the one that signs, the one before, the one to come, and then some.
KEYS_MAX: Final = 8
#: A key's line is no longer.
SECRET_CHARS_MAX: Final = 1_024
#: An Ed25519 key, private or public.
ED25519_BYTES: Final = 32
#: Keys of Ed25519 kept ready to use: of 64 peers, each with as many as it may have.
READY_MAX: Final = 64 * KEYS_MAX


class KeyKind(Enum):
    """What a key is, by the word before it in its file; "" is a secret that both sites have."""

    SHARED = ""
    PRIVATE = "ed25519-private"
    PUBLIC = "ed25519-public"


class SiteKey(NamedTuple):
    """A key by its id: a shared secret, or the 32 bytes of an Ed25519 key. Never shown."""

    id: str
    secret: bytes
    kind: KeyKind = KeyKind.SHARED

    def __repr__(self) -> str:
        return f"SiteKey({self.id!r})"

    @property
    def algorithm(self) -> str:
        """The only one that it is used with, as tokens call it."""
        return "HS256" if self.kind is KeyKind.SHARED else "EdDSA"

    @property
    def signs(self) -> bool:
        """Whether this site can sign with it."""
        return self.kind is not KeyKind.PUBLIC

    @property
    def verifies(self) -> bool:
        """Whether what the other site signs is known by it."""
        return self.kind is not KeyKind.PRIVATE


class Untrusted(Exception):  # noqa: N818 (it says of what came that it is)
    """What came is not to be believed; the text says why, without any of it."""


class _Header(msgspec.Struct):
    alg: str
    kid: str
    typ: str


_headers = msgspec.json.Decoder(_Header)


def read_keys(text: str) -> tuple[SiteKey, ...]:
    """The keys of a file: 'ID SECRET', 'ID ed25519-private KEY' or 'ID ed25519-public KEY' a line; '#' begins
    a comment. One at least signs, and one verifies. Raises ValueError."""
    keys: list[SiteKey] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        kinds = [kind for kind in KeyKind if kind.value == (words[1] if len(words) == 3 else "")]
        if len(words) not in (2, 3) or not kinds or KEY_ID.fullmatch(words[0]) is None:
            raise ValueError(
                f"line {number} is not 'ID SECRET', such as '2026-11 ' and openssl's word, nor "
                "'ID ed25519-private KEY' or 'ID ed25519-public KEY'"
            )
        name, secret = words[0], words[-1]
        if any(name == key.id for key in keys):
            raise ValueError(f"key {name!r} stands there twice (line {number}); remove one")
        value = _shared(name, secret, number) if kinds[0] is KeyKind.SHARED else _pair(name, secret, number)
        keys.append(SiteKey(name, value, kinds[0]))
    if not keys:
        raise ValueError("holds no key; write 'ID SECRET' lines, the secret from 'openssl rand -hex 32'")
    if len(keys) > KEYS_MAX:
        raise ValueError(f"holds {len(keys)} keys; at most {KEYS_MAX} are read: remove the oldest")
    if not any(key.signs for key in keys):
        raise ValueError("holds no key to sign with; add this site's 'ID ed25519-private KEY'")
    if not any(key.verifies for key in keys):
        raise ValueError("holds no key of the other site; add its 'ID ed25519-public KEY'")
    return tuple(keys)


def signing_key(keys: Sequence[SiteKey]) -> SiteKey:
    """The first of a file's keys that signs."""
    return next(key for key in keys if key.signs)


def _shared(name: str, secret: str, number: int) -> bytes:
    """Raises ValueError."""
    if not SECRET_CHARS_MIN <= len(secret) <= SECRET_CHARS_MAX or not secret.isascii():
        raise ValueError(
            f"the secret of key {name!r} (line {number}) has not {SECRET_CHARS_MIN} to "
            f"{SECRET_CHARS_MAX} ASCII characters; make one with 'openssl rand -hex 32'"
        )
    return secret.encode()


def _pair(name: str, text: str, number: int) -> bytes:
    """Raises ValueError."""
    try:
        value = b64decode(text.encode("ascii"), validate=True)
    except ValueError:
        value = b""
    if len(value) != ED25519_BYTES:
        raise ValueError(
            f"key {name!r} (line {number}) is not {ED25519_BYTES} bytes in base64; docs/sites.md says how "
            "openssl makes a pair"
        )
    return value


def sign(claims: msgspec.Struct, key: SiteKey, *, kind: str) -> str:
    """The claims as a token of a kind."""
    header = _encoded(msgspec.json.encode({"alg": key.algorithm, "kid": key.id, "typ": kind}))
    signed = header + b"." + _encoded(msgspec.json.encode(claims))
    private = key.kind is KeyKind.PRIVATE
    mark = _private(key.secret).sign(signed) if private else hmac.digest(key.secret, signed, sha256)
    return (signed + b"." + _encoded(mark)).decode()


def verify(
    token: str, keys: Mapping[str, tuple[str, SiteKey]], *, kind: str, bytes_max: int
) -> tuple[str, bytes]:
    """Whose key signed a token, and what it claims, as JSON. `keys` are (owner, key) by the keys' ids.

    Raises Untrusted. What is in it was read by nobody before its mark was found right.
    """
    if len(token) > bytes_max:
        raise Untrusted(f"it has more than {bytes_max} bytes")
    signed, _, mark = token.rpartition(".")
    first, dot, claims = signed.partition(".")
    try:
        header = _headers.decode(_decoded(first))
        given = _decoded(mark)
        payload = _decoded(claims)
    except (ValueError, RecursionError) as error:
        raise Untrusted("it is no signed token") from error
    if not dot or header.typ != kind:
        raise Untrusted(f"it is no token of kind {kind}")
    found = keys.get(header.kid)
    if found is None:
        raise Untrusted("its key is unknown here")
    owner, key = found
    if header.alg != key.algorithm:
        raise Untrusted("it names another algorithm than its key's")
    if not _made(signed.encode(), given, key):
        raise Untrusted("its signature is wrong")
    return owner, payload


def by_id(keys: Mapping[str, Sequence[SiteKey]]) -> dict[str, tuple[str, SiteKey]]:
    """The keys that verify what each site says, by their ids. Raises ValueError where two sites have the same
    id or secret. One private key of this site may sign for several: each token names one of them."""
    found: dict[str, tuple[str, SiteKey]] = {}
    secrets: dict[bytes, str] = {}
    for site, all_of_it in keys.items():
        each = [key for key in all_of_it if key.verifies]
        for key in each:
            if key.id in found:
                raise ValueError(
                    f"key {key.id!r} is of site {found[key.id][0]!r} and of {site!r}; rename one"
                )
            if (other := secrets.get(key.secret)) is not None:
                raise ValueError(
                    f"sites {other!r} and {site!r} share a secret, so that each could speak for the other; "
                    "give each pair of sites its own"
                )
            found[key.id] = (site, key)
        secrets |= {key.secret: site for key in each}
    return found


def _made(signed: bytes, mark: bytes, key: SiteKey) -> bool:
    """Whether a key, or its private half, made this mark."""
    if key.kind is KeyKind.SHARED:
        return hmac.compare_digest(mark, hmac.digest(key.secret, signed, sha256))
    from cryptography.exceptions import InvalidSignature

    try:
        _public(key.secret).verify(mark, signed)
    except InvalidSignature:
        return False
    return True


# Of the extra `encryption`: whoever reads a file of keys says where it is missing.
@lru_cache(READY_MAX)
def _private(seed: bytes) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(seed)


@lru_cache(READY_MAX)
def _public(point: bytes) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(point)


def _encoded(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")


def _decoded(text: str) -> bytes:
    """Raises ValueError."""
    data = text.encode("ascii")
    decoded = urlsafe_b64decode(data + b"=" * (-len(data) % 4))
    # One form for one value: what another spelling decodes to is not taken.
    if _encoded(decoded) != data:
        raise ValueError("no base64url")
    return decoded

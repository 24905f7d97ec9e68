"""What one site signs and another verifies: JSON Web Signatures (RFC 7515, compact) by HMAC-SHA-256.

Owns the form and the keys. Two sites share a file of keys; the first signs, each of them is taken. The
algorithm is fixed: what a token says of it is compared and never obeyed. `kind` (the header's `typ`) keeps
what is signed for one purpose from being taken for another.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Final, NamedTuple

import msgspec

#: A key's id, and the fewest characters of its secret: 128 bits in hex.
KEY_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
SECRET_CHARS_MIN: Final = 32
#: Keys of one file: the one that signs, the one before, the one to come, and then some.
KEYS_MAX: Final = 8
#: A key's line is no longer.
SECRET_CHARS_MAX: Final = 1_024
_ALGORITHM: Final = "HS256"


class SiteKey(NamedTuple):
    """A key by its id. Never shown."""

    id: str
    secret: bytes

    def __repr__(self) -> str:
        return f"SiteKey({self.id!r})"


class Untrusted(Exception):  # noqa: N818 (it says of what came that it is)
    """What came is not to be believed; the text says why, without any of it."""


class _Header(msgspec.Struct):
    alg: str
    kid: str
    typ: str


_headers = msgspec.json.Decoder(_Header)


def read_keys(text: str) -> tuple[SiteKey, ...]:
    """The keys of a file: 'ID SECRET' a line, the first signs; '#' begins a comment. Raises ValueError."""
    keys: list[SiteKey] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or KEY_ID.fullmatch(words[0]) is None:
            raise ValueError(f"line {number} is not 'ID SECRET', such as '2026-11 ' and openssl's word")
        name, secret = words
        if not SECRET_CHARS_MIN <= len(secret) <= SECRET_CHARS_MAX or not secret.isascii():
            raise ValueError(
                f"the secret of key {name!r} (line {number}) has not {SECRET_CHARS_MIN} to "
                f"{SECRET_CHARS_MAX} ASCII characters; make one with 'openssl rand -hex 32'"
            )
        if any(name == key.id for key in keys):
            raise ValueError(f"key {name!r} stands there twice (line {number}); remove one")
        keys.append(SiteKey(name, secret.encode()))
    if not keys:
        raise ValueError("holds no key; write 'ID SECRET' lines, the secret from 'openssl rand -hex 32'")
    if len(keys) > KEYS_MAX:
        raise ValueError(f"holds {len(keys)} keys; at most {KEYS_MAX} are read: remove the oldest")
    return tuple(keys)


def sign(claims: msgspec.Struct, key: SiteKey, *, kind: str) -> str:
    """The claims as a token of a kind."""
    header = _encoded(msgspec.json.encode({"alg": _ALGORITHM, "kid": key.id, "typ": kind}))
    signed = header + b"." + _encoded(msgspec.json.encode(claims))
    return (signed + b"." + _encoded(_mark(signed, key))).decode()


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
    if not dot or header.alg != _ALGORITHM or header.typ != kind:
        raise Untrusted(f"it is no token of kind {kind}")
    found = keys.get(header.kid)
    if found is None:
        raise Untrusted("its key is unknown here")
    owner, key = found
    if not hmac.compare_digest(given, _mark(signed.encode(), key)):
        raise Untrusted("its signature is wrong")
    return owner, payload


def by_id(keys: Mapping[str, Sequence[SiteKey]]) -> dict[str, tuple[str, SiteKey]]:
    """Each site's keys by their ids. Raises ValueError where two sites have the same id or secret."""
    found: dict[str, tuple[str, SiteKey]] = {}
    secrets: dict[bytes, str] = {}
    for site, each in keys.items():
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


def _mark(signed: bytes, key: SiteKey) -> bytes:
    return hmac.digest(key.secret, signed, sha256)


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

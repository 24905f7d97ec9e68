"""What the tests of sites share: a site's word, and pairs of keys."""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from extproc.core.remote.digest import SIZES, Digest, PoolWord
from extproc.core.remote.signing import KeyKind, SiteKey

WORD = PoolWord(
    models=("m", "big"), ready=1, room=4, begins_ms=0.0, first_ms=(20.0,) * len(SIZES), token_ms=5.0
)
HUB = Digest(iss="hub", aud="shop", nonce="q1", at=1.0, pools=(WORD,))


def word(**facts: Any) -> PoolWord:
    """A pool's word with other facts."""
    return PoolWord(**{**{name: getattr(WORD, name) for name in WORD.__struct_fields__}, **facts})


def pair(name: str, seed: bytes) -> tuple[SiteKey, SiteKey]:
    """An Ed25519 key of 32 bytes, and its public half."""
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    return SiteKey(name, seed, KeyKind.PRIVATE), SiteKey(name, public, KeyKind.PUBLIC)

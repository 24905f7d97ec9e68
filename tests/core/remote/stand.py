"""What the tests of sites share: a site's word."""

from __future__ import annotations

from typing import Any

from extproc.core.remote.digest import SIZES, Digest, PoolWord

WORD = PoolWord(
    models=("m", "big"), ready=1, room=4, begins_ms=0.0, first_ms=(20.0,) * len(SIZES), token_ms=5.0
)
HUB = Digest(iss="hub", aud="shop", nonce="q1", at=1.0, pools=(WORD,))


def word(**facts: Any) -> PoolWord:
    """A pool's word with other facts."""
    return PoolWord(**{**{name: getattr(WORD, name) for name in WORD.__struct_fields__}, **facts})

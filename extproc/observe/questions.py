"""Which requests of a record are equal, by a keyed hash; nothing else of them is told.

Owns what counts as equal: the same tenant, model, route and body, as the response cache takes them
(core/cachekeys), and why a request would not be cached.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from typing import Any, Final

from extproc.core.cachekeys import CACHED_KINDS, Uncanonical, Unfit, canonical, unfit
from extproc.core.request import Request

#: Hexadecimal digits of a question: among a million different ones, two are alike at 3 in 10⁸.
QUESTION_DIGITS: Final = 16
#: A larger request is not looked at, as the cache does by default.
QUESTION_BYTES_MAX: Final = 256 * 1024


class QuestionHash:
    """Hashes with a key of this process's own, written nowhere: nobody can try guesses of prompts."""

    def __init__(self) -> None:
        self._keyed = blake2b(digest_size=QUESTION_DIGITS // 2, key=os.urandom(16))

    def __call__(self, request: Request, body: bytes, tenant: str) -> str:
        """`HASH`, or `HASH:` and why it is not cached, by commas; "" where it cannot be told.

        Some 50 µs for 10 KB.
        """
        if request.kind not in CACHED_KINDS or len(body) > QUESTION_BYTES_MAX:
            return ""
        try:
            value, text = canonical(body)
        except Uncanonical:
            return ""
        hashed = self._keyed.copy()
        for part in (tenant, request.model or "", request.kind.value, str(request.stream)):
            each = part.encode("utf-8", "replace")
            hashed.update(len(each).to_bytes(4, "little") + each)
        hashed.update(text)
        why = ",".join(_unfit(request, value, text))
        return f"{hashed.hexdigest()}:{why}" if why else hashed.hexdigest()


def _unfit(request: Request, value: dict[str, Any], text: bytes) -> list[str]:
    """All that stands against its being cached: what a tenant may set aside, and at last what it may not."""
    found: list[str] = []
    sampled = tools = False
    while (why := unfit(request, value, text, sampled=sampled, tools=tools)) is not None:
        found.append(why.value)
        sampled, tools = sampled or why is Unfit.SAMPLED, tools or why is Unfit.TOOLS
        if why not in (Unfit.SAMPLED, Unfit.TOOLS):
            break
    return found

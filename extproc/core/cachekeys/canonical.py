"""One spelling for all JSON texts that say the same: keys sorted, blanks gone, nothing left out.

Owns what has no such spelling. A text that engines may read in two ways (a name twice in one object) is none,
or one who shares a cache could put an answer under another's question.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec


class Uncanonical(ValueError):  # noqa: N818 (a fact about a text, not a fault)
    """The text has no one reading."""


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Uncanonical("a number is out of range")
    return value


_decode = msgspec.json.Decoder(float_hook=_finite).decode
_encode = msgspec.json.Encoder(order="sorted").encode


def canonical(body: bytes) -> tuple[dict[str, Any], bytes]:
    """The object in a body, and its one spelling (UTF-8). Raises Uncanonical.

    1 and 1.0 stay apart, as some engines take only one of them; 0.10 and 0.1 are one number to all.
    """
    try:
        value = _decode(body)
        if not isinstance(value, dict):
            raise Uncanonical("the body is no object")
        text = _encode(value)
    except (ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        if isinstance(error, Uncanonical):
            raise
        raise Uncanonical(str(error)[:100]) from None
    if _quotes(body) != _quotes(text):
        raise Uncanonical("a name stands twice in one object")
    return value, text


def _quotes(text: bytes) -> int:
    r"""A number that falls with each text that is lost between two spellings of the same.

    Quotes, less those behind a backslash: each text counts 2, or 1 where its spelling ends in a backslash
    (`\\"`). Of a name that stands twice the decoder keeps the last, so that at least one text is lost. What
    is kept never counts more in our spelling, which always writes a backslash as one: where it counts less
    (`\u005c"`), the body is refused though it holds no name twice, which costs a look into the cache.
    """
    quotes = text.count(b'"')
    # The look for one byte is much faster, and most texts have none.
    return quotes - text.count(b'\\"') if b"\\" in text else quotes

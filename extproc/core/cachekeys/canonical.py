"""One spelling for all JSON texts that say the same: keys sorted, blanks gone, nothing left out.

Owns what has no such spelling. A text that engines may read in two ways (a name twice in one object) is none,
or one who shares a cache could put an answer under another's question.
"""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec


class Uncanonical(ValueError):  # noqa: N818 (a fact about a text, not a fault)
    """The text has no one reading."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Uncanonical("a name stands twice in one object")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Uncanonical("a number is out of range")
    return value


def _constant(name: str) -> Any:
    raise Uncanonical(f"{name} is no JSON")


_decode = json.JSONDecoder(object_pairs_hook=_once, parse_float=_finite, parse_constant=_constant).decode
_encode = msgspec.json.Encoder(order="sorted").encode


def canonical(body: bytes) -> tuple[dict[str, Any], bytes]:
    """The object in a body, and its one spelling (UTF-8). Raises Uncanonical.

    1 and 1.0 stay apart, as some engines take only one of them; 0.10 and 0.1 are one number to all.
    """
    try:
        value = _decode(body.decode())
        if not isinstance(value, dict):
            raise Uncanonical("the body is no object")
        return value, _encode(value)
    except (ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, Uncanonical):
            raise
        raise Uncanonical(str(error)[:100]) from None

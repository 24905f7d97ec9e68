"""What a body may hold, looked at before anything is built of it.

A body of the allowed size can hold a million objects, and each costs far more to build than to send: one
connection could stop everybody's decisions. Owns the bounds and the count, by passes in C over the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from extproc.core.errors import Error
from extproc.core.outcome import Reject

#: What makes a body dear to read: objects, lists and fields.
_PIECES = b"{[:"
#: So many pieces are looked for one by one, before all are counted.
FEW = 2_048
#: Escaped quotes and backslashes that are looked through for what stands outside of strings; and strings,
#: where the bound on pieces allows no more.
ESCAPES_MAX, STRINGS_MIN = 500_000, 32_768


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyBounds:
    """`pieces_max` objects, lists and fields in all; `messages_max` messages and parts of messages."""

    pieces_max: int = 32_768
    messages_max: int = 8_192


BOUNDS = BodyBounds()


def too_many(what: str, most: int) -> Reject:
    """A body of too many pieces."""
    return Error.BODY_TOO_LARGE.reject(f"the body has too many {what}; at most {most} are read")


def _few(body: bytes, most: int) -> bool:
    """Whether there are so few pieces, text included: by leaps from one to the next, ten times as fast as a
    pass over each byte where a body is mostly prose."""
    for piece in _PIECES:
        at = body.find(piece)
        while at >= 0:
            most -= 1
            if most < 0:
                return False
            at = body.find(piece, at + 1)
    return True


def refused_unread(body: bytes, bounds: BodyBounds) -> Reject | None:
    """Why a body is not read at all; None for one that may be.

    Costs about 1 ms a MiB, and a few times that where the text itself is full of brackets and colons.
    """
    # The usual body: few enough, whatever of them is text.
    if _few(body, min(FEW, bounds.pieces_max)):
        return None
    if len(body) - len(body.translate(None, _PIECES)) <= bounds.pieces_max:
        return None
    if b"\\" in body:
        # Taken out, so many at most: by how much it is shorter tells how many there were, in one pass each.
        size = len(body)
        body = body.replace(b"\\\\", b"", ESCAPES_MAX + 1).replace(b'\\"', b"", ESCAPES_MAX + 1)
        if size - len(body) > 2 * ESCAPES_MAX:
            return too_many("escaped quotes and backslashes", ESCAPES_MAX)
    # The quotes that are left begin and end strings. A field has no more than two.
    strings_max = max(2 * bounds.pieces_max, STRINGS_MIN)
    if body.count(b'"') > 2 * strings_max:
        return too_many("strings", strings_max)
    # Every second piece stands outside of one. Of what is no JSON this is anything: the decoder says so.
    outside = b"".join(body.split(b'"')[::2])
    if sum(map(outside.count, (b"{", b"[", b":"))) > bounds.pieces_max:
        return too_many("objects, lists and fields", bounds.pieces_max)
    return None

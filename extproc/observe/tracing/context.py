"""W3C trace context: whose trace a request belongs to.

Owns the reading of `traceparent` and `tracestate` (https://www.w3.org/TR/trace-context/, level 1). What is
malformed is as good as absent: a trace is never worth a request.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
#: A longer tracestate is dropped, as the recommendation allows; the trace goes on without.
STATE_CHARACTERS_MAX = 512
#: `00-`, 32 digits, `-`, 16 digits, `-`, 2 digits.
_LENGTH = 55
_DIGITS = frozenset("0123456789abcdef")
_SAMPLED = 1


class Parent(NamedTuple):
    """The span that a request comes from: ids as integers, the sampled flag, the vendors' state."""

    trace_id: int
    span_id: int
    sampled: bool
    state: str = ""


def parse(traceparent: str, tracestate: str = "") -> Parent | None:
    """A parent; None where the header is none, or names no span."""
    if (
        len(traceparent) < _LENGTH
        or traceparent[2] != "-"
        or traceparent[35] != "-"
        or traceparent[52] != "-"
    ):
        return None
    version, trace, span, flags = traceparent[:2], traceparent[3:35], traceparent[36:52], traceparent[53:55]
    # A later version may go on behind a dash; this one may not.
    if len(traceparent) > _LENGTH and (version == "00" or traceparent[_LENGTH] != "-"):
        return None
    if version == "ff" or not _DIGITS.issuperset(version + trace + span + flags):
        return None
    trace_id, span_id = int(trace, 16), int(span, 16)
    if not trace_id or not span_id:
        return None
    state = tracestate if len(tracestate) <= STATE_CHARACTERS_MAX and tracestate.isascii() else ""
    return Parent(trace_id, span_id, bool(int(flags, 16) & _SAMPLED), state)


def parent_of(metadata: Iterable[tuple[str, str | bytes]]) -> Parent | None:
    """The parent that a gRPC call's metadata names, if any."""
    traceparent = tracestate = ""
    for name, value in metadata:
        if name == TRACEPARENT and isinstance(value, str):
            traceparent = value
        elif name == TRACESTATE and isinstance(value, str):
            tracestate = f"{tracestate},{value}" if tracestate else value
    return parse(traceparent, tracestate) if traceparent else None


def write(trace_id: int, span_id: int, *, sampled: bool) -> str:
    """A traceparent header."""
    return f"00-{trace_id:032x}-{span_id:016x}-0{int(sampled)}"

"""Usage asked of an engine in the client's name, and what must be taken out of the answer again.

Owns when it is asked for and how the body says so. Taking it out again is Envoy's script's.
"""

from __future__ import annotations

from typing import Final

import msgspec

from extproc.core.fleet import Pool
from extproc.core.request import RouteKind, UsageAsked
from extproc.engines import traits_of

#: A body above this goes on as it came: its stream is estimated.
BODY_BYTES_MAX: Final = 64 * 1024
#: What is taken out again: the event that holds usage alone, and the usage of those that hold a choice.
LAST, EVERY = "last", "every"

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_options = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)
_TRUE = msgspec.Raw(b"true")
_NAME = b'"stream_options"'


def wanted(pool: Pool, kind: RouteKind, asked: UsageAsked) -> str:
    """What is asked for that the client did not ask for: "", LAST, EVERY or both with a blank.

    The last event's usage always; every event's where the pool's answers were not yet learned, or hold tokens
    in a way that events and bytes do not tell.
    """
    if not pool.ask_usage or asked in (UsageAsked.NO_STREAM, UsageAsked.EACH):
        return ""
    engine = traits_of(pool.engine)
    if kind is RouteKind.COMPLETION and engine.usage_in_completions:
        return ""
    words = [LAST] if asked is UsageAsked.NONE else []
    if engine.usage_each and not pool.calibration.meters.streamed(kind.value).sure:
        words.append(EVERY)
    return " ".join(words)


def onward(
    kept: bytes, body: bytes | None, pool: Pool, kind: RouteKind, asked: UsageAsked
) -> tuple[str, bytes | None]:
    """What is asked for in the client's name, and the body that asks for it: `body`, else the `kept` one."""
    words = wanted(pool, kind, asked)
    if words:
        try:
            return words, with_usage(body or kept, every=EVERY in words)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # what we cannot write goes on as it came
    return "", body


def with_usage(body: bytes, *, every: bool) -> bytes:
    """A JSON object's bytes with usage asked for; everything else stays to the letter.

    Raises msgspec.DecodeError on what is no object, and on options that are none.
    """
    if _NAME not in body:
        at = body.index(b"{") + 1
        options = b'{"include_usage":true%s}' % (b',"continuous_usage_stats":true' if every else b"")
        return b"%b%b:%b,%b" % (body[:at], _NAME, options, body[at:])
    fields = _fields.decode(body)
    told = _options.decode(fields.get("stream_options", msgspec.Raw(b"null"))) or {}
    told["include_usage"] = _TRUE
    if every:
        told["continuous_usage_stats"] = _TRUE
    fields["stream_options"] = msgspec.Raw(msgspec.json.encode(told))
    return msgspec.json.encode(fields)

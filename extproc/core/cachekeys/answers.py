"""Whether an answer is whole and good, so that it may be given again.

Owns the ends of each dialect: what an engine says last when nothing went wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Final

import msgspec

from extproc.core.cachekeys.eligible import TGI_KINDS
from extproc.core.cachekeys.values import Usage, WantedAnswer

#: How an answer ends well. Others are filters, faults, or words that nobody has told us of.
GOOD_ENDS: Final = frozenset({"stop", "length", "eos", "eos_token", "stop_sequence"})
TOOL_ENDS: Final = frozenset({"tool_calls", "function_call"})
DONE: Final = b"[DONE]"


class Wrong(Enum):
    """Why an answer is not kept."""

    UNREADABLE = "unreadable"
    ERROR = "error"
    CUT = "cut"
    EMPTY = "empty"
    REFUSED = "refused"
    UNCOUNTED = "uncounted"


class _WrongError(Exception):
    def __init__(self, wrong: Wrong) -> None:
        self.wrong = wrong


def judge(body: bytes, wanted: WantedAnswer) -> Usage | Wrong:
    """What an answer's usage is, or why it is not kept. `body` is all that came, headers apart."""
    try:
        if wanted.kind in TGI_KINDS:
            usage = _tgi_stream(body, wanted) if wanted.stream else _tgi_whole(body, wanted)
        else:
            usage = _stream(body, wanted) if wanted.stream else _whole(body, wanted)
    except _WrongError as error:
        return error.wrong
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Wrong.UNREADABLE
    if usage is None:
        return Wrong.UNCOUNTED if wanted.counts else Usage()
    return usage


def _object(raw: bytes) -> Mapping[str, Any]:
    value = msgspec.json.decode(raw)
    if not isinstance(value, dict):
        raise _WrongError(Wrong.UNREADABLE)
    if value.get("error") is not None or value.get("object") == "error" or "error_type" in value:
        raise _WrongError(Wrong.ERROR)
    return value


def _ended(choice: Mapping[str, Any], wanted: WantedAnswer) -> bool:
    """Whether a choice says how it ended, and well. Raises _WrongError where it did not end well."""
    finish = choice.get("finish_reason")
    if finish is None:
        return False
    if finish in GOOD_ENDS or (wanted.tools and finish in TOOL_ENDS):
        return True
    raise _WrongError(Wrong.REFUSED)


def _said(holder: Any, wanted: WantedAnswer) -> bool:
    """Whether a message or delta holds output; a refusal is none."""
    if not isinstance(holder, dict):
        return False
    if holder.get("refusal"):
        raise _WrongError(Wrong.REFUSED)
    calls = holder.get("tool_calls") or holder.get("function_call")
    if calls and not wanted.tools:
        raise _WrongError(Wrong.REFUSED)
    return bool(holder.get("content") or calls)


def _usage(value: Mapping[str, Any]) -> Usage | None:
    usage = value.get("usage")
    if not isinstance(usage, dict):
        return None
    return Usage(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else 0


def _choice(value: Mapping[str, Any], *, most: int = 1) -> Mapping[str, Any] | None:
    choices = value.get("choices")
    if not isinstance(choices, list) or len(choices) > most:
        raise _WrongError(Wrong.UNREADABLE)
    if not choices:
        return None
    if not isinstance(choices[0], dict):
        raise _WrongError(Wrong.UNREADABLE)
    return choices[0]


def _whole(body: bytes, wanted: WantedAnswer) -> Usage | None:
    value = _object(body)
    choice = _choice(value)
    if choice is None or not (choice.get("text") or _said(choice.get("message"), wanted)):
        raise _WrongError(Wrong.EMPTY)
    if not _ended(choice, wanted):
        raise _WrongError(Wrong.CUT)
    return _usage(value)


def _events(body: bytes) -> Iterator[bytes]:
    """The data of each event; what is no event, no comment and no blank line is not what engines send."""
    if not body.endswith((b"\n\n", b"\r\n\r\n")):
        raise _WrongError(Wrong.CUT)
    for line in body.split(b"\n"):
        line = line.rstrip(b"\r")
        if line.startswith(b"data:"):
            yield line[5:].strip()
        elif line.startswith(b"error:"):
            raise _WrongError(Wrong.ERROR)
        elif line and not line.startswith((b":", b"event:", b"id:", b"retry:")):
            raise _WrongError(Wrong.UNREADABLE)


def _stream(body: bytes, wanted: WantedAnswer) -> Usage | None:
    said = ended = done = False
    usage: Usage | None = None
    for data in _events(body):
        if done:
            raise _WrongError(Wrong.UNREADABLE)
        if data == DONE:
            done = True
            continue
        value = _object(data)
        usage = _usage(value) or usage
        choice = _choice(value)
        if choice is None:
            continue
        said = bool(choice.get("text")) or _said(choice.get("delta"), wanted) or said
        ended = _ended(choice, wanted) or ended
    if not (done and ended):
        raise _WrongError(Wrong.CUT)
    if not said:
        raise _WrongError(Wrong.EMPTY)
    return usage


def _details(details: Any, wanted: WantedAnswer) -> Usage | None:
    """The counts and the end in TGI's details, where it tells any."""
    if not isinstance(details, dict):
        return None
    if not _ended(details, wanted):
        raise _WrongError(Wrong.CUT)
    prefill = details.get("prefill")
    read = details.get("input_length")
    tokens_in = _count(read) or (len(prefill) if isinstance(prefill, list) else 0)
    return Usage(tokens_in, _count(details.get("generated_tokens")))


def _tgi_whole(body: bytes, wanted: WantedAnswer) -> Usage | None:
    value = msgspec.json.decode(body)
    if isinstance(value, list):
        # POST / answers a list of one.
        if len(value) != 1:
            raise _WrongError(Wrong.UNREADABLE)
        value = value[0]
    value = _object(msgspec.json.encode(value))
    if not value.get("generated_text"):
        raise _WrongError(Wrong.EMPTY)
    return _details(value.get("details"), wanted)


def _tgi_stream(body: bytes, wanted: WantedAnswer) -> Usage | None:
    last: Mapping[str, Any] = {}
    for data in _events(body):
        if last.get("generated_text") is not None:
            raise _WrongError(Wrong.UNREADABLE)
        last = _object(data)
    text = last.get("generated_text")
    if text is None:
        raise _WrongError(Wrong.CUT)
    if not text:
        raise _WrongError(Wrong.EMPTY)
    return _details(last.get("details"), wanted)

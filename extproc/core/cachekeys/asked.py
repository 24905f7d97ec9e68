"""What a request asks in words, apart from all else that its answer follows from; and what an answer says.

Owns what counts as a question: one text of the user's behind a system prompt. Everything else of the body is
its frame, and two questions are compared within one frame only.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

import msgspec

from extproc.core.cachekeys.eligible import TGI_KINDS, TOOLS
from extproc.core.cachekeys.values import SemanticAsk, SemanticRule
from extproc.core.request import RouteKind

_encode: Final = msgspec.json.Encoder(order="sorted").encode
#: Stands in the frame where the question stood. No text is an object, so that no question looks like it.
_BLANK: Final = {"question": True}
_SYSTEM: Final = frozenset({"system", "developer"})


class AskedText(msgspec.Struct, frozen=True):
    """The user's own words, and the digest of the frame that they stand in."""

    text: str
    frame: bytes


def question(
    kind: RouteKind, body: Mapping[str, Any], *, head: bytes, history: int, chars_max: int
) -> AskedText | None:
    """The question in a decoded body, None where it holds none that may be compared.

    `head` is what else its answer follows from (whose, model, pool, route, stream). `history`: messages
    before the question, system prompts apart, that may stand in its frame. Longer than `chars_max` it is
    none.
    """
    found = _chat(body, history) if kind is RouteKind.CHAT else _prompt(kind, body)
    if found is None:
        return None
    text, frame = found
    if not text.strip() or len(text) > chars_max or any(body.get(name) for name in TOOLS):
        return None
    return AskedText(text, sha256(b"%b\n%b" % (head, _encode(frame))).digest())


def asked_of(kind: RouteKind, body: Mapping[str, Any], head: bytes, rule: SemanticRule) -> SemanticAsk | None:
    """What a request asks in words, where its tenant's rule has it compared."""
    found = question(kind, body, head=head, history=rule.history, chars_max=rule.chars_max)
    return None if found is None else SemanticAsk(text=found.text, frame=found.frame, rule=rule)


def _prompt(kind: RouteKind, body: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    name = "inputs" if kind in TGI_KINDS else "prompt"
    text = body.get(name)
    return (text, {**body, name: _BLANK}) if isinstance(text, str) else None


def _chat(body: Mapping[str, Any], history: int) -> tuple[str, dict[str, Any]] | None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return None
    if not all(isinstance(each, dict) and _plain(each) for each in messages):
        return None
    *before, last = messages
    said = [each for each in before if each.get("role") not in _SYSTEM]
    if last.get("role") != "user" or len(said) > history:
        return None
    if any(each.get("role") not in ("user", "assistant") for each in said):
        return None
    text = _text(last.get("content"))
    if text is None:
        return None
    return text, {**body, "messages": [*before, {**last, "content": _BLANK}]}


def _plain(message: Mapping[str, Any]) -> bool:
    """Whether a message is text alone."""
    return _text(message.get("content")) is not None and not message.get("tool_calls")


def _text(content: Any) -> str | None:
    """A content of one text; of parts only where there is one, and it has nothing else."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        part = content[0]
        if part.keys() == {"type", "text"} and part["type"] == "text" and isinstance(part["text"], str):
            return str(part["text"])
    return None


def said(body: bytes, kind: RouteKind, *, stream: bool) -> str:
    """The text of a whole and good answer; "" where it says none."""
    try:
        if stream:
            data = [line[5:].strip() for line in body.split(b"\n") if line.startswith(b"data:")]
            events = [msgspec.json.decode(each) for each in data if each != b"[DONE]"]
        else:
            events = [msgspec.json.decode(body)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    if kind in TGI_KINDS:
        last = events[-1] if events else {}
        last = last[0] if isinstance(last, list) and last else last
        text = last.get("generated_text") if isinstance(last, dict) else None
        return text if isinstance(text, str) else ""
    return "".join(_spoken(each) for each in events if isinstance(each, dict))


def _spoken(event: Mapping[str, Any]) -> str:
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return ""
    holder = choice.get("message") or choice.get("delta")
    text = holder.get("content") if isinstance(holder, dict) else choice.get("text")
    return text if isinstance(text, str) else ""


def plain(text: str) -> str:
    """An answer as two are compared: blanks, case and the ends' marks say nothing."""
    return " ".join(text.split()).strip(" .!\"'").casefold()

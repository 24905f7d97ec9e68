"""Streams of Anthropic's messages and OpenAI's responses, as engines write them: a named event a token."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Events = list[dict[str, Any]]


def _message_began(tokens: int) -> Events:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "m"}
    about = {**message, "usage": {"input_tokens": tokens, "output_tokens": 0}}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    return [{"type": "message_start", "message": about}, block, {"type": "ping"}]


def _message_token() -> dict[str, Any]:
    delta = {"type": "text_delta", "text": " word"}
    return {"type": "content_block_delta", "index": 0, "delta": delta}


def _message_ended(prompt: int, tokens: int) -> Events:
    ended = {"stop_reason": "end_turn", "stop_sequence": None}
    usage = {"input_tokens": prompt, "output_tokens": tokens}
    return [
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": ended, "usage": usage},
        {"type": "message_stop"},
    ]


def _response(status: str, **more: Any) -> dict[str, Any]:
    about = {"id": "resp_1", "object": "response", "status": status, "error": None, "model": "m"}
    return {**about, "output": [], "usage": None, **more}


def _response_began(_: int) -> Events:
    item = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "status": "in_progress"}
    part = {"type": "output_text", "text": "", "annotations": []}
    return [
        {"type": "response.created", "response": _response("in_progress")},
        {"type": "response.in_progress", "response": _response("in_progress")},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", "item_id": "msg_1", "output_index": 0, "part": part},
    ]


def _response_token() -> dict[str, Any]:
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    return {"type": "response.output_text.delta", **where, "delta": " word"}


def _response_ended(prompt: int, tokens: int) -> Events:
    usage = {"input_tokens": prompt, "output_tokens": tokens, "total_tokens": prompt + tokens}
    # The last event repeats the whole text, and what it cost stands behind that.
    said = {"type": "output_text", "text": "as it came " * 2_000, "annotations": []}
    ended = _response("completed", output=[{"type": "message", "role": "assistant", "content": [said]}])
    del ended["usage"]
    return [
        {"type": "response.output_text.done", "item_id": "msg_1", "text": "(as it came)"},
        {"type": "response.completed", "response": {**ended, "usage": usage, "user": None}},
    ]


#: By path: what opens a stream, one token of it, and what ends it.
TURNS: dict[
    str,
    tuple[Callable[[int], Events], Callable[[], dict[str, Any]], Callable[[int, int], Events]],
] = {
    "/v1/messages": (_message_began, _message_token, _message_ended),
    "/v1/responses": (_response_began, _response_token, _response_ended),
}


def written(event: dict[str, Any]) -> bytes:
    """One event as it is sent, under the name that it says itself."""
    name = str(event.get("type", "error"))
    return f"event: {name}\ndata: {json.dumps(event, separators=(',', ':'))}\n\n".encode()


def failed(error: dict[str, Any]) -> dict[str, Any]:
    """The last event of a response that its engine gave up."""
    return {"type": "response.failed", "response": _response("failed", error=error)}


def whole_response(**more: Any) -> dict[str, Any]:
    """A response that was not streamed."""
    return _response(more.pop("status", "completed"), **more)

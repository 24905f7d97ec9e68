"""The events and bodies of OpenAI's responses and of Anthropic's messages: events with names.

Owns bytes. Knows no HTTP, no clock and no scheduler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from extproc.sim.protocol import PlannedAnswer, SimError
from extproc.sim.text import WORDS

Json = dict[str, Any]


def event(name: str, payload: Json) -> bytes:
    """One event, its name in it once more."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode({"type": name, **payload}))


def response(identity: str, model: str, plan: PlannedAnswer | None) -> Json:
    """A response, finished or (without a plan) begun."""
    about: Json = {"id": identity, "object": "response", "created_at": 0, "model": model, "error": None}
    if plan is None:
        return {**about, "status": "in_progress", "output": [], "usage": None}
    text = {"type": "output_text", "text": plan.story.text(plan.output_tokens), "annotations": []}
    item = {"id": "msg_0", "type": "message", "role": "assistant", "status": "completed", "content": [text]}
    usage = {
        "input_tokens": plan.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": plan.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": plan.prompt_tokens + plan.output_tokens,
    }
    return {
        **about,
        "status": "completed",
        "output": [item],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": usage,
    }


def message(identity: str, model: str, plan: PlannedAnswer | None) -> Json:
    """A message, finished or (without a plan) begun."""
    about: Json = {"id": identity, "type": "message", "role": "assistant", "model": model}
    if plan is None:
        usage = {"input_tokens": 0, "output_tokens": 0}
        return {**about, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    return {
        **about,
        "content": [{"type": "text", "text": plan.story.text(plan.output_tokens)}],
        "stop_reason": _reason(plan),
        "stop_sequence": None,
        "usage": {"input_tokens": plan.prompt_tokens, "output_tokens": plan.output_tokens},
    }


def _reason(plan: PlannedAnswer) -> str:
    return "max_tokens" if plan.finish_reason == "length" else "end_turn"


class ResponseFrames:
    """`/v1/responses`; `finished` makes the last event's response, and may keep it."""

    __slots__ = ("_finished", "_identity", "_model", "_number")

    def __init__(self, identity: str, model: str, finished: Callable[[PlannedAnswer], Json]) -> None:
        self._identity, self._model, self._finished = identity, model, finished
        self._number = 0

    def _event(self, name: str, **payload: Any) -> bytes:
        self._number += 1
        return event(f"response.{name}", {"sequence_number": self._number - 1, **payload})

    def token(self, index: int, word_id: int) -> bytes:
        """See `sse.Frames`."""
        begun = b""
        if index == 1:
            item = {"id": "msg_0", "type": "message", "role": "assistant", "status": "in_progress"}
            begun = (
                self._event("created", response=response(self._identity, self._model, None))
                + self._event("output_item.added", output_index=0, item={**item, "content": []})
                + self._event(
                    "content_part.added",
                    item_id="msg_0",
                    output_index=0,
                    content_index=0,
                    part={"type": "output_text", "text": "", "annotations": []},
                )
            )
        delta = " " + WORDS[word_id]
        return begun + self._event(
            "output_text.delta", item_id="msg_0", output_index=0, content_index=0, delta=delta, logprobs=[]
        )

    def last(self, index: int, word_id: int, plan: PlannedAnswer) -> bytes:
        """See `sse.Frames`."""
        made = self._finished(plan)
        done = self._event(
            "output_text.done",
            item_id="msg_0",
            output_index=0,
            content_index=0,
            text=made["output"][0]["content"][0]["text"],
            logprobs=[],
        )
        item = self._event("output_item.done", output_index=0, item=made["output"][0])
        return self.token(index, word_id) + done + item + self._event("completed", response=made)

    def error(self, error: SimError) -> bytes:
        """See `sse.Frames`."""
        return event("error", {"error": {"message": error.message, "code": error.status}})

    def end(self) -> bytes:
        """See `sse.Frames`."""
        return b""


class MessageFrames:
    """`/v1/messages`."""

    __slots__ = ("_identity", "_model")

    def __init__(self, identity: str, model: str) -> None:
        self._identity, self._model = identity, model

    def token(self, index: int, word_id: int) -> bytes:
        """See `sse.Frames`."""
        begun = b""
        if index == 1:
            block = {"type": "text", "text": ""}
            begun = event("message_start", {"message": message(self._identity, self._model, None)})
            begun += event("content_block_start", {"index": 0, "content_block": block})
        delta = {"type": "text_delta", "text": " " + WORDS[word_id]}
        return begun + event("content_block_delta", {"index": 0, "delta": delta})

    def last(self, index: int, word_id: int, plan: PlannedAnswer) -> bytes:
        """See `sse.Frames`."""
        usage = {"input_tokens": plan.prompt_tokens, "output_tokens": plan.output_tokens}
        delta = {"stop_reason": _reason(plan), "stop_sequence": None}
        return (
            self.token(index, word_id)
            + event("content_block_stop", {"index": 0})
            + event("message_delta", {"delta": delta, "usage": usage})
            + event("message_stop", {})
        )

    def error(self, error: SimError) -> bytes:
        """See `sse.Frames`."""
        kind = "overloaded_error" if error.status == 429 else "invalid_request_error"
        return event("error", {"error": {"type": kind, "message": error.message}})

    def end(self) -> bytes:
        """See `sse.Frames`."""
        return b""

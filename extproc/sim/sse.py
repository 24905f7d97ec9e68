"""Server-sent event frames and JSON bodies in the three dialects a TGI speaks.

Owns bytes. Knows no HTTP, no clock and no scheduler. What is constant in a stream is built once per
stream, what is constant for a word once per process: a token costs one concatenation.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import msgspec

from extproc.sim.protocol import PlannedAnswer, SimError
from extproc.sim.text import WORDS

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b":\n\n"
FINGERPRINT: Final = "3.3.7-simulated"
_SPECIAL_IDS: Final = 3  # ids below it are special in llama's vocabulary; ours start above
_LOGPROB: Final = -0.25

_TOKEN_JSON: Final = tuple(
    msgspec.json.encode({"id": _SPECIAL_IDS + at, "text": " " + word, "logprob": _LOGPROB, "special": False})
    for at, word in enumerate(WORDS)
)
_WORD_BYTES: Final = tuple(f" {word}".encode() for word in WORDS)

Json = dict[str, Any]


def frame(payload: object) -> bytes:
    """One `data:` frame, in TGI 3's form with a blank after the colon."""
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


def token_json(word_id: int) -> Json:
    """A generated token as `/generate` details show it."""
    return {"id": _SPECIAL_IDS + word_id, "text": " " + WORDS[word_id], "logprob": _LOGPROB, "special": False}


class Frames(Protocol):
    """What a stream sends."""

    def token(self, index: int, word_id: int) -> bytes:
        """The frame of the `index`-th token (from 1), not the last."""

    def last(self, index: int, word_id: int, plan: PlannedAnswer) -> bytes:
        """The frame (or frames) of the last token."""

    def error(self, error: SimError) -> bytes:
        """An error inside the stream: the status is 200 by then, TGI's trap."""

    def end(self) -> bytes:
        """What closes the stream."""


class GenerateFrames:
    """`/generate_stream`; no `[DONE]`."""

    __slots__ = ("_details", "_full_text")

    def __init__(self, *, details: bool, full_text: bool) -> None:
        self._details = details
        self._full_text = full_text

    def token(self, index: int, word_id: int) -> bytes:
        """See `Frames`."""
        return b'data: {"index":%d,"token":%b,"generated_text":null,"details":null}\n\n' % (
            index,
            _TOKEN_JSON[word_id],
        )

    def last(self, index: int, word_id: int, plan: PlannedAnswer) -> bytes:
        """See `Frames`."""
        details = None
        if self._details:
            details = {
                "finish_reason": plan.finish_reason,
                "generated_tokens": plan.output_tokens,
                "seed": plan.seed,
                "input_length": plan.prompt_tokens,
            }
        written = plan.story.text(plan.output_tokens)
        return frame(
            {
                "index": index,
                "token": token_json(word_id),
                "generated_text": plan.prompt + written if self._full_text else written,
                "details": details,
            }
        )

    def error(self, error: SimError) -> bytes:
        """See `Frames`."""
        return frame({"error": error.message, "error_type": error.kind})

    def end(self) -> bytes:
        """See `Frames`."""
        return b""


class OpenAIFrames:
    """What chat and completion streams share: their errors and their end."""

    __slots__ = ()

    def error(self, error: SimError) -> bytes:
        """OpenAI routes say 422 inside the frame whatever the error is."""
        return frame({"error": {"message": error.message, "http_status_code": 422}})

    def end(self) -> bytes:
        """See `Frames`."""
        return DONE


class ChatFrames(OpenAIFrames):
    """`/v1/chat/completions` chunks, with one of usage after them on request."""

    __slots__ = ("_after", "_before", "_head", "_include_usage")

    def __init__(self, *, model: str, created_s: int, include_usage: bool) -> None:
        self._head: Json = {
            "object": "chat.completion.chunk",
            "id": "",
            "created": created_s,
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }
        self._include_usage = include_usage
        self._before, self._after = self._chunk("\0", None).split(b"\\u0000")

    def _chunk(self, content: str, finish_reason: str | None) -> bytes:
        choice = {
            "index": 0,
            "delta": {"role": "assistant", "content": content},
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        return frame({**self._head, "choices": [choice], "usage": None})

    def token(self, index: int, word_id: int) -> bytes:  # noqa: ARG002 — the protocol's
        """See `Frames`."""
        return self._before + _WORD_BYTES[word_id] + self._after

    def last(self, index: int, word_id: int, plan: PlannedAnswer) -> bytes:  # noqa: ARG002 — the protocol's
        """See `Frames`."""
        out = self._chunk(" " + WORDS[word_id], openai_reason(plan.finish_reason))
        if self._include_usage:
            out += frame({**self._head, "choices": [], "usage": usage([plan])})
        return out


class CompletionFrames(OpenAIFrames):
    """`/v1/completions` chunks of one prompt; the last one always carries usage."""

    __slots__ = ("_after", "_before", "_choice_index", "_head")

    def __init__(self, *, model: str, created_s: int, choice_index: int) -> None:
        self._choice_index = choice_index
        self._head: Json = {
            "object": "text_completion",
            "id": "",
            "created": created_s,
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }
        self._before, self._after = frame({**self._head, "choices": [self._choice("\0", None)]}).split(
            b"\\u0000"
        )

    def _choice(self, content: str, finish_reason: str | None) -> Json:
        return {
            "index": self._choice_index,
            "text": content,
            "logprobs": None,
            "finish_reason": finish_reason,
        }

    def token(self, index: int, word_id: int) -> bytes:  # noqa: ARG002 — the protocol's
        """See `Frames`."""
        return self._before + _WORD_BYTES[word_id] + self._after

    def last(self, index: int, word_id: int, plan: PlannedAnswer) -> bytes:  # noqa: ARG002 — the protocol's
        """See `Frames`."""
        choice = self._choice(" " + WORDS[word_id], openai_reason(plan.finish_reason))
        return frame({**self._head, "choices": [choice], "usage": usage([plan])})


def openai_reason(finish_reason: str) -> str:
    """TGI says `stop` for the end-of-sequence token on OpenAI routes and leaves the others."""
    return "stop" if finish_reason == "eos_token" else finish_reason


def usage(plans: list[PlannedAnswer]) -> Json:
    """OpenAI's usage over one or more answers."""
    prompt = sum(plan.prompt_tokens for plan in plans)
    completion = sum(plan.output_tokens for plan in plans)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def chat_body(plan: PlannedAnswer, *, model: str, created_s: int) -> Json:
    """A whole chat completion."""
    return {
        "object": "chat.completion",
        "id": "",
        "created": created_s,
        "model": model,
        "system_fingerprint": FINGERPRINT,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": plan.story.text(plan.output_tokens)},
                "logprobs": None,
                "finish_reason": openai_reason(plan.finish_reason),
            }
        ],
        "usage": usage([plan]),
    }


def completion_body(plans: list[PlannedAnswer], *, model: str, created_s: int) -> Json:
    """A whole text completion, one choice a prompt."""
    return {
        "object": "text_completion",
        "id": "",
        "created": created_s,
        "model": model,
        "system_fingerprint": FINGERPRINT,
        "choices": [
            {
                "index": at,
                "text": plan.story.text(plan.output_tokens),
                "logprobs": None,
                "finish_reason": openai_reason(plan.finish_reason),
            }
            for at, plan in enumerate(plans)
        ],
        "usage": usage(plans),
    }


def sequence_details(plan: PlannedAnswer, prefill: list[Json], *, top_tokens: bool) -> Json:
    """`details` of a `/generate` answer."""
    tokens = [token_json(plan.story.word_id(at)) for at in range(plan.output_tokens)]
    details: Json = {
        "finish_reason": plan.finish_reason,
        "generated_tokens": plan.output_tokens,
        "seed": plan.seed,
        "prefill": prefill,
        "tokens": tokens,
    }
    if top_tokens:
        details["top_tokens"] = [[token] for token in tokens]
    return details

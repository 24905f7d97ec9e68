"""What an engine answers to official clients, on every route, the same to the same request: a script."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from scripted_engine import Script, SeenRequest

#: A client's wish: the status that the engine answers; or `cut`, a stream that breaks off.
WISH = "x-wish"
USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
RESPONSE_USAGE = {
    "input_tokens": 11,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 3,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 14,
}
MESSAGE_USAGE = {"input_tokens": 11, "output_tokens": 3, "cache_read_input_tokens": 0}
CALL = {"name": "steer", "arguments": '{"course": 270}'}
#: [1, .5] and [-2, 4], as little-endian float32.
VECTORS = {"float": ([1.0, 0.5], [-2.0, 4.0]), "base64": ("AACAPwAAAD8=", "AAAAwAAAgEA=")}


def _chat(body: Any) -> Script:
    parts = [part for each in body["messages"] for part in each["content"] if isinstance(part, dict)]
    text = json.dumps({"course": 270, "pictures": sum(part["type"] == "image_url" for part in parts)})
    base = {"id": "chatcmpl-1", "created": 1, "model": body["model"]}
    calls = [{"id": "call_1", "type": "function", "function": CALL}] if body.get("tools") else None
    if not body.get("stream"):
        message = {"role": "assistant", "content": None if calls else text}
        if calls:
            message["tool_calls"] = calls  # type: ignore[assignment]
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
        return Script({**base, "object": "chat.completion", "choices": [choice], "usage": USAGE})
    base["object"] = "chat.completion.chunk"
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    if calls:
        deltas.append(
            {"tool_calls": [{"index": 0, **calls[0], "function": {"name": "steer", "arguments": ""}}]}
        )
        deltas += [
            {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
            for piece in ('{"course"', ": 270}")
        ]
    else:
        deltas += [{"content": text[:9]}, {"content": text[9:]}]
    events: list[tuple[str, Any]] = [
        ("", {**base, "choices": [{"index": 0, "delta": each, "finish_reason": None}]}) for each in deltas
    ]
    last = {"index": 0, "delta": {}, "finish_reason": "tool_calls" if calls else "stop"}
    events.append(("", {**base, "choices": [last]}))
    if (body.get("stream_options") or {}).get("include_usage"):
        events.append(("", {**base, "choices": [], "usage": USAGE}))
    return Script(events=[*events, ("", "[DONE]")])


def _completion(body: Any) -> Script:
    base = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"]}
    prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
    choices = [{"index": i, "text": "aye", "finish_reason": "stop"} for i in range(len(prompts))]
    if not body.get("stream"):
        return Script({**base, "choices": choices, "usage": USAGE})
    return Script(events=[*(("", {**base, "choices": [each]}) for each in choices), ("", "[DONE]")])


def _embeddings(body: Any) -> Script:
    count = len(body["input"]) if isinstance(body["input"], list) else 1
    vectors = VECTORS[body.get("encoding_format") or "float"]
    data = [{"object": "embedding", "index": i, "embedding": vectors[i % 2]} for i in range(count)]
    usage = {"prompt_tokens": 5 * count, "total_tokens": 5 * count}
    return Script({"object": "list", "data": data, "model": body["model"], "usage": usage})


def _response(body: Any) -> dict[str, Any]:
    text = {"type": "output_text", "text": '{"course": 270}', "annotations": []}
    output = [
        {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [text]}
    ]
    if body.get("tools"):
        output = [{"id": "fc_1", "type": "function_call", "call_id": "call_1", "status": "completed", **CALL}]
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": body.get("model", "tiny-chat"),
        "status": "completed",
        "output": output,
        "usage": RESPONSE_USAGE,
        "error": None,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": body.get("tools") or [],
        "instructions": None,
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "incomplete_details": None,
    }


def _responses(body: Any) -> Script:
    whole = _response(body)
    if not body.get("stream"):
        return Script(whole)
    item, begun = whole["output"][0], {**whole, "status": "in_progress", "output": [], "usage": None}
    at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    empty = {"type": "output_text", "text": "", "annotations": []}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}},
        {"type": "response.content_part.added", **at, "part": empty},
        *(
            {"type": "response.output_text.delta", **at, "delta": piece, "logprobs": []}
            for piece in ('{"course"', ": 270}")
        ),
        {"type": "response.output_text.done", **at, "text": '{"course": 270}', "logprobs": []},
        {"type": "response.content_part.done", **at, "part": {**empty, "text": '{"course": 270}'}},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": whole},
    ]
    return Script(events=[(each["type"], {**each, "sequence_number": i}) for i, each in enumerate(events)])


def _kept(request: SeenRequest, path: str) -> Script:
    if request.method == "DELETE":
        return Script({"id": "resp_1", "object": "response", "deleted": True})
    if path.endswith("/input_items"):
        item = {
            "id": "in_1",
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "?"}],
        }
        whole = {"object": "list", "data": [item], "first_id": "in_1", "last_id": "in_1", "has_more": False}
        return Script(whole)
    cancelled = {"status": "cancelled"} if path.endswith("/cancel") else {}
    return Script({**_response({}), **cancelled})


def _messages(body: Any) -> Script:
    tools = bool(body.get("tools"))
    call = {"type": "tool_use", "id": "toolu_1", "name": "steer"}
    content = [{**call, "input": {"course": 270}}] if tools else [{"type": "text", "text": "Aye, 270."}]
    whole = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": content,
        "stop_reason": "tool_use" if tools else "end_turn",
        "stop_sequence": None,
        "usage": MESSAGE_USAGE,
    }
    if not body.get("stream"):
        return Script(whole)
    begun = {**whole, "content": [], "stop_reason": None, "usage": {"input_tokens": 11, "output_tokens": 0}}
    empty = {**call, "input": {}} if tools else {"type": "text", "text": ""}
    kind, field = ("input_json_delta", "partial_json") if tools else ("text_delta", "text")
    pieces = ('{"course"', ": 270}") if tools else ("Aye, ", "270.")
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": empty},
        {"type": "ping"},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": kind, field: each}}
            for each in pieces
        ),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": whole["stop_reason"], "stop_sequence": None},
            "usage": {"output_tokens": 3},
        },
        {"type": "message_stop"},
    ]
    return Script(events=[(each["type"], each) for each in events])


def _details() -> dict[str, Any]:
    tokens = [
        {"id": i, "text": word, "logprob": -0.5, "special": False} for i, word in enumerate(("Aye", "!"))
    ]
    return {"finish_reason": "length", "generated_tokens": 2, "seed": 7, "prefill": [], "tokens": tokens}


def _generate(body: Any, *, streams: bool) -> Script:
    details = _details()
    if not streams:
        return Script({"generated_text": "Aye!", "details": details})
    ends = {"finish_reason": "length", "generated_tokens": 2, "seed": 7}
    events = []
    for i, token in enumerate(details["tokens"]):
        last = i + 1 == len(details["tokens"])
        text = {"generated_text": "Aye!" if last else None, "details": ends if last else None}
        events.append(("", {"index": i + 1, "token": token, **text}))
    return Script(events=events)


def _heard(request: SeenRequest) -> Script:
    if b'name="stream"' in request.body:
        events = [
            {"type": "transcript.text.delta", "delta": "Land "},
            {"type": "transcript.text.delta", "delta": "ho!"},
            {
                "type": "transcript.text.done",
                "text": "Land ho!",
                "usage": {"type": "tokens", "input_tokens": 9, "output_tokens": 2, "total_tokens": 11},
            },
        ]
        return Script(events=[*(("", each) for each in events), ("", "[DONE]")])
    return Script({"text": "Land ho!"})


def answer(request: SeenRequest) -> Script:
    """As a good engine that speaks all dialects."""
    wish, path = request.headers.get(WISH, ""), urlsplit(request.path).path
    said = _answer(request, path)
    if wish == "cut":
        return Script(events=(said.events or ())[:3], cut=True)
    if wish:
        error = {"message": "the engine's own words", "type": "engine_error", "param": None, "code": wish}
        body: Any = {"error": error}
        if path.startswith("/v1/messages"):
            body = {"type": "error", "error": {"type": "engine_error", "message": "the engine's own words"}}
        elif not path.startswith("/v1/"):
            body = {"error": "the engine's own words", "error_type": "validation"}
        return Script(body, status=int(wish), headers={"x-should-retry": "false"})
    return said


def _answer(request: SeenRequest, path: str) -> Script:
    if path.startswith("/v1/responses/"):
        return _kept(request, path)
    if path.startswith("/v1/audio/"):
        speech = path.endswith("/speech")
        return Script(b"RIFF" * 500, headers={"content-type": "audio/wav"}) if speech else _heard(request)
    body = request.json
    if path == "/v1/messages/count_tokens":
        return Script({"input_tokens": 11})
    if path in ("/v1/rerank", "/rerank"):
        results = [{"index": i, "relevance_score": 0.9 - i / 10} for i in range(len(body["documents"]))]
        return Script({"id": "rerank-1", "results": results, "usage": {"total_tokens": 21}})
    if path == "/":
        said = _generate(body, streams=bool(body.get("stream")))
        return said if said.events is not None else Script([said.body])
    kinds: dict[str, Callable[[Any], Script]] = {
        "/v1/chat/completions": _chat,
        "/v1/completions": _completion,
        "/v1/embeddings": _embeddings,
        "/v1/responses": _responses,
        "/v1/messages": _messages,
        "/generate": lambda body: _generate(body, streams=False),
        "/generate_stream": lambda body: _generate(body, streams=True),
    }
    return kinds[path](body) if path in kinds else Script({"detail": "Not Found"}, status=404)

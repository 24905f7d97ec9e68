from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from extproc.sim import engine
from extproc.sim.text import count_tokens
from tests.stand.sim_server import Ask, frames, scene, state, until


def test_generate_answers_with_tgis_body_and_headers() -> None:
    """Text without details, and every header a client may read."""

    async def play(ask: Ask) -> None:
        status, headers, body = await ask("/generate", {"inputs": "Set sail. [[sim:out=7]]"})
        assert status == 200
        assert set(json.loads(body)) == {"generated_text"}
        text = json.loads(body)["generated_text"]
        assert len(text.split()) == count_tokens(text, bytes_per_token=4) == 7
        assert headers["x-prompt-tokens"] == "6"  # 23 bytes
        assert headers["x-generated-tokens"] == "7"
        assert headers["x-compute-characters"] == "23"
        assert headers["x-compute-type"] == "1-simulated"
        assert float(headers["x-compute-time"]) > 0
        for name in ("total", "validation", "queue", "inference"):
            assert headers[f"x-{name}-time"].isdigit()
        assert headers["x-time-per-token"].isdigit()
        assert headers["x-sim-replica"] == "solo"
        assert ask.base.endswith(headers["x-sim-port"])  # type: ignore[attr-defined]

    scene(play)


def test_generate_details_and_best_of() -> None:
    """Details on request; `best_of` answers differ and come as further sequences."""

    async def play(ask: Ask) -> None:
        parameters = {"details": True, "decoder_input_details": True, "do_sample": True, "best_of": 2}
        body = {"inputs": "Hoist! [[sim:out=3]]", "parameters": {**parameters, "top_n_tokens": 1}}
        status, _, text = await ask("/generate", body)
        assert status == 200
        details = json.loads(text)["details"]
        assert details["finish_reason"] == "eos_token"
        assert details["generated_tokens"] == len(details["tokens"]) == len(details["top_tokens"]) == 3
        assert set(details["tokens"][0]) == {"id", "text", "logprob", "special"}
        assert "".join(piece["text"] for piece in details["prefill"]) == body["inputs"]
        (other,) = details["best_of_sequences"]
        assert other["generated_text"] != json.loads(text)["generated_text"]

    scene(play)


def test_root_wraps_the_answer_in_an_array_and_streams_on_request() -> None:
    """`/` is the route that Hugging Face's clients use."""

    async def play(ask: Ask) -> None:
        status, _, body = await ask("/", {"inputs": "Ahoy [[sim:out=2]]"})
        assert (status, len(json.loads(body))) == (200, 1)
        _, headers, body = await ask("/", {"inputs": "Ahoy [[sim:out=2]]", "stream": True})
        assert headers["content-type"].startswith("text/event-stream")
        assert len(frames(body)) == 2

    scene(play)


def test_finish_reasons_and_limits() -> None:
    """length at the limit, eos before it, stop_sequence on a word; the default limit is 100."""

    async def play(ask: Ask) -> None:
        async def details(prompt: str, **parameters: Any) -> dict[str, Any]:
            body = {"inputs": prompt, "parameters": {"details": True, **parameters}}
            return json.loads((await ask("/generate", body))[2])["details"]

        ended = await details("a [[sim:out=9]]", max_new_tokens=5)
        assert (ended["finish_reason"], ended["generated_tokens"]) == ("length", 5)
        assert (await details("a [[sim:out=900]]"))["generated_tokens"] == 100
        ended = await details("a [[sim:out=9]]", max_new_tokens=None)
        assert (ended["finish_reason"], ended["generated_tokens"]) == ("eos_token", 9)
        word = ended["tokens"][4]["text"]
        ended = await details("a [[sim:out=9]]", stop=[word])
        assert (ended["finish_reason"], ended["generated_tokens"]) == ("stop_sequence", 5)

    scene(play)


def test_output_length_by_header_by_chance_and_again() -> None:
    """The header goes before the marker; without both the seed decides, always alike."""

    async def play(ask: Ask) -> None:
        header = {"x-sim-output-tokens": "4"}
        _, headers, _ = await ask("/generate", {"inputs": "b [[sim:out=9]]"}, headers=header)
        assert headers["x-generated-tokens"] == "4"
        body = {"inputs": "A tale of the sea", "parameters": {"max_new_tokens": 2000}}
        first, second = await ask("/generate", body), await ask("/generate", body)
        assert first[2] == second[2]
        assert 1 <= int(first[1]["x-generated-tokens"]) < 2000
        status, _, text = await ask("/generate", body, headers={"x-sim-output-tokens": "0"})
        assert (status, json.loads(text)["error_type"]) == (422, "validation")

    scene(play)


def test_chat_and_completions() -> None:
    """OpenAI bodies with usage; several prompts give several choices."""

    async def play(ask: Ask) -> None:
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Where to? [[sim:out=5]]"}]},
        ]
        _, headers, text = await ask("/v1/chat/completions", {"messages": messages, "model": "any"})
        body = json.loads(text)
        assert body["object"] == "chat.completion"
        assert body["choices"][0]["finish_reason"] == "stop"
        assert body["usage"]["completion_tokens"] == 5
        assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 5
        assert headers["x-generated-tokens"] == "5"
        prompts = ["One [[sim:out=2]]", "Two [[sim:out=3]]"]
        _, _, text = await ask("/v1/completions", {"prompt": prompts, "max_tokens": 10})
        body = json.loads(text)
        assert [len(choice["text"].split()) for choice in body["choices"]] == [2, 3]
        assert body["usage"]["completion_tokens"] == 5

    scene(play)


def test_vertex_invocations_and_tokenize() -> None:
    """The other doors to the same model."""

    async def play(ask: Ask) -> None:
        chat = {"messages": [{"role": "user", "content": "Hi [[sim:out=3]]"}]}
        _, _, text = await ask("/vertex", {"instances": [{"inputs": "Hi [[sim:out=2]]"}, chat]})
        assert [len(said.split()) for said in json.loads(text)["predictions"]] == [2, 3]
        assert len(json.loads((await ask("/invocations", {"inputs": "Hi [[sim:out=2]]"}))[2])) == 1
        assert json.loads((await ask("/invocations", chat))[2])["object"] == "chat.completion"
        completion = {"prompt": "Hi [[sim:out=2]]"}
        assert json.loads((await ask("/invocations", completion))[2])["object"] == "text_completion"
        tokens = json.loads((await ask("/tokenize", {"inputs": "Ahoy, sé"}))[2])
        assert tokens[0]["text"] == "Ahoy"
        assert tokens[0]["stop"] == tokens[1]["start"] == 4
        assert tokens[-1]["stop"] == 8
        templated = json.loads((await ask("/chat_tokenize", chat))[2])
        assert "Hi" in templated["templated_text"]
        assert templated["tokenize_response"]

    scene(play)


# Streams.


def test_generate_stream_frames() -> None:
    """Index from 1, the last frame has the text and the details, and there is no [DONE]."""

    async def play(ask: Ask) -> None:
        body = {"inputs": "Row [[sim:out=4]]", "parameters": {"details": True, "seed": 3}}
        status, headers, text = await ask("/generate_stream", body)
        assert status == 200
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["x-accel-buffering"] == "no"
        assert headers["x-compute-type"] == "1-simulated"
        assert "x-generated-tokens" not in headers
        seen = frames(text)
        assert [event["index"] for event in seen] == [1, 2, 3, 4]
        assert all(event["generated_text"] is None and event["details"] is None for event in seen[:-1])
        assert seen[-1]["generated_text"] == "".join(event["token"]["text"] for event in seen)
        assert seen[-1]["details"] == {
            "finish_reason": "eos_token",
            "generated_tokens": 4,
            "seed": 3,
            "input_length": 5,
        }

    scene(play)


@pytest.mark.parametrize("with_usage", [False, True])
def test_chat_stream_frames(with_usage: bool) -> None:
    """Chunks, one of usage on request, then [DONE]."""

    async def play(ask: Ask) -> None:
        body = {"messages": [{"role": "user", "content": "Row [[sim:out=3]]"}], "stream": True}
        if with_usage:
            body["stream_options"] = {"include_usage": True}
        *seen, done = frames((await ask("/v1/chat/completions", body))[2])
        assert done == "[DONE]"
        assert {event["object"] for event in seen} == {"chat.completion.chunk"}
        reasons = [event["choices"][0]["finish_reason"] for event in seen if event["choices"]]
        assert reasons == [None, None, "stop"]
        assert len(seen) == 3 + with_usage
        if with_usage:
            assert seen[-1]["choices"] == []
            assert seen[-1]["usage"]["completion_tokens"] == 3

    scene(play)


def test_completion_stream_ends_with_usage() -> None:
    """Always; each prompt of several has its own index."""

    async def play(ask: Ask) -> None:
        body = {"prompt": ["Row [[sim:out=3]]", "Pull [[sim:out=2]]"], "stream": True}
        *seen, done = frames((await ask("/v1/completions", body))[2])
        assert done == "[DONE]"
        assert sorted(event["choices"][0]["index"] for event in seen) == [0, 0, 0, 1, 1]
        assert [event["usage"]["completion_tokens"] for event in seen if "usage" in event] in ([3, 2], [2, 3])

    scene(play)


def test_a_generation_over_a_slice_streams_on_without_a_gap() -> None:
    """Re-queued at 1,024 tokens, it goes on with the next index."""

    async def play(ask: Ask) -> None:
        body = {"inputs": "x [[sim:out=1500]]", "parameters": {"max_new_tokens": 1600}}
        seen = frames((await ask("/generate_stream", body))[2])
        assert [event["index"] for event in seen] == list(range(1, 1501))

    scene(play, time_scale=300.0)


def test_a_silent_stream_gets_a_comment(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 15 s in TGI; proxies would cut it otherwise."""
    monkeypatch.setattr(engine, "KEEP_ALIVE_S", 0.06)

    async def play(ask: Ask) -> None:
        await ask("/sim/fault", {"hang": True})
        session: aiohttp.ClientSession = ask.session  # type: ignore[attr-defined]
        url = ask.base + "/generate_stream"  # type: ignore[attr-defined]
        async with session.post(url, json={"inputs": "x [[sim:out=1]]"}) as response:
            assert await response.content.readline() == b":\n"
            await ask("/sim/fault", {"clear": True})
            assert b'"index":1' in await response.read()

    scene(play)


def test_an_explicit_limit_may_be_reserved_whole() -> None:
    """The other reading of TGI: only requests without a limit are sliced."""

    async def play(ask: Ask) -> None:
        await ask("/sim/fault", {"slowdown": 1e6})
        body = {"inputs": "x", "parameters": {"max_new_tokens": 3000}}
        work = asyncio.ensure_future(ask("/generate", body))
        seen = await until(ask, lambda seen: seen["running"] == 1)
        assert seen["kv_reserved_tokens"] == 1 + 3000 - 1
        work.cancel()

    scene(play, slice_explicit_limits=False)


def test_tokens_come_as_they_are_made() -> None:
    """At life's pace a token takes a decode step, so the first arrives long before the last."""

    async def play(ask: Ask) -> None:
        session: aiohttp.ClientSession = ask.session  # type: ignore[attr-defined]
        loop = asyncio.get_running_loop()
        times: list[float] = []
        url = ask.base + "/generate_stream"  # type: ignore[attr-defined]
        async with session.post(url, json={"inputs": "Row [[sim:out=12]]"}) as response:
            times += [loop.time() async for line in response.content if line.startswith(b"data:")]
        assert len(times) == 12
        # 11 steps of 9.8 + 0.03 + 2.0 ms are 130 ms; the bounds bear a busy machine
        assert 0.05 < times[-1] - times[0] < 2.0

    scene(play, time_scale=1.0)


# Errors.


@pytest.mark.parametrize(
    ("path", "options", "status", "expected"),
    [
        ("/generate", {"data": b"{"}, 415, "Content-Type"),
        ("/generate", {"data": b"{", "headers": {"content-type": "application/json"}}, 400, "parse"),
        ("/generate", {"json": {}}, 422, "missing required field `inputs`"),
        ("/v1/chat/completions", {"json": {"messages": 3}}, 422, "$.messages"),
        ("/generate", {"json": {"inputs": "x" * 1000}}, 413, "length limit exceeded"),
    ],
)
def test_bad_bodies_are_plain_text(path: str, options: dict[str, Any], status: int, expected: str) -> None:
    """As TGI's web framework words them, before TGI sees anything."""

    async def play(ask: Ask) -> None:
        seen, headers, text = await ask(path, **{"data": None, **options})
        assert seen == status
        assert headers["content-type"].startswith("text/plain")
        assert expected in text

    scene(play, payload_limit_bytes=1000)


VALIDATION = [
    ({"inputs": ""}, "`inputs` cannot be empty"),
    (
        {"inputs": "x" * 400, "parameters": {"max_new_tokens": 200}},
        (
            "`inputs` tokens + `max_new_tokens` must be <= 256. "
            "Given: 100 `inputs` tokens and 200 `max_new_tokens`"
        ),
    ),
    (
        {"inputs": "x" * 812, "parameters": {"max_new_tokens": 1}},
        "`inputs` must have less than 200 tokens. Given: 203",
    ),
    ({"inputs": "x", "parameters": {"max_new_tokens": 0}}, "`max_new_tokens` must be strictly positive"),
    ({"inputs": "x", "parameters": {"temperature": 0.0}}, "`temperature` must be strictly positive"),
    ({"inputs": "x", "parameters": {"top_p": 1.0}}, "`top_p` must be > 0.0 and < 1.0"),
    (
        {"inputs": "x", "parameters": {"stop": list("abcde")}},
        "`stop` supports up to 4 stop sequences. Given: 5",
    ),
]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        *VALIDATION,
        ({"inputs": "x", "parameters": {"best_of": 3}}, "`best_of` must be > 0 and <= 2. Given: 3"),
    ],
)
def test_validation_errors_are_422(body: dict[str, Any], message: str) -> None:
    """With TGI's words and its error_type."""

    async def play(ask: Ask) -> None:
        status, _, text = await ask("/generate", body)
        assert status == 422
        assert json.loads(text) == {"error": f"Input validation error: {message}", "error_type": "validation"}
        assert 'tgi_request_failure{err="validation"} 1' in (await ask("/metrics"))[2]
        assert (await state(ask))["permits_in_use"] == 0

    scene(play, max_input_tokens=200, max_total_tokens=256)


def test_truncate_makes_a_long_prompt_fit() -> None:
    """The count is cut before it is checked."""

    async def play(ask: Ask) -> None:
        body = {"inputs": "x" * 4000, "parameters": {"truncate": 50, "max_new_tokens": 2}}
        status, headers, _ = await ask("/generate", body)
        assert (status, headers["x-prompt-tokens"]) == (200, "50")

    scene(play, max_input_tokens=200, max_total_tokens=256)


def test_stream_errors_come_inside_a_200() -> None:
    """The trap: no status tells a validation error on a stream, in either dialect."""

    async def play(ask: Ask) -> None:
        status, headers, text = await ask("/generate_stream", {"inputs": ""})
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        error = {"error": "Input validation error: `inputs` cannot be empty", "error_type": "validation"}
        assert frames(text) == [error]
        body = {"prompt": "", "stream": True}
        status, _, text = await ask("/v1/completions", body)
        message = "Input validation error: `inputs` cannot be empty"
        assert status == 200
        assert frames(text) == [{"error": {"message": message, "http_status_code": 422}}, "[DONE]"]
        body = {"inputs": "x", "parameters": {"best_of": 2, "do_sample": True}}
        assert "streaming tokens" in frames((await ask("/generate_stream", body))[2])[0]["error"]

    scene(play)


def test_overload_is_429_or_a_frame_inside_a_200() -> None:
    """One permit, held by a hung stream: everything else is refused, before it is validated."""

    async def play(ask: Ask) -> None:
        await ask("/sim/fault", {"hang": True})
        holder = asyncio.ensure_future(ask("/generate_stream", {"inputs": "x [[sim:out=2]]"}))
        await until(ask, lambda seen: seen["permits_in_use"] == 1)
        status, headers, text = await ask("/generate", {"inputs": ""})
        assert status == 429
        assert "retry-after" not in headers
        refusal = {"error": "Model is overloaded", "error_type": "overloaded"}
        assert json.loads(text) == refusal
        status, _, text = await ask("/generate_stream", {"inputs": "x"})
        assert (status, frames(text)) == (200, [refusal])
        chat = {"messages": [{"role": "user", "content": "x"}]}
        assert (await ask("/v1/chat/completions", chat))[0] == 429
        status, _, text = await ask("/v1/chat/completions", {**chat, "stream": True})
        assert status == 200
        assert frames(text) == [
            {"error": {"message": "Model is overloaded", "http_status_code": 422}},
            "[DONE]",
        ]
        assert 'tgi_request_failure{err="overloaded"} 4' in (await ask("/metrics"))[2]
        await ask("/sim/fault", {"clear": True})
        assert len(frames((await holder)[2])) == 2
        assert (await state(ask))["permits_in_use"] == 0

    scene(play, max_concurrent_requests=1)


def test_best_of_takes_a_permit_each_and_gives_all_back() -> None:
    """Two do not fit where one permit is; the one taken is not kept."""

    async def play(ask: Ask) -> None:
        body = {"inputs": "x [[sim:out=2]]", "parameters": {"best_of": 2, "do_sample": True}}
        assert (await ask("/generate", body))[0] == 429
        await until(ask, lambda seen: seen["permits_in_use"] == 0)
        assert (await ask("/generate", {"inputs": "x [[sim:out=2]]"}))[0] == 200

    scene(play, max_concurrent_requests=1)


def test_too_many_prompts_and_no_messages() -> None:
    """The client batch limit, and a template that has nothing to render."""

    async def play(ask: Ask) -> None:
        status, _, text = await ask("/v1/completions", {"prompt": ["x"] * 5})
        assert (status, json.loads(text)["error_type"]) == (422, "validation")
        status, _, text = await ask("/v1/chat/completions", {"messages": []})
        assert (status, json.loads(text)["error_type"]) == (422, "template_error")
        assert (await ask("/nowhere"))[0] == 404
        assert (await ask("/generate"))[0] == 405

    scene(play)


# Clients that leave.

"""Official clients with twists: retries and timeouts of their own, async, raw and streamed responses, HTTP/2,
bodies of unsaid length; through a cache, a picker's gateway and a provider: the same as from the engine."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import clients_engine
import httpx2 as httpx
import openai
import pytest
from clients_engine import WISH
from clients_places import KEY, MODEL, SAY, Both, Place, others_sockets, plain
from gateway import KEYS, Gateway, chat_pool, free_ports, tenants, wait_for
from huggingface_hub import AsyncInferenceClient
from picker_gateway import PickerGateway
from scripted_engine import ScriptedEngine

pytestmark = pytest.mark.envoy

__all__ = ["others_sockets"]

HOLD_MS = 200


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    """One place, and nobody waits for it for long."""
    with ScriptedEngine(clients_engine.answer) as engine:
        pools = chat_pool([engine.address], endpoint={"max_concurrent": 1}, engine="vllm")
        with Gateway(pools, classes=[{"name": "standard", "hold_ms": HOLD_MS}]) as gateway:
            yield Both(engine, gateway)


def _openai(place: Place, **more: Any) -> Any:
    with place.openai(max_retries=9, **more) as client:
        return client.chat.completions.create(model=MODEL, messages=SAY)


def _anthropic(place: Place, **more: Any) -> Any:
    with place.anthropic(max_retries=9, **more) as client:
        return client.messages.create(model=MODEL, messages=SAY, max_tokens=9)


@pytest.mark.parametrize("ask", [_openai, _anthropic])
def test_a_client_that_is_told_to_wait_is_served_when_it_comes_again(
    both: Both, ask: Callable[..., Any]
) -> None:
    """429 with retry-after while the one place is taken: the library waits as told, and has its answer."""
    wait_for("quiet", both.gateway.quiet)
    seen, refused = len(both.engine.seen), both.gateway.status()["counts"].get("rejected.overloaded", 0)
    both.engine.open.clear()
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(ask(both.through))) for _ in range(2)]
    try:
        for each in threads:
            each.start()
        wait_for("a taken place", lambda: len(both.engine.seen) > seen)
        wait_for("a refusal", lambda: both.gateway.status()["counts"].get("rejected.overloaded", 0) > refused)
    finally:
        both.engine.open.set()
    for each in threads:
        each.join()
    assert plain(found) == plain([ask(both.direct)] * 2)
    assert len(both.engine.seen) == seen + 3


@pytest.mark.parametrize("ask", [_openai, _anthropic])
def test_an_engines_word_on_retries_reaches_the_client(both: Both, ask: Callable[..., Any]) -> None:
    """`x-should-retry: false` with a 409, which the libraries would ask again for: one request came."""
    seen = len(both.engine.seen)
    with pytest.raises((openai.ConflictError, anthropic.ConflictError)):
        ask(both.through, default_headers={WISH: "409"})
    assert len(both.engine.seen) == seen + 1


def test_a_client_that_gives_up_frees_its_place(both: Both) -> None:
    """Its own timeout raises its own exception, and the place is free for the next."""
    wait_for("quiet", both.gateway.quiet)
    seen = len(both.engine.seen)
    both.engine.open.clear()
    try:
        with both.through.openai(timeout=0.5) as client, pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model=MODEL, messages=SAY)
        with both.through.anthropic(timeout=0.5) as claude, pytest.raises(anthropic.APITimeoutError):
            claude.messages.create(model=MODEL, messages=SAY, max_tokens=9)
        wait_for("free places", both.gateway.quiet)
    finally:
        both.engine.open.set()
    assert 1 <= len(both.engine.seen) - seen <= 2
    assert _openai(both.through)


def test_asynchronous_clients(both: Both) -> None:
    """openai's, anthropic's and huggingface_hub's, whole and streamed."""

    async def asked(place: Place) -> Any:
        found: list[Any] = []
        base = {"api_key": place.key, "max_retries": 0, "timeout": 60}
        async with openai.AsyncOpenAI(base_url=f"{place.url}/v1", **base) as client:
            found.append(await client.chat.completions.create(model=MODEL, messages=SAY))
            stream = await client.responses.create(model=MODEL, input="Which?", stream=True)
            found.append([each async for each in stream])
            found.append(await client.embeddings.create(model=MODEL, input=["a", "b"]))
        async with anthropic.AsyncAnthropic(base_url=place.url, **base) as claude:
            found.append(await claude.messages.create(model=MODEL, messages=SAY, max_tokens=9))
            async with claude.messages.stream(model=MODEL, messages=SAY, max_tokens=9) as events:
                found += [[each async for each in events], await events.get_final_message()]
        async with AsyncInferenceClient(base_url=place.url, token=place.key) as hub:
            found.append(await hub.chat_completion(SAY, model=MODEL))
            pieces = await hub.chat_completion(SAY, model=MODEL, stream=True)
            found.append([each async for each in pieces])
        return plain(found)

    assert asyncio.run(asked(both.through)) == asyncio.run(asked(both.direct))


def test_raw_and_streaming_responses(both: Both) -> None:
    """Bodies byte for byte, the engine's type, and of the engine's headers those that libraries read."""

    def asked(place: Place) -> Any:
        found: list[Any] = []
        with place.openai() as client, place.anthropic() as claude:
            raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=SAY)
            found += [
                raw.http_response.content,
                raw.parse().choices[0].message.content,
                raw.headers["content-type"],
            ]
            with client.chat.completions.with_streaming_response.create(
                model=MODEL, messages=SAY, stream=True
            ) as lines:
                found.append(list(lines.iter_lines()))
            with client.audio.speech.with_streaming_response.create(
                model=MODEL, input="Ahoy", voice="alloy"
            ) as sound:
                found += [b"".join(sound.iter_bytes()), sound.headers["content-type"]]
            found.append(
                claude.messages.with_raw_response.create(
                    model=MODEL, messages=SAY, max_tokens=9
                ).http_response.content
            )
            with claude.messages.with_streaming_response.create(
                model=MODEL, messages=SAY, max_tokens=9, stream=True
            ) as events:
                found.append(list(events.iter_lines()))
        return found

    assert asked(both.through) == asked(both.direct)


def test_over_http_2(both: Both) -> None:
    """A client that speaks HTTP/2 in clear text from the first byte, streamed and not."""
    with openai.DefaultHttpxClient(http1=False, http2=True) as transport:
        with both.through.openai(http_client=transport) as client, both.direct.openai() as direct:
            for ask in (
                lambda c: c.chat.completions.create(model=MODEL, messages=SAY),
                lambda c: list(c.chat.completions.create(model=MODEL, messages=SAY, stream=True)),
            ):
                assert plain(ask(client)) == plain(ask(direct))
            assert (
                client.chat.completions.with_raw_response.create(
                    model=MODEL, messages=SAY
                ).http_response.http_version
                == "HTTP/2"
            )


def test_a_body_of_unsaid_length(both: Both) -> None:
    """Chunked, without content-length: read as any other, on each dialect."""
    asked: list[tuple[str, Any]] = [
        ("/v1/chat/completions", {"model": MODEL, "messages": SAY}),
        ("/v1/messages", {"model": MODEL, "messages": SAY, "max_tokens": 9}),
        ("/generate", {"inputs": "Which?"}),
    ]

    def pieces(body: Any) -> Iterator[bytes]:
        data = json.dumps(body).encode()
        for at in range(0, len(data), 16):
            yield data[at : at + 16]

    for path, body in asked:
        answers = [
            httpx.post(
                f"{place.url}{path}",
                content=pieces(body),
                headers={"authorization": f"Bearer {place.key}", "content-type": "application/json"},
                timeout=60,
            )
            for place in (both.direct, both.through)
        ]
        assert [each.status_code for each in answers] == [200, 200]
        assert answers[0].content == answers[1].content


@pytest.mark.parametrize("base", ["/v1/", "/v1"])
def test_a_slash_at_the_end_of_the_base_address(both: Both, base: str) -> None:
    """OpenAI's and Anthropic's libraries with a base address that ends with one."""
    with openai.OpenAI(base_url=f"{both.gateway.url}{base}", api_key=KEY, max_retries=0) as client:
        assert client.models.list().data[0].id == MODEL
        assert client.chat.completions.create(model=MODEL, messages=SAY).id == "chatcmpl-1"
    with anthropic.Anthropic(base_url=f"{both.gateway.url}/", api_key=KEY, max_retries=0) as claude:
        assert claude.messages.create(model=MODEL, messages=SAY, max_tokens=9).id == "msg_1"


def test_lists_of_models_are_paged_through(both: Both) -> None:
    """Both libraries walk their pages to the end of the list, which is one page."""
    with both.through.openai() as client:
        assert [each.id for each in client.models.list()] == [MODEL]
        assert client.models.retrieve(MODEL).id == MODEL
    with both.through.anthropic() as claude:
        listed = list(claude.models.list(limit=1))
        assert [(each.id, each.type, each.display_name) for each in listed] == [(MODEL, "model", MODEL)]
        assert claude.models.retrieve(MODEL) == listed[0]
        assert listed[0].created_at.tzinfo is not None


def _chat(place: Place, model: str = MODEL, **options: Any) -> Any:
    with place.openai() as client:
        made: Any = client.chat.completions.create(model=model, messages=SAY, temperature=0, **options)
        return plain(list(made) if options else made)


def _streamed(place: Place, model: str = MODEL) -> Any:
    return _chat(place, model, stream=True, stream_options={"include_usage": True})


def _message(place: Place, model: str = MODEL) -> Any:
    with place.anthropic() as client:
        with client.messages.stream(model=model, messages=SAY, max_tokens=9) as events:
            return plain([list(events), events.get_final_message()])


def _hub(place: Place, model: str = MODEL) -> Any:
    return list(place.hub().chat_completion(SAY, model=model, stream=True))


ASKS = (_chat, _streamed, _message, _hub)


def test_in_a_pickers_gateway() -> None:
    """Envoy asks for an endpoint alone, and the answers are the engine's."""
    with ScriptedEngine(clients_engine.answer) as engine:
        with PickerGateway(chat_pool([engine.address], engine="vllm")) as gateway:
            both = Both(engine, gateway)
            for ask in ASKS:
                assert ask(both.through) == ask(both.direct)
            with both.through.openai() as client, pytest.raises(openai.NotFoundError):
                client.chat.completions.create(model="nope", messages=SAY)


def test_from_the_cache() -> None:
    """Asked again, the cache answers what the engine did, and the engine is not asked."""
    cached = [{**each, "cache": {"mode": "on"}} for each in tenants()]
    with ScriptedEngine(clients_engine.answer) as engine:
        with Gateway(chat_pool([engine.address], engine="vllm"), tenants=cached, cache={}) as gateway:
            both = Both(engine, gateway)
            first = [ask(both.through) for ask in (_chat, _streamed)]
            wait_for("two kept answers", lambda: gateway.status()["cache"]["answers"] == 2)
            seen = len(engine.seen)
            assert [ask(both.through) for ask in (_chat, _streamed)] == first
            assert len(engine.seen) == seen
            assert first == [ask(both.direct) for ask in (_chat, _streamed)]


def test_from_a_provider() -> None:
    """With nothing at home its answers come as they are, under the name that the model has there."""
    there = "gpt-tiny"
    (nowhere,) = free_ports(1)
    with ScriptedEngine(clients_engine.answer) as paid:
        pools: dict[str, dict[str, Any]] = {
            "own": {
                "models": [MODEL],
                "engine": "vllm",
                "addresses": [f"127.0.0.1:{nowhere}"],
                "spill": {"to": "paid", "models": {MODEL: there}},
            },
            "paid": {"models": [there], "engine": "vllm", "addresses": [paid.address]},
        }
        with Gateway(pools, tenants=tenants(acme={"spill": {}})) as gateway:
            wait_for("the missing replica", lambda: gateway.endpoint(f"127.0.0.1:{nowhere}")["health"] == 0)
            both = Both(paid, gateway)
            for ask in (_chat, _streamed, _hub):
                assert ask(both.through) == ask(both.direct, there)
            # A provider of OpenAI's dialect need not speak another.
            with pytest.raises(anthropic.ServiceUnavailableError):
                _message(both.through)
            refused = both.through._replace(key=KEYS["globex"])
            with refused.openai() as client, pytest.raises(openai.InternalServerError):
                client.chat.completions.create(model=MODEL, messages=SAY)

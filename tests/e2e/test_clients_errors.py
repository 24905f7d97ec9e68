"""What goes wrong raises what each official client has for it: refusals, engines' errors, cut streams."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import clients_engine
import httpx2 as httpx
import huggingface_hub.errors as hub_errors
import openai
import pytest
import text_generation.errors as tgi_errors
from clients_engine import WISH
from clients_places import MODEL, SAY, Both, Place, others_sockets
from gateway import Gateway, free_ports, tenants, wait_for
from scripted_engine import ScriptedEngine

from extproc.core.tenant import hash_key

pytestmark = pytest.mark.envoy

__all__ = ["others_sockets"]

FAR, POOR = "sk-far", "sk-poor"
BIG = "x" * 70_000


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    """Pools that say vLLM, TGI, and one whose only replica is not there; a tenant of another region, and one
    with one request a minute."""
    more = [
        {"name": "far", "keys": [{"sha256": hash_key(FAR)}], "regions": ["elsewhere"]},
        {"name": "poor", "keys": [{"sha256": hash_key(POOR)}], "quota": {"requests_per_minute": 1}},
    ]
    (nowhere,) = free_ports(1)
    with ScriptedEngine(clients_engine.answer) as engine, ScriptedEngine(clients_engine.answer) as native:
        pools: dict[str, dict[str, Any]] = {
            "chat": {"models": [MODEL], "engine": "vllm", "addresses": [engine.address]},
            "native": {"models": ["native"], "engine": "tgi", "addresses": [native.address]},
            "gone": {"models": ["gone"], "engine": "vllm", "addresses": [f"127.0.0.1:{nowhere}"]},
        }
        limits = {"body_bytes_max": 65_536}
        with Gateway(pools, gateway=limits, tenants=[*tenants(), *more]) as gateway:
            wait_for("the missing replica", lambda: gateway.endpoint(f"127.0.0.1:{nowhere}")["health"] == 0)
            yield Both(engine, gateway)


def chat(place: Place, **more: Any) -> Any:
    with place.openai() as client:
        return client.chat.completions.create(**{"model": MODEL, "messages": SAY, **more})


def message(place: Place, **more: Any) -> Any:
    with place.anthropic() as client:
        return client.messages.create(**{"model": MODEL, "messages": SAY, "max_tokens": 9, **more})


def response(place: Place, **more: Any) -> Any:
    with place.openai() as client:
        return client.responses.create(**{"model": MODEL, "input": "?", **more})


GZIP = {"extra_headers": {"content-encoding": "gzip"}}


def _spent(ask: Callable[..., Any]) -> Callable[[Place], Any]:
    def twice(place: Place) -> Any:
        place = place._replace(key=POOR)
        with contextlib.suppress(openai.RateLimitError, anthropic.RateLimitError, hub_errors.HfHubHTTPError):
            ask(place)
        return ask(place)

    return twice


@pytest.mark.parametrize("ask", [chat, response, message])
@pytest.mark.parametrize(
    ("kind", "status", "how"),
    [
        ("AuthenticationError", 401, lambda ask: lambda place: ask(place._replace(key="sk-wrong"))),
        ("PermissionDeniedError", 403, lambda ask: lambda place: ask(place._replace(key=FAR))),
        ("NotFoundError", 404, lambda ask: lambda place: ask(place, model="nope")),
        ("APIStatusError", 413, lambda ask: lambda place: ask(place, metadata={"x": BIG})),
        ("APIStatusError", 415, lambda ask: lambda place: ask(place, **GZIP)),
        ("RateLimitError", 429, _spent),
        ("InternalServerError", 503, lambda ask: lambda place: ask(place, model="gone")),
    ],
)
def test_refusals(both: Both, ask: Callable[..., Any], kind: str, status: int, how: Any) -> None:
    """Each of the gateway's own, for chats, responses and messages, streamed or not."""
    library = anthropic if ask is message else openai
    for more in ({}, {"stream": True}):
        with pytest.raises(getattr(library, kind)) as caught:
            how(lambda place, _more=more, **asked: ask(place, **_more, **asked))(both.through)
        assert caught.value.status_code == status
        if status in (429, 503):
            assert int(caught.value.response.headers["retry-after"]) >= 1


def failed(place: Place, ask: Callable[..., Any], **more: Any) -> Any:
    """What it raises, as it compares, and how many events came before."""
    came = 0
    try:
        found = ask(place, **more)
        for _ in found:
            came += 1
    except Exception as error:  # noqa: BLE001 (which one is what is compared)
        return type(error), getattr(error, "status_code", None), getattr(error, "body", None), came
    return None


@pytest.mark.parametrize("ask", [chat, response, message])
@pytest.mark.parametrize("status", [400, 404, 409, 413, 422, 429, 500, 503])
def test_an_engines_own_errors(both: Both, ask: Callable[..., Any], status: int) -> None:
    """Class, status and body are those of the engine without a gateway."""
    more = {"extra_headers": {WISH: str(status)}}
    assert failed(both.through, ask, **more) == failed(both.direct, ask, **more)


@pytest.mark.parametrize("ask", [chat, response, message])
def test_a_cut_stream(both: Both, ask: Callable[..., Any]) -> None:
    """A client in the middle of a stream hears that it broke off, by what its library has for that. How much
    came before is the network's."""
    for place in (both.direct, both.through):
        error, status, _, _ = failed(place, ask, stream=True, extra_headers={WISH: "cut"})
        # Anthropic's library passes on the transport's own.
        assert issubclass(error, httpx.TransportError if ask is message else openai.APIConnectionError)
        assert status is None


def test_huggingfaces_client(both: Both) -> None:
    """Refusals are its HfHubHTTPError with the status, streamed or not."""
    for status, place, model in (
        (401, both.through._replace(key="sk-wrong"), MODEL),
        (403, both.through._replace(key=FAR), MODEL),
        (404, both.through, "nope"),
        (503, both.through, "gone"),
    ):
        for stream in (False, True):
            with pytest.raises(hub_errors.HfHubHTTPError) as caught:
                place.hub("/v1").chat_completion(SAY, model=model, stream=stream)
            assert caught.value.response is not None
            assert caught.value.response.status_code == status


def test_text_generations_client(both: Both) -> None:
    """TGI's own client goes by `error_type`, and by the status where that says nothing."""
    refused: list[tuple[type[Exception], Place]] = [
        (tgi_errors.UnknownError, both.through._replace(key="sk-wrong")),
        (tgi_errors.ShardNotReadyError, both.through._replace(key=FAR)),
    ]
    for kind, place in refused:
        with pytest.raises(kind):
            place.tgi().generate("Which?")
    with pytest.raises(tgi_errors.ValidationError):
        both.through.tgi().generate(BIG)

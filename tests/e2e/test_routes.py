"""The routes beside chats and completions, through the real Envoy, with the clients that call them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest
from gateway import KEYS, Gateway, wait_for
from openai import BadRequestError, OpenAI
from replicas import Replicas, specs

pytestmark = pytest.mark.envoy

TENANT = "acme"


@pytest.fixture(scope="module")
def fleet() -> Iterator[tuple[Gateway, Replicas]]:
    """A pool of three simulated replicas that say they are vLLM, whose errors are then vLLM's."""
    with Replicas(specs(3)) as replicas:
        pool = {"models": ["tiny-chat"], "engine": "vllm", "addresses": replicas.addresses}
        with Gateway({"chat": pool}) as gateway:
            yield gateway, replicas


@pytest.fixture(scope="module")
def client(fleet: tuple[Gateway, Replicas]) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{fleet[0].url}/v1", api_key=KEYS[TENANT], max_retries=0, timeout=60) as client:
        yield client


def post(gateway: Gateway, path: str, body: Any, **headers: str) -> httpx.Response:
    """One request with acme's key."""
    content = body if isinstance(body, bytes) else None
    return httpx.post(
        f"{gateway.url}{path}",
        content=content,
        json=None if content is not None else body,
        headers={
            "authorization": f"Bearer {KEYS[TENANT]}",
            "content-type": "application/json",
            **headers,
        },
        timeout=60,
    )


class Metered:
    """What acme's figures have grown by since this was made."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        wait_for("the records", gateway.quiet)
        self._before = self._now()

    def _now(self) -> dict[str, int]:
        figures = self._gateway.status()["tenants"].get(TENANT, {})
        return {name: figures.get(name, 0) for name in ("ok", "refused", "prompt_tokens", "output_tokens")}

    def grown(self) -> tuple[int, int, int]:
        """Requests that ended well, prompt tokens and output tokens, once the books are closed."""
        wait_for("the records", self._gateway.quiet)
        now = self._now()
        return (
            now["ok"] - self._before["ok"],
            now["prompt_tokens"] - self._before["prompt_tokens"],
            now["output_tokens"] - self._before["output_tokens"],
        )


def test_embeddings_are_charged_their_input_alone(fleet: tuple[Gateway, Replicas], client: OpenAI) -> None:
    """A text, texts, and a batch larger than any replica takes at once: the engine's count, and no output."""
    metered = Metered(fleet[0])
    inputs: list[str | list[str]] = ["To port!", ["To starboard!", "Astern, and slowly."], ["x y z"] * 60]
    tokens = 0
    for each in inputs:
        made = client.embeddings.create(model="tiny-chat", input=each)
        assert len(made.data) == (1 if isinstance(each, str) else len(each))
        tokens += made.usage.prompt_tokens
    assert metered.grown() == (3, tokens, 0)


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_reranking_reads_the_query_with_each_document(fleet: tuple[Gateway, Replicas], path: str) -> None:
    """As Cohere's and Jina's clients ask: the best first, charged as the engine counts."""
    metered = Metered(fleet[0])
    body = {"model": "tiny-chat", "query": "Where is north?", "documents": ["up", "left", "down"], "top_n": 2}
    answer = post(fleet[0], path, body)
    assert answer.status_code == 200, answer.text
    said = answer.json()
    scores = [each["relevance_score"] for each in said["results"]]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    assert metered.grown() == (1, said["usage"]["prompt_tokens"], 0)


def test_scores_of_pairs(fleet: tuple[Gateway, Replicas]) -> None:
    """vLLM's route: one text with each of several."""
    metered = Metered(fleet[0])
    answer = post(fleet[0], "/v1/score", {"model": "tiny-chat", "text_1": "north", "text_2": ["up", "down"]})
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert len(said["data"]) == 2
    assert metered.grown() == (1, said["usage"]["prompt_tokens"], 0)


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/embeddings", b"{", "not valid JSON"),
        ("/v1/embeddings", b"", "the body is empty"),
        ("/v1/embeddings", {"model": "tiny-chat"}, "'input' is missing"),
        ("/v1/embeddings", {"model": "tiny-chat", "input": []}, "'input' is missing"),
        ("/v1/embeddings", {"model": 7, "input": "x"}, "the body does not fit"),
        ("/v1/rerank", {"query": "x"}, "'documents' is missing"),
        ("/rerank", {"documents": ["x"]}, "'query' is missing"),
        ("/v1/rerank", {"query": "x", "documents": []}, "a list is empty"),
        ("/v1/score", {"text_1": "x"}, "'documents' is missing"),
    ],
)
def test_malformed_bodies_are_400_in_openais_words(
    fleet: tuple[Gateway, Replicas], path: str, body: Any, said: str
) -> None:
    """Each says what is wrong, as the engine would say it."""
    answer = post(fleet[0], path, body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "invalid_request"


def test_openais_client_raises_what_it_has_for_it(client: OpenAI) -> None:
    """A mistake of the body is its BadRequestError."""
    with pytest.raises(BadRequestError, match="'input' is missing"):
        client.embeddings.create(model="tiny-chat", input=[])

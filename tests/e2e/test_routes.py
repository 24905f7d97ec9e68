"""The routes beside chats and completions, through the real Envoy, with the clients that call them."""

from __future__ import annotations

import io
import wave as wave_file
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic as anthropic_errors
import httpx2 as httpx
import pytest
from anthropic import Anthropic
from gateway import KEYS, Gateway, wait_for
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI
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


def test_a_response_whole_and_streamed(fleet: tuple[Gateway, Replicas], client: OpenAI) -> None:
    """OpenAI's client gets its events; usage and text are the engine's, and so is what is charged."""
    metered = Metered(fleet[0])
    whole = client.responses.create(
        model="tiny-chat", input="Which way? [[sim:out=9]]", instructions="Be brief.", max_output_tokens=50
    )
    assert whole.usage is not None
    assert (whole.status, whole.usage.output_tokens) == ("completed", 9)
    events = list(
        client.responses.create(
            model="tiny-chat",
            input=[{"role": "user", "content": [{"type": "input_text", "text": "[[sim:out=12]] Why?"}]}],
            stream=True,
        )
    )
    assert [each.type for each in events].count("response.output_text.delta") == 12
    last = events[-1]
    assert last.type == "response.completed"
    usage = last.response.usage
    assert usage is not None
    assert whole.output_text
    prompt = whole.usage.input_tokens + usage.input_tokens
    assert metered.grown() == (2, prompt, 9 + usage.output_tokens)


def test_a_response_is_continued_where_it_is_held(fleet: tuple[Gateway, Replicas], client: OpenAI) -> None:
    """By its id it is had, continued and dropped on the one replica of three that holds it; reading it once
    more costs nothing more."""
    gateway = fleet[0]
    raw = client.responses.with_raw_response
    made, holders = [], set()
    for number in range(6):
        answer = raw.create(model="tiny-chat", input=f"{number} [[sim:out=3]]", stream=False)
        made.append((answer.parse().id, answer.headers["x-sim-port"]))
        holders.add(answer.headers["x-sim-port"])
    assert len(holders) > 1
    metered = Metered(gateway)
    for identity, port in made:
        got = raw.retrieve(identity)
        assert (got.parse().id, got.headers["x-sim-port"]) == (identity, port)
    assert metered.grown() == (len(made), 0, 0)
    for identity, port in made:
        more = raw.create(model="tiny-chat", input="And then? [[sim:out=2]]", previous_response_id=identity)
        assert more.headers["x-sim-port"] == port
        client.responses.delete(identity)
        with pytest.raises(NotFoundError, match="404"):
            client.responses.retrieve(identity)


def test_a_response_is_known_as_soon_as_its_client_has_it(client: OpenAI) -> None:
    """Who continues at once what has just come is not told that it is unknown, whole or streamed."""
    identity = client.responses.create(model="tiny-chat", input="[[sim:out=1]]").id
    for number in range(40):
        if number % 2:
            *_, last = client.responses.create(
                model="tiny-chat", input="[[sim:out=1]]", previous_response_id=identity, stream=True
            )
            assert last.type == "response.completed"
            identity = last.response.id
        else:
            identity = client.responses.create(
                model="tiny-chat", input="[[sim:out=1]]", previous_response_id=identity
            ).id


def test_another_tenants_response_is_not_there(fleet: tuple[Gateway, Replicas], client: OpenAI) -> None:
    """Whoever learns an id of another tenant's gets the same 404 as for one that never was."""
    identity = client.responses.create(model="tiny-chat", input="A secret. [[sim:out=2]]").id
    with OpenAI(base_url=f"{fleet[0].url}/v1", api_key=KEYS["globex"], max_retries=0) as other:
        for each in (identity, "resp_never"):
            calls: list[Any] = [
                lambda each=each: other.responses.retrieve(each),
                lambda each=each: other.responses.delete(each),
                lambda each=each: other.responses.create(
                    model="tiny-chat", input="x", previous_response_id=each
                ),
            ]
            for call in calls:
                with pytest.raises(NotFoundError, match=f"no response '{each}' here") as caught:
                    call()
                assert caught.value.code == "response_not_found"
    assert client.responses.retrieve(identity).id == identity


@pytest.fixture(scope="module")
def anthropic(fleet: tuple[Gateway, Replicas]) -> Iterator[Anthropic]:
    with Anthropic(base_url=fleet[0].url, api_key=KEYS[TENANT], max_retries=0, timeout=60) as client:
        yield client


SAY: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "Ahoy! [[sim:out=11]]"}]}]


def test_messages_whole_and_streamed(fleet: tuple[Gateway, Replicas], anthropic: Anthropic) -> None:
    """Anthropic's client, its key in x-api-key, gets its events; what is charged is the engine's usage."""
    metered = Metered(fleet[0])
    whole = anthropic.messages.create(
        model="tiny-chat", messages=SAY, max_tokens=50, system="You are a mate."
    )
    assert (whole.usage.output_tokens, whole.stop_reason) == (11, "end_turn")
    with anthropic.messages.stream(model="tiny-chat", messages=SAY, max_tokens=5) as stream:
        pieces = list(stream.text_stream)
        last = stream.get_final_message()
    assert (len(pieces), last.usage.output_tokens, last.stop_reason) == (5, 5, "max_tokens")
    prompt = whole.usage.input_tokens + last.usage.input_tokens
    assert metered.grown() == (2, prompt, 16)


def test_messages_tokens_are_counted_for_nothing(
    fleet: tuple[Gateway, Replicas], anthropic: Anthropic
) -> None:
    """count_tokens takes no place and is charged nothing."""
    metered = Metered(fleet[0])
    assert anthropic.messages.count_tokens(model="tiny-chat", messages=SAY).input_tokens > 0
    assert metered.grown() == (1, 0, 0)


def test_anthropics_client_raises_what_it_has_for_it(
    fleet: tuple[Gateway, Replicas], anthropic: Anthropic
) -> None:
    """A wrong key, an unknown model, a body without messages and an unknown path, each in its own shape."""
    with pytest.raises(anthropic_errors.NotFoundError) as missing:
        anthropic.messages.create(model="nope", messages=SAY, max_tokens=5)
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    with Anthropic(base_url=fleet[0].url, api_key="sk-wrong", max_retries=0) as stranger:
        with pytest.raises(anthropic_errors.AuthenticationError) as unknown:
            stranger.messages.create(model="tiny-chat", messages=SAY, max_tokens=5)
        assert unknown.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
    answer = post(fleet[0], "/v1/messages", {"model": "tiny-chat", "max_tokens": 5})
    assert answer.status_code == 400
    assert answer.json() == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "'messages' is missing"},
    }
    for body, said in ((b"{", "not valid JSON"), (b"", "the body is empty"), (b"[1]", "does not fit")):
        answer = post(fleet[0], "/v1/messages", body)
        assert answer.status_code == 400
        assert said in answer.json()["error"]["message"]
    with Anthropic(base_url=f"{fleet[0].url}/v1", api_key=KEYS[TENANT], max_retries=0) as twice:
        with pytest.raises(anthropic_errors.NotFoundError, match="use the base address"):
            twice.messages.create(model="tiny-chat", messages=SAY, max_tokens=5)
    # Envoy's own words for what never reaches the service.
    answer = post(fleet[0], "/v1/messages", b"x" * (4 * 1024 * 1024 + 1))
    assert answer.status_code == 413
    assert answer.json()["error"]["type"] == "request_too_large"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not valid JSON"),
        ({"model": "tiny-chat"}, "'input' is missing"),
        ({"input": "x", "previous_response_id": 7}, "no id of a response"),
        ({"model": [], "input": "x"}, "the body does not fit"),
    ],
)
def test_malformed_responses_are_400(fleet: tuple[Gateway, Replicas], body: Any, said: str) -> None:
    """In OpenAI's words."""
    answer = post(fleet[0], "/v1/responses", body)
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]["message"]


def test_one_model_is_told_like_all(fleet: tuple[Gateway, Replicas], client: OpenAI) -> None:
    """/v1/models/{id} is the list's own entry; of another there is none."""
    assert client.models.retrieve("tiny-chat") == client.models.list().data[0]
    with pytest.raises(NotFoundError, match="no model 'nope' here"):
        client.models.retrieve("nope")


def test_tokenize_in_vllms_shape(fleet: tuple[Gateway, Replicas]) -> None:
    """`prompt` and `messages` reach a replica, which here takes TGI's `inputs` alone and says so itself."""
    for body in ({"prompt": "Ahoy!"}, {"messages": [{"role": "user", "content": "Ahoy!"}]}):
        answer = post(fleet[0], "/tokenize", {"model": "tiny-chat", **body})
        assert answer.status_code == 422
        assert answer.headers["x-sim-port"]


def wave(size: int) -> bytes:
    """A sound of so many bytes, its header included."""
    out = io.BytesIO()
    with wave_file.open(out, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", "not compressed"))
        file.writeframes(b"\0" * (size - 44))
    return out.getvalue()


@pytest.mark.parametrize("size", [2_000, 60_000, 1_000_000])
def test_a_sound_is_transcribed(fleet: tuple[Gateway, Replicas], client: OpenAI, size: int) -> None:
    """The model is read from the form's head, whatever the size; its output is estimated by its bytes."""
    metered = Metered(fleet[0])
    made = client.audio.transcriptions.create(model="tiny-chat", file=("a.wav", wave(size)))
    assert made.text
    ok, _, output = metered.grown()
    assert ok == 1
    assert 0 < output < 50 + len(made.text)
    with pytest.raises(NotFoundError, match="no model 'nope' here"):
        client.audio.transcriptions.create(model="nope", file=("a.wav", wave(size)))


def resident_peak(pid: int) -> int:
    """The most memory that a process has had since `reset_peak`, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024


def reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def test_a_file_of_25_mb_never_comes_to_the_service(fleet: tuple[Gateway, Replicas], client: OpenAI) -> None:
    """Its memory stays as it was, at the peak too; what is above the limit, or says no length, is refused."""
    gateway = fleet[0]
    sound = wave(24_900_000)
    client.audio.transcriptions.create(model="tiny-chat", file=("a.wav", wave(50_000)))
    pid = gateway.service.pid
    reset_peak(pid)
    before = resident_peak(pid)
    for _ in range(3):
        assert client.audio.transcriptions.create(model="tiny-chat", file=("a.wav", sound)).text
    assert resident_peak(pid) - before < 4 * 1024 * 1024
    with pytest.raises(APIStatusError) as caught:
        client.audio.transcriptions.create(model="tiny-chat", file=("a.wav", sound + sound[:2_000_000]))
    assert caught.value.status_code == 413

    def pieces() -> Iterator[bytes]:
        yield b"--b\r\n"

    unsaid = {"authorization": f"Bearer {KEYS[TENANT]}", "content-type": "multipart/form-data; boundary=b"}
    answer = httpx.post(f"{gateway.url}/v1/audio/transcriptions", content=pieces(), headers=unsaid)
    assert answer.status_code == 411
    assert answer.json()["error"]["code"] == "length_required"


def test_malformed_forms_and_speech_are_400(fleet: tuple[Gateway, Replicas]) -> None:
    """No form, no text: each says so in OpenAI's words. A form without a model leaves it to a header."""
    gateway = fleet[0]
    answer = post(gateway, "/v1/audio/transcriptions", {"model": "tiny-chat"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert "multipart/form-data" in answer.json()["error"]["message"]
    for body in ({"model": "tiny-chat"}, {"model": "tiny-chat", "input": []}):
        answer = post(gateway, "/v1/audio/speech", body)
        assert answer.status_code == 400
        assert "'input' is" in answer.json()["error"]["message"]
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n--b--\r\n'
    form = {"content-type": "multipart/form-data; boundary=b"}
    assert post(gateway, "/v1/audio/transcriptions", body, **form, **{"x-model": "nope"}).status_code == 404
    assert (
        post(gateway, "/v1/audio/transcriptions", body, **form, **{"x-model": "tiny-chat"}).status_code == 200
    )


def test_speech_is_charged_its_text(fleet: tuple[Gateway, Replicas], client: OpenAI) -> None:
    """The sound comes as it is, and has no tokens."""
    metered = Metered(fleet[0])
    sound = client.audio.speech.create(model="tiny-chat", input="All hands on deck!", voice="alloy").read()
    assert len(sound) > 3_000
    ok, prompt, output = metered.grown()
    assert (ok, output) == (1, 0)
    assert prompt == 0, "the engine counts none; its quota is charged what was reserved"

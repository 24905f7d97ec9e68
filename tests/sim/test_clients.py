"""The clients that users have, unchanged, against the simulator."""

from __future__ import annotations

import json
import urllib.request
import warnings
from collections.abc import Iterator

import pytest

from extproc.sim.listening import ReplicaSpec
from tests.sim.conftest import serving
from tests.stand.waits import PATIENCE_S, wait_until

pytestmark = [
    # text-generation is written against pydantic 1's names, and keeps its session's socket open.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:text_generation"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """One replica, a hundred times faster than life."""
    spec = ReplicaSpec(name="real", time_scale=100, max_input_tokens=900, max_total_tokens=1000)
    with serving(spec) as running:
        yield f"http://{running.addresses[0]}"


def fault(address: str, body: dict[str, object]) -> None:
    """Script a fault from outside the loop."""
    request = urllib.request.Request(
        f"{address}/sim/fault", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=PATIENCE_S).close()


def test_text_generation_generates_streams_and_raises(address: str) -> None:
    """Hugging Face's old client: whole, streamed, and its own exception for a 422."""
    text_generation = pytest.importorskip("text_generation")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = text_generation.Client(address, timeout=PATIENCE_S)
        answer = client.generate("Ahoy [[sim:out=6]]", max_new_tokens=20)
        assert answer.details.generated_tokens == 6
        assert answer.details.finish_reason.value == "eos_token"
        assert len(answer.generated_text.split()) == 6
        events = list(client.generate_stream("Ahoy [[sim:out=6]]", max_new_tokens=4))
        assert len(events) == 4
        assert events[-1].generated_text == "".join(event.token.text for event in events)
        assert events[-1].details.finish_reason.value == "length"
        with pytest.raises(text_generation.errors.ValidationError, match="must be <= 1000"):
            client.generate("Ahoy", max_new_tokens=5000)


def test_hugging_face_inference_client(address: str) -> None:
    """text_generation with details, its stream, and chat."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    client = huggingface_hub.InferenceClient(model=address, timeout=PATIENCE_S)
    answer = client.text_generation("Ahoy [[sim:out=5]]", details=True, max_new_tokens=30)
    assert answer.details.generated_tokens == 5
    words = list(client.text_generation("Ahoy [[sim:out=5]]", stream=True, max_new_tokens=30))
    assert "".join(words) == answer.generated_text
    events = list(client.text_generation("Ahoy [[sim:out=5]]", stream=True, details=True, max_new_tokens=30))
    assert events[-1].details.generated_tokens == 5
    messages = [{"role": "user", "content": "Ahoy [[sim:out=4]]"}]
    chat = client.chat_completion(messages, max_tokens=50)
    assert chat.usage.completion_tokens == 4
    chunks = list(client.chat_completion(messages, max_tokens=50, stream=True))
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == chat.choices[0].message.content


def test_openai_client(address: str) -> None:
    """Chat, streamed chat with usage, completions, models, and its exception for a 422."""
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S) as client:
        messages = [{"role": "user", "content": "Ahoy [[sim:out=4]]"}]
        chat = client.chat.completions.create(model="any", messages=messages)
        assert chat.choices[0].finish_reason == "stop"
        assert chat.usage.completion_tokens == 4
        chunks = list(
            client.chat.completions.create(
                model="any", messages=messages, stream=True, stream_options={"include_usage": True}
            )
        )
        text = "".join(chunk.choices[0].delta.content for chunk in chunks if chunk.choices)
        assert text == chat.choices[0].message.content
        assert chunks[-1].usage.completion_tokens == 4
        done = client.completions.create(model="any", prompt="Ahoy [[sim:out=9]]", max_tokens=3)
        assert done.choices[0].finish_reason == "length"
        *_, last = client.completions.create(model="any", prompt="Ahoy [[sim:out=9]]", stream=True)
        assert last.usage.completion_tokens == 9
        assert client.models.list().data[0].id == "meta-llama/Meta-Llama-3-8B-Instruct"
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            client.chat.completions.create(model="any", messages=messages, max_tokens=5000)
        assert "must be <= 1000" in caught.value.response.text


def test_openai_client_sees_an_error_inside_a_200_stream(address: str) -> None:
    """The trap as a user meets it: no HTTP error, an exception while reading."""
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S) as client:
        messages = [{"role": "user", "content": "Ahoy"}]
        stream = client.chat.completions.create(model="any", messages=messages, max_tokens=5000, stream=True)
        assert stream.response.status_code == 200
        with pytest.raises(openai.APIError, match="must be <= 1000"):
            list(stream)


def test_a_client_that_closes_its_stream_frees_the_permit(address: str) -> None:
    """As a user's Ctrl-C does."""
    openai = pytest.importorskip("openai")
    fault(address, {"slowdown": 50})
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S) as client:
        messages = [{"role": "user", "content": "Ahoy [[sim:out=900]]"}]
        stream = client.chat.completions.create(model="any", messages=messages, stream=True)
        next(iter(stream))
        stream.close()

    def state() -> dict[str, object]:
        with urllib.request.urlopen(f"{address}/sim/state", timeout=PATIENCE_S) as answer:
            found: dict[str, object] = json.load(answer)
        return found

    wait_until(lambda: not state()["permits_in_use"], state)
    fault(address, {"clear": True})
    assert state()["cancelled"] == 1

"""Messages and responses are metered as chats are: streams that are left, errors inside a 200, and lies."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import pytest
from gateway import Gateway, wait_for
from shaped_engine import ShapedEngine
from test_metering import MONTH, ask, assert_charged, charged, together
from turn_shapes import failed, whole_response

from extproc.core.tenant import hash_key

pytestmark = pytest.mark.envoy

MESSAGES, RESPONSES, EMBEDDINGS = "/v1/messages", "/v1/responses", "/v1/embeddings"
CHAT = "/v1/chat/completions"
TOKENS, GAP_MS = 160, 15
LEAVES = (20, 100, None)
CASES = [(path, left) for path in (MESSAGES, RESPONSES) for left in LEAVES]
BODIES: dict[str, dict[str, Any]] = {
    MESSAGES: {"max_tokens": 2_000, "messages": [{"role": "user", "content": "a story"}]},
    RESPONSES: {"max_output_tokens": 2_000, "input": "a story"},
    EMBEDDINGS: {"input": "a story"},
    CHAT: {"messages": [{"role": "user", "content": "a story"}]},
}
OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
MISTAKEN = {"type": "error", "error": {"type": "invalid_request_error", "message": "no such image"}}
BROKEN = {"type": "error", "code": "server_error", "message": "the engine is dead", "param": None}
DEAD = {"code": "server_error", "message": "the engine is dead"}
#: Where, whether it streams, what is said, after how many tokens, and how it ends.
ERRORS: list[tuple[str, bool, Any, int, str]] = [
    (MESSAGES, True, [OVERLOADED], 0, "refused"),
    (MESSAGES, True, [OVERLOADED], 40, "refused"),
    (MESSAGES, True, [MISTAKEN], 0, "refused"),
    (MESSAGES, False, OVERLOADED, 0, "refused"),
    (RESPONSES, True, [BROKEN], 0, "error"),
    (RESPONSES, True, [BROKEN], 40, "error"),
    (RESPONSES, True, [failed(DEAD)], 40, "error"),
    (RESPONSES, False, whole_response(status="failed", error=DEAD), 0, "error"),
    (EMBEDDINGS, False, {"error": {**DEAD, "type": "InternalServerError", "code": 500}}, 0, "error"),
]
HELD = "resp_held"
FILM = {"type": "video_url", "video_url": {"url": "https://x/film"}}
#: What stands for more than it is: where, the body, and what its engine calls the prompt's tokens.
NAMED: dict[str, tuple[str, dict[str, Any], str]] = {
    "continued": (RESPONSES, {"input": "go on", "previous_response_id": HELD}, "input_tokens"),
    "searched": (RESPONSES, {"input": "look it up", "tools": [{"type": "web_search"}]}, "input_tokens"),
    "film": (CHAT, {"messages": [{"role": "user", "content": [FILM]}]}, "prompt_tokens"),
    "pictured": ("/v1/rerank", {"query": "a cat", "documents": [{"image": "https://x"}]}, "prompt_tokens"),
}
NAMES = [f"{path.rpartition('/')[2]}-{left}".lower() for path, left in CASES]
PEOPLE = [
    *NAMES,
    *(f"error-{n}" for n in range(len(ERRORS))),
    "liar",
    "vectors",
    "packed",
    "plain",
    *NAMED,
    "broken",
    "well",
]


@pytest.fixture(scope="module")
def engine() -> Iterator[ShapedEngine]:
    with ShapedEngine() as engine:
        yield engine


@pytest.fixture(scope="module")
def gateway(engine: ShapedEngine) -> Iterator[Gateway]:
    """A tenant for each case, which pays one for a token; prompts of `vectors` alone are paid."""
    tenants = [
        {"name": name, "keys": [{"sha256": hash_key(name)}], "quota": {"budget_per_month": MONTH}}
        for name in PEOPLE
    ]
    pool: dict[str, Any] = {"engine": "vllm", "price": {"output_per_million": 1_000_000}}
    chat, vectors, apart, _ = engine.addresses
    pools = {
        "chat": {**pool, "models": ["m"], "addresses": [{"address": chat, "max_concurrent": 256}]},
        "vectors": {
            **pool,
            "models": ["vectors"],
            "price": {"input_per_million": 1_000_000},
            "addresses": [vectors],
        },
        "apart": {**pool, "models": ["apart"], "addresses": [apart]},
    }
    with Gateway(pools, tenants=tenants) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def streams(gateway: Gateway, engine: ShapedEngine) -> dict[tuple[Any, ...], list[bytes]]:
    """Both dialects, left early, late and not at all."""

    def call(path: str, left: int | None) -> list[bytes]:
        name = NAMES[CASES.index((path, left))]
        body = {**BODIES[path], "stream": True}
        return ask(gateway, name, body, path=path, leave_after=left, tokens=TOKENS, gap_ms=GAP_MS)

    found = together(CASES, call)
    wait_for("quiet", gateway.quiet)
    return found


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_stream_of_turns_is_charged_what_was_produced(
    gateway: Gateway,
    engine: ShapedEngine,
    streams: dict[tuple[Any, ...], list[bytes]],
    case: tuple[str, int | None],
) -> None:
    """Within 5 % of it, wherever the client leaves."""
    name = NAMES[CASES.index(case)]
    produced = engine.written[name]
    assert produced == TOKENS if case[1] is None else produced < TOKENS
    assert_charged(charged(gateway, name), streams[case], produced)


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_an_error_inside_a_200_is_one_in_every_dialect(gateway: Gateway, number: int) -> None:
    """Anthropic's error event, a response's own and one that failed; only what came before it is paid."""
    path, streamed, said, before, end = ERRORS[number]
    settled = gateway.status()["counts"].get(f"settled.{end}", 0)
    body = {**BODIES[path], "stream": streamed} if path != EMBEDDINGS else BODIES[path]
    ask(gateway, f"error-{number}", body, path=path, say=json.dumps(said), tokens=before)
    wait_for("quiet", gateway.quiet)
    counts = {k: v for k, v in gateway.status()["counts"].items() if k.startswith("settled")}
    assert counts.get(f"settled.{end}", 0) == settled + 1, counts
    assert charged(gateway, f"error-{number}") == pytest.approx(before, abs=2)


def test_a_good_response_names_its_error_as_null(gateway: Gateway) -> None:
    """`"error": null` stands in every response that is well: it is none."""
    settled = gateway.status()["counts"].get("settled.ok", 0)
    said = whole_response(usage={"input_tokens": 11, "output_tokens": 30, "total_tokens": 41})
    ask(gateway, "plain", BODIES[RESPONSES], path=RESPONSES, say=json.dumps(said))
    wait_for("quiet", gateway.quiet)
    assert charged(gateway, "plain") == pytest.approx(30, abs=1)
    assert gateway.status()["counts"]["settled.ok"] == settled + 1


def test_an_engines_claim_of_an_embedding_is_bounded(gateway: Gateway) -> None:
    """A prompt has no more tokens than its bytes and what may be beside them, whatever the engine says."""
    impossible = gateway.status()["counts"].get("metered.impossible", 0)
    said = json.dumps({"data": [], "usage": {"prompt_tokens": 100_000_000, "total_tokens": 100_000_000}})
    ask(gateway, "vectors", {**BODIES[EMBEDDINGS], "model": "vectors"}, path=EMBEDDINGS, say=said)
    wait_for("quiet", gateway.quiet)
    assert charged(gateway, "vectors") <= 100
    assert gateway.status()["counts"]["metered.impossible"] == impossible + 1


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize(
    ("path", "said"), [(RESPONSES, BROKEN), (CHAT, {"error": {"message": "x", "code": 500}})]
)
def test_a_tenants_errors_inside_a_200_leave_the_replica_whole(
    gateway: Gateway, path: str, said: dict[str, Any], streams: bool
) -> None:
    """An image that no engine can decode, as long as others are answered well between them."""
    body = {**BODIES[path], "model": "apart", "stream": streams}
    errors = gateway.status()["counts"].get("settled.error", 0)
    shown = failed(DEAD)["response"] if path == RESPONSES and not streams else said
    for _ in range(5):
        ask(gateway, "broken", body, path=path, say=json.dumps([shown] if streams else shown))
        ask(gateway, "well", body, path=path, tokens=3)
    wait_for("quiet", gateway.quiet)
    wait_for("five errors", lambda: gateway.status()["counts"]["settled.error"] == errors + 5)
    (replica,) = (each for each in gateway.status()["endpoints"] if each["pool"] == "apart")
    assert (replica["health"], replica["causes"]) == (1.0, {})


@pytest.mark.parametrize("name", NAMED)
def test_what_a_body_only_names_is_charged_as_counted(gateway: Gateway, name: str) -> None:
    """A conversation that its engine holds, a film by its address: 100,000 tokens of a prompt of a few words.

    The replica is no liar for it.
    """
    path, body, prompt = NAMED[name]
    impossible = gateway.status()["counts"].get("metered.impossible", 0)
    before = whole_response(usage={"input_tokens": 5, "output_tokens": 5, "total_tokens": 10})
    if name == "continued":
        ask(gateway, name, {**BODIES[RESPONSES]}, path=RESPONSES, say=json.dumps({**before, "id": HELD}))
        wait_for("the response is known", lambda: gateway.status()["responses"]["known"])
    paid = gateway.tenant(name)["prompt_tokens"]
    said = {"object": "x", "usage": {prompt: 100_000, "total_tokens": 100_000}}
    ask(gateway, name, body, path=path, say=json.dumps(said))
    wait_for("quiet", gateway.quiet)
    wait_for("its charge", lambda: gateway.tenant(name)["prompt_tokens"] - paid == 100_000)
    assert gateway.status()["counts"].get("metered.impossible", 0) == impossible


@pytest.mark.parametrize(
    ("path", "usage"),
    [
        (MESSAGES, {"input_tokens": 11, "output_tokens": 100_000_000}),
        (RESPONSES, {"input_tokens": 11, "output_tokens": 100_000_000, "total_tokens": 100_000_011}),
    ],
)
def test_a_turns_charge_is_bounded_by_what_was_asked(
    gateway: Gateway, path: str, usage: dict[str, int]
) -> None:
    """Its limit stands under another name in each dialect."""
    before = charged(gateway, "liar")
    impossible = gateway.status()["counts"].get("metered.impossible", 0)
    said = {"type": "message", "content": [{"type": "text", "text": "x"}], "usage": usage}
    limit = {"max_tokens": 100} if path == MESSAGES else {"max_output_tokens": 100}
    ask(gateway, "liar", {**BODIES[path], **limit}, path=path, say=json.dumps(said))
    wait_for("quiet", gateway.quiet)
    assert charged(gateway, "liar") - before <= 100
    assert gateway.status()["counts"]["metered.impossible"] == impossible + 1


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES, EMBEDDINGS])
def test_no_engine_packs_these_answers_either(gateway: Gateway, engine: ShapedEngine, path: str) -> None:
    """The client's accept-encoding stays here."""
    lines = ask(gateway, "packed", BODIES[path], path=path, say='{"a":1}', accept_encoding="gzip, br")
    assert b"".join(lines) == gzip.decompress(gzip.compress(b'{"a": 1}'))
    assert "accept-encoding" not in engine.asked["packed"][0]

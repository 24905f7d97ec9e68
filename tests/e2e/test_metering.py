"""What a request is charged, through the real Envoy: streams that are left, errors inside a 200, and lies."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway import Gateway, wait_for
from shaped_engine import DEAD, ShapedEngine

from extproc.core.tenant import hash_key

pytestmark = pytest.mark.envoy

SHAPES = ("vllm", "sglang", "llamacpp", "tgi")
#: What a charge may be apart from what was produced.
APART = 0.05
GAP_MS = 15
TOKENS = 160
#: After so many tokens a client leaves; None: it stays.
LEAVES = (20, 100, None)


def name_of(*parts: object) -> str:
    return "-".join(str(part).lower() for part in parts)


CASES = [(shape, left, asks) for shape in SHAPES for left in LEAVES for asks in (True, False)]
TENANTS = [name_of(*case) for case in CASES] + [
    "eights",
    "beats",
    *(f"error-{n}" for n in range(7)),
    "gzip",
    "best-of",
    "liar",
    "pair",
    "credit",
]
#: Next to nothing of it comes back while a test runs: one token in four minutes.
MONTH = 10_000


@pytest.fixture(scope="module")
def engine() -> Iterator[ShapedEngine]:
    with ShapedEngine() as engine:
        yield engine


@pytest.fixture(scope="module")
def failing() -> Iterator[ShapedEngine]:
    with ShapedEngine(fails=True) as engine:
        yield engine


@pytest.fixture(scope="module")
def gateway(
    engine: ShapedEngine, failing: ShapedEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """A tenant for each case, which pays one for an output token and nothing for its prompt."""
    tenants = [
        {"name": name, "keys": [{"sha256": hash_key(name)}], "quota": {"budget_per_month": MONTH}}
        for name in TENANTS
    ]
    pool = {"models": ["m"], "engine": "vllm", "price": {"output_per_million": 1_000_000}}
    chat, eights, tgi, pair = engine.addresses
    pools = {
        "chat": {**pool, "addresses": [{"address": chat, "max_concurrent": 256}]},
        "eights": {**pool, "models": ["eights"], "addresses": [eights]},
        "tgi": {**pool, "models": ["tgi"], "engine": "tgi", "addresses": [tgi]},
        "pair": {**pool, "models": ["pair"], "addresses": [pair, failing.addresses[0]]},
    }
    audit = {"file": str(tmp_path_factory.mktemp("audit") / "audit.jsonl")}
    with Gateway(pools, tenants=tenants, audit=audit) as gateway:
        yield gateway


def charged(gateway: Gateway, tenant: str) -> float:
    """Output tokens that a tenant has paid."""
    limits = gateway.status()["use"]["tenants"][tenant]["limits"]
    return float(next(each["used"] for each in limits if each["limit"] == "budget_per_month"))


def ask(
    gateway: Gateway,
    tenant: str,
    body: dict[str, Any],
    *,
    path: str = "/v1/chat/completions",
    leave_after: int | None = None,
    **told: object,
) -> list[bytes]:
    """One request; the stream's lines until its end, or until so many tokens were seen."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    headers = {f"x-{key.replace('_', '-')}": str(value) for key, value in told.items()}
    headers |= {"content-type": "application/json", "authorization": f"Bearer {tenant}", "x-name": tenant}
    if encoding := headers.pop("x-accept-encoding", None):
        headers["accept-encoding"] = encoding
    connection.request("POST", path, json.dumps({"model": "m", **body}), headers)
    answer = connection.getresponse()
    lines: list[bytes] = []
    seen = 0
    while line := answer.readline():
        lines.append(line)
        seen += line.count(b" word")
        if leave_after is not None and seen >= leave_after:
            break
    answer.close()
    connection.close()
    return lines


def stream(**more: Any) -> dict[str, Any]:
    """A chat that streams."""
    return {"stream": True, "max_tokens": 2_000, "messages": [{"role": "user", "content": "a story"}], **more}


def assert_charged(paid: float, lines: list[bytes], produced: int) -> None:
    """Between what the client saw and what the engine wrote: what was under way when it left may count."""
    seen = sum(line.count(b" word") for line in lines)
    assert (1 - APART) * seen <= paid <= (1 + APART) * produced, (seen, paid, produced)


def together(calls: list[tuple[Any, ...]], call: Any) -> dict[tuple[Any, ...], Any]:
    """All at once, each in a thread of its own."""
    found: dict[tuple[Any, ...], Any] = {}
    threads = [threading.Thread(target=lambda c=c: found.__setitem__(c, call(*c))) for c in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return found


@pytest.fixture(scope="module")
def streams(gateway: Gateway, engine: ShapedEngine) -> dict[tuple[Any, ...], list[bytes]]:
    """Every shape, left early, late and not at all, with usage asked for and without."""

    def call(shape: str, left: int | None, asks: bool) -> list[bytes]:
        options = {"stream_options": {"include_usage": True}} if asks else {}
        name = name_of(shape, left, asks)
        told = {"shape": shape, "tokens": TOKENS, "gap_ms": GAP_MS}
        return ask(gateway, name, stream(**options), leave_after=left, **told)

    found = together(CASES, call)
    wait_for("quiet", gateway.quiet)
    return found


@pytest.mark.parametrize("case", CASES, ids=[name_of(*case) for case in CASES])
def test_a_stream_is_charged_what_was_produced(
    gateway: Gateway,
    engine: ShapedEngine,
    streams: dict[tuple[Any, ...], list[bytes]],
    case: tuple[str, int | None, bool],
) -> None:
    """Within 5 % of it, in every shape, wherever the client leaves, with usage asked for or not."""
    name = name_of(*case)
    produced = engine.written[name]
    assert produced == TOKENS if case[1] is None else produced < TOKENS
    assert_charged(charged(gateway, name), streams[case], produced)
    said = [line for line in streams[case] if b'"completion_tokens"' in line]
    assert bool(said) is (case[1] is None and case[2]), "usage is told to who asked for it alone"


def test_a_long_stream_is_charged_while_it_runs(gateway: Gateway, engine: ShapedEngine) -> None:
    """Heartbeats hold what is produced: a tenant cannot have several long streams on one reservation."""
    before = charged(gateway, "beats")
    told = {"tokens": 1_500, "holds_at": 800}
    thread = threading.Thread(target=ask, args=(gateway, "beats", stream()), kwargs=told)
    thread.start()
    try:
        wait_for("the charge", lambda: charged(gateway, "beats") - before >= 700)
        assert engine.written["beats"] == 800, "it still runs"
    finally:
        engine.goes_on.set()
        thread.join(60)
    wait_for("quiet", gateway.quiet)
    assert charged(gateway, "beats") - before == pytest.approx(1_500, rel=0.05)


def test_events_of_several_tokens_are_learned(gateway: Gateway, engine: ShapedEngine) -> None:
    """Usage is asked of the engine in the client's name, so that a stream that is left is exact as well."""
    told = {"tokens": 400, "gap_ms": 4, "per_event": 8}
    lines = ask(gateway, "eights", stream(model="eights"), **told)
    wait_for("quiet", gateway.quiet)
    assert charged(gateway, "eights") == pytest.approx(400, rel=0.05)
    assert not [line for line in lines if b"usage" in line], "the client did not ask for it"
    assert lines[-2:] == [b"data: [DONE]\n", b"\n"]
    before = charged(gateway, "eights")
    lines = ask(gateway, "eights", stream(model="eights"), leave_after=160, **told)
    wait_for("quiet", gateway.quiet)
    assert_charged(charged(gateway, "eights") - before, lines, engine.written["eights"])


SAID: list[tuple[str, dict[str, Any], Any, int, str]] = [
    ("/v1/chat/completions", stream(), [DEAD], 0, "error"),
    ("/v1/chat/completions", stream(), [DEAD], 40, "error"),
    ("/v1/chat/completions", stream(), [{"choices": [], **DEAD}], 0, "error"),
    ("/v1/chat/completions", {**stream(), "stream": False}, {"object": "error", "code": 500}, 0, "error"),
    (
        "/generate_stream",
        {"inputs": "a", "model": "tgi"},
        [{"error": "Request failed during generation: x", "error_type": "generation"}],
        0,
        "error",
    ),
    (
        "/v1/chat/completions",
        stream(model="tgi"),
        [{"error": {"message": "Input validation error: too long", "http_status_code": 422}}],
        0,
        "refused",
    ),
    (
        "/v1/chat/completions",
        {**stream(), "stream": False},
        {"error": {"message": "no such image", "type": "BadRequestError", "code": 400}},
        0,
        "refused",
    ),
]


@pytest.mark.parametrize("number", range(len(SAID)))
def test_an_error_inside_a_200_is_an_error(gateway: Gateway, number: int) -> None:
    """It ends as an error, or a refusal where the request is to blame; only what came before it is paid."""
    path, body, said, before, end = SAID[number]
    settled = gateway.status()["counts"].get(f"settled.{end}", 0)
    ask(gateway, f"error-{number}", body, path=path, say=json.dumps(said), tokens=before, shape="tgi")
    wait_for("its end", lambda: gateway.status()["counts"].get(f"settled.{end}", 0) == settled + 1)
    assert charged(gateway, f"error-{number}") == pytest.approx(before, abs=0.5)


def test_a_replica_that_fails_inside_a_200_loses_its_traffic(
    gateway: Gateway, engine: ShapedEngine, failing: ShapedEngine
) -> None:
    """After a few errors it is suspect, as with 500s: it answers fast, and yet gets a small share."""

    def suspect() -> bool:
        rows = {row["address"]: row for row in gateway.status()["endpoints"]}
        return any(rows[address]["health"] < 1.0 for address in failing.addresses if address in rows)

    def call(number: int) -> None:
        for each in range(10):
            messages = [{"role": "user", "content": f"{number}-{each} " * 100}]
            ask(gateway, "pair", stream(model="pair", messages=messages), tokens=20, gap_ms=10)

    # How soon its first errors are known is the machine's affair; from then on the share is ours.
    together([(number,) for number in range(4)], call)
    wait_for("suspicion", suspect)
    assert failing.requests >= 1, "it was tried"
    began, failed = engine.requests, failing.requests
    together([(4 + number,) for number in range(4)], call)
    tried = failing.requests - failed
    assert tried < 0.3 * (engine.requests - began + tried)


def test_no_engine_is_asked_to_pack_its_answer(gateway: Gateway, engine: ShapedEngine) -> None:
    """A packed answer would hide its usage: the client's accept-encoding does not reach the engine."""
    body = {**stream(), "stream": False}
    lines = ask(gateway, "gzip", body, tokens=77, accept_encoding="gzip, deflate, br")
    assert json.loads(b"".join(lines))["usage"]["completion_tokens"] == 77
    assert "accept-encoding" not in engine.asked["gzip"][0]
    wait_for("quiet", gateway.quiet)
    assert charged(gateway, "gzip") == pytest.approx(77, abs=1)


def test_best_of_pays_every_sequence(gateway: Gateway) -> None:
    """TGI says the best sequence's tokens alone; all were produced."""
    body = {"model": "tgi", "inputs": "a", "parameters": {"best_of": 4, "max_new_tokens": 500}}
    said = json.dumps({"generated_text": "x"})
    headers = json.dumps({"x-prompt-tokens": 9, "x-generated-tokens": 50})
    ask(gateway, "best-of", body, path="/generate", say=said, answer_headers=headers)
    wait_for("quiet", gateway.quiet)
    assert charged(gateway, "best-of") == pytest.approx(200, abs=1)


def test_a_charge_is_bounded_by_what_was_asked(gateway: Gateway) -> None:
    """An engine that says a hundred million tokens is not believed, counted and suspected."""
    impossible = gateway.status()["counts"].get("metered.impossible", 0)
    ask(gateway, "liar", {**stream(max_tokens=100), "stream": False}, tokens=30, claims=100_000_000)
    wait_for("quiet", gateway.quiet)
    assert charged(gateway, "liar") <= 100
    assert gateway.status()["counts"]["metered.impossible"] == impossible + 1


def test_operators_forgive_on_record(gateway: Gateway) -> None:
    """`steersman tenant credit` gives back what was used, at once; the audit log says who and why."""
    ask(gateway, "credit", {**stream(max_tokens=100), "stream": False}, tokens=60)
    wait_for("quiet", gateway.quiet)
    assert charged(gateway, "credit") == pytest.approx(60, abs=1)
    command = [sys.executable, "-m", "extproc.cli", "tenant", "credit", "credit", "--cost", "40"]
    done = subprocess.run(
        [*command, "--why", "an incident", "--who", "ann", "--address", gateway.service_address],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert charged(gateway, "credit") == pytest.approx(20, abs=1)
    log = Path(gateway.config["audit"]["file"])
    lines = wait_for("the record", lambda: [x for x in log.read_text().splitlines() if "tenant_credit" in x])
    noted = json.loads(lines[0])
    assert (noted["tenant"], noted["amounts"]["cost"], noted["why"], noted["who"]) == (
        "credit",
        40,
        "an incident",
        "ann",
    )

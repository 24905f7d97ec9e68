"""Answers of other shapes than engines have by themselves: gateways between, pages, ends that are none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from gateway import Gateway, wait_for
from shaped_engine import ShapedEngine
from test_metering import MONTH, ask, assert_charged, charged, stream

from extproc.core.tenant import hash_key

pytestmark = pytest.mark.envoy

WORDS = 12
WHOLE = {**stream(), "stream": False}
DEAD = '{"message": "the engine is dead", "code": 500}'
#: What an engine writes as it is, whether it had streamed tokens before, the answer's type, and how it ends.
WRITTEN: dict[str, tuple[list[str], bool, str, str]] = {
    "no newline": ([f'data: {{"error": {DEAD}}}'], True, "", "error"),
    "two lines": ([f'data: {{"error":\ndata: {DEAD}}}\n\n'], True, "", "error"),
    "two lines first": ([f'data: {{"error":\ndata: {DEAD}}}\n\n'], False, "text/event-stream", "error"),
    "two lines in pieces": (['data: {"error":\n', f"data: {DEAD}}}\n\n"], True, "", "error"),
    "carriage returns": ([f'data: {{"error":\r\ndata: {DEAD}}}\r\n\r\n'], True, "", "error"),
    "its fault": (['data: {"error":\ndata: {"message": "x", "code": 400}}\n\n'], True, "", "refused"),
    "finish": (
        ['data: {"choices":[{"index":0,"delta":{},"finish_reason":"error"}]}\n\n', "data: [DONE]\n\n"],
        True,
        "",
        "error",
    ),
    "abort": (
        ['data: {"text":"","meta_info":{"finish_reason":{"type":"abort","status_code":500}}}\n\n'],
        True,
        "",
        "error",
    ),
    "whole finish": (
        ['{"choices":[{"index":0,"message":{"content":""},"finish_reason":"error"}]}'],
        False,
        "",
        "error",
    ),
    "detail": (['{"detail":"Internal error"}'], False, "", "error"),
    "detail for a stream": (['{"detail":"Internal error"}'], False, "application/json", "error"),
    "page": (["<html><body>Bad gateway</body></html>"], False, "text/html", "error"),
    "page called json": (["\n<!DOCTYPE html><html></html>"], False, "application/json", "error"),
}
#: Ends that are well: a stream without its last word, and one whose last usage has no line's end.
USAGE = '{"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":12,"total_tokens":23}}'
ENDS = {
    "without an end": ([], WORDS),
    "usage without a newline": ([f"data: {USAGE}"], WORDS),
    "usage in two lines": (['data: {"choices":[],\ndata: "usage":' + USAGE[20:] + "\n\n"], WORDS),
}
PEOPLE = [each.replace(" ", "-") for each in (*WRITTEN, *ENDS, "pair", "pair left")]


@pytest.fixture(scope="module")
def engine() -> Iterator[ShapedEngine]:
    with ShapedEngine() as engine:
        yield engine


@pytest.fixture(scope="module")
def gateway(engine: ShapedEngine) -> Iterator[Gateway]:
    """A tenant a case, which pays one for a token; usage is not asked for, so that events are counted."""
    tenants = [
        {"name": name, "keys": [{"sha256": hash_key(name)}], "quota": {"budget_per_month": MONTH}}
        for name in PEOPLE
    ]
    pool = {
        "models": ["m"],
        "engine": "vllm",
        "ask_usage": False,
        "price": {"output_per_million": 1_000_000},
        "addresses": [{"address": engine.addresses[0], "max_concurrent": 256}],
    }
    with Gateway({"chat": pool}, tenants=tenants) as gateway:
        yield gateway


def settled(gateway: Gateway) -> dict[str, int]:
    counts = gateway.status()["counts"]
    return {name: n for name, n in counts.items() if name.startswith("settled.")}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_no_answer_is_an_error(gateway: Gateway, name: str) -> None:
    """However it is written: only the tokens before it are paid, and it counts against who failed."""
    raw, after_tokens, kind, end = WRITTEN[name]
    tenant, before = name.replace(" ", "-"), settled(gateway)
    told: dict[str, Any] = {"raw": json.dumps(raw), "tokens": WORDS if after_tokens else 0}
    if kind:
        told["kind"] = kind
    ask(gateway, tenant, stream() if after_tokens or name == "two lines first" else WHOLE, **told)
    wait_for("quiet", gateway.quiet)
    now = settled(gateway)
    assert {n: c - before.get(n, 0) for n, c in now.items() if c != before.get(n, 0)} == {f"settled.{end}": 1}
    assert charged(gateway, tenant) == pytest.approx(told["tokens"], abs=0.5)


@pytest.mark.parametrize("name", ENDS)
def test_an_end_that_is_cut_short_costs_what_came(gateway: Gateway, name: str) -> None:
    """Without [DONE], a last newline or with an event in two lines it is as good as any other."""
    raw, tokens = ENDS[name]
    tenant, before = name.replace(" ", "-"), settled(gateway)
    ask(gateway, tenant, stream(), raw=json.dumps(raw), tokens=WORDS)
    wait_for("quiet", gateway.quiet)
    assert settled(gateway)["settled.ok"] == before.get("settled.ok", 0) + 1
    assert charged(gateway, tenant) == pytest.approx(tokens, abs=0.5)


@pytest.mark.parametrize("leaves", [None, 60])
def test_each_choice_of_an_event_is_a_token(
    gateway: Gateway, engine: ShapedEngine, leaves: int | None
) -> None:
    """A gateway before an engine may put both answers to n = 2 in one event; each is paid."""
    name = "pair" if leaves is None else "pair-left"
    lines = ask(gateway, name, stream(n=2), leave_after=leaves, tokens=80, choices=2, gap_ms=15)
    wait_for("quiet", gateway.quiet)
    assert_charged(charged(gateway, name), lines, engine.written[name])

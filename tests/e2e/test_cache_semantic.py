"""A question in other words through the real Envoy, with the real model in its own process."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cache_engine import CacheEngine
from cache_gateway import figures, tenant
from gateway import KEYS, Gateway, chat_pool, wait_for

from extproc.extras import missing

pytestmark = [
    pytest.mark.envoy,
    pytest.mark.skipif(missing("semantic"), reason="the extra `semantic` is not installed"),
    pytest.mark.timeout(240),
]

#: Sure soon: the default bound takes more checks than a test should make.
#: And questions that are less alike are refused by guards, whether or not a closer one is kept by then.
SOON = {"wrong_max": 0.05, "confidence": 0.9, "check_share": 0.01, "similarity_min": 0.5}
ANSWER = {
    "id": "1",
    "object": "chat.completion",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Click on it."}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11},
}
#: Wordings asked until one is answered from the cache.
TRIES_MAX = 60


@pytest.fixture(scope="module")
def stand() -> Iterator[tuple[Gateway, CacheEngine]]:
    cache = {"mode": "on", "semantic": SOON}
    with (
        CacheEngine() as engine,
        Gateway(
            chat_pool([engine.address], ask_usage=False),
            tenants=[tenant("acme", cache), tenant("globex", cache)],
            cache={"semantic": {"embed_budget_ms": 2_000}},
        ) as gateway,
    ):
        engine.tell(json.dumps(ANSWER).encode())
        wait_for("the process that embeds", lambda: words(gateway)["up"], timeout_s=120.0)
        yield gateway, engine


def words(gateway: Gateway) -> dict[str, Any]:
    """The figures of the semantic cache."""
    found: dict[str, Any] = figures(gateway)["semantic"]
    return found


def ask(gateway: Gateway, text: str, name: str = "acme") -> tuple[str, Any]:
    """A question; how it was answered, and its answer."""
    body = {"model": "tiny-chat", "temperature": 0, "messages": [{"role": "user", "content": text}]}
    status, headers, answer = gateway.call("/v1/chat/completions", body, key=KEYS[name])
    assert status == 200, answer
    return headers.get("x-steersman-cache", ""), answer


def judged(gateway: Gateway, text: str, name: str = "acme") -> tuple[str, Any]:
    """The same, of which the semantic cache has said something: on a busy machine its word may be late.

    The exact cache knows what was asked before: each time it is written with more blanks.
    """
    while True:
        before = late(gateway, name)
        how, answer = ask(gateway, text.replace(" ", " " * next(GAPS), 1), name)
        if late(gateway, name) == before:
            return how, answer


def late(gateway: Gateway, name: str) -> int:
    """A tenant's questions of which nothing was heard in time, or that could not be asked."""
    found = words(gateway)["requests"].get(name, {})
    return sum(found.get(why, 0) for why in ("late", "busy", "away"))


#: No two wordings are written with the same blanks.
GAPS = itertools.count(1)


def wording() -> str:
    """The same question in another way than the last time."""
    return f"How {('do', 'can')[next(TURNS) % 2]} I reset my password?"


TURNS = itertools.count()


def taught(gateway: Gateway) -> tuple[str, Any]:
    """Ask in other words until one is answered from the cache; how, and the answer."""
    for _ in range(TRIES_MAX):
        kept = words(gateway)
        before = sum(kept["checks"].values()) + kept["questions"]
        how, answer = judged(gateway, wording())
        if how.startswith("semantic"):
            return how, answer
        wait_for(
            "it was compared or kept",
            lambda: sum(words(gateway)["checks"].values()) + words(gateway)["questions"] > before,  # noqa: B023
        )
    raise AssertionError(words(gateway))


def test_a_question_in_other_words_is_answered_once_it_was_checked(
    stand: tuple[Gateway, CacheEngine],
) -> None:
    """Not at first; then by the kept answer with its usage, marked. Look-alikes and other tenants are not."""
    gateway, engine = stand
    how, answer = taught(gateway)
    asked = engine.requests
    assert asked > 3
    kind, age, likely = how.split("; ")
    assert kind == "semantic"
    assert int(age.removeprefix("age=")) >= 0
    assert 0.95 <= float(likely.removeprefix("p=")) <= 1.0
    assert answer == ANSWER
    others = (
        ("How do I reset my phone?", "acme"),
        ("How do I not reset my password?", "acme"),
        ("How do I reset my 2 passwords?", "acme"),
        ("How can I reset my password?", "globex"),
    )
    for text, name in others:
        assert judged(gateway, text, name)[0] == "", text
    # Each of them, and as often again as nothing was heard of one in time.
    assert engine.requests >= asked + len(others)
    found = words(gateway)
    assert found["requests"]["acme"]["hit"] >= 1
    assert found["checks"]["same"] >= 3
    assert sum(found["refused"].values()) >= 3
    assert "hit" not in found["requests"]["globex"]
    assert set(found["scopes"]) == {"tenant:acme", "tenant:globex"}
    assert figures(gateway)["requests"]["acme"]["semantic"] >= 1


def test_a_process_that_is_killed_costs_nobody_an_answer(stand: tuple[Gateway, CacheEngine]) -> None:
    """Questions go to an engine meanwhile; the next process is told what was kept, and answers again."""
    gateway, _ = stand
    taught(gateway)
    started = words(gateway)["process"]["started"]
    for pid in embedding(gateway):
        os.kill(pid, signal.SIGKILL)
    for number in range(5):
        assert ask(gateway, f"What is question number {number}?")[1] == ANSWER
    wait_for("it is begun again", lambda: words(gateway)["process"]["started"] > started, timeout_s=120.0)
    wait_for("it is up", lambda: words(gateway)["up"], timeout_s=120.0)
    wait_for(
        "it knows what was known",
        lambda: judged(gateway, wording())[0].startswith("semantic"),
        timeout_s=120.0,
    )


def test_a_purge_leaves_nothing_in_other_words(stand: tuple[Gateway, CacheEngine]) -> None:
    """What is purged by tenant is not found any more; and the command's figures say what is there."""
    gateway, engine = stand
    taught(gateway)
    gateway.order("PurgeCache", tenant="acme")
    assert "tenant:acme" not in words(gateway)["scopes"]
    before = engine.requests
    assert judged(gateway, wording())[0] == ""
    assert engine.requests > before


def embedding(gateway: Gateway) -> list[int]:
    """The processes that embed for this gateway's services."""
    found: list[int] = []
    for service in gateway.services:
        for children in Path(f"/proc/{service.pid}/task").glob("*/children"):
            found += [
                int(pid)
                for pid in children.read_text().split()
                if b"extproc.cache.semantic.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
            ]
    assert found
    return found

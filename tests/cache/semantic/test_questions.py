"""A question in other words is answered from the cache once checks have shown that it may be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from extproc.cache.purging import PurgeOrder
from extproc.core.cachekeys import CachedAnswer, CacheDirective, WantedAnswer
from tests.stand.cached import answer_of, body_of
from tests.stand.semantic import Wording, worded

pytest.importorskip("numpy")

ONE = "How do I reset my password?"
WAYS = ("How can I reset my password?", "How do I reset my password please", "how to reset my password")
LOOSE = {"wrong_max": 0.05, "confidence": 0.6, "check_share": 0.01}


def made(**more: Any) -> Wording:
    return Wording({"acme": worded("tenant:acme", **{**LOOSE, **more})})


def answered(text: str) -> bytes:
    return answer_of(f"the answer to {text}")


def teach(wording: Wording, times: int = 40, tenant: str = "acme") -> None:
    """The same is asked in many ways, and always answered the same."""
    wording.ask(tenant, body_of(ONE), answer_of("Click on it."))
    for number in range(times):
        wording.ask(tenant, body_of(WAYS[number % 3], seed=number), answer_of("Click on it."))
        wording.ask(tenant, body_of(WAYS[number % 3]), answer_of("Click on it."))
        wording.forget_exact()


def test_nothing_is_given_before_it_was_checked() -> None:
    """At first a question in other words is asked of an engine, and both answers are compared."""
    wording = made()
    wording.ask("acme", body_of(ONE), answer_of("Click on it."))
    assert wording.ask("acme", body_of(WAYS[0]), answer_of("Click on it!"))[1] == "engine"
    assert wording.semantic.looked["acme", "unsure"] == 1
    assert wording.semantic.checks == {"same": 1}


def test_after_enough_checks_it_is_given() -> None:
    """An answer comes from the cache with how sure that is, its usage and age; and it is counted as saved."""
    wording = made()
    teach(wording)
    wording.now_ns += 7_000_000_000
    body, how = wording.ask("acme", body_of("How can I reset my password?"), answer_of("never asked"))
    assert how == "semantic"
    assert json.loads(body)["choices"][0]["message"]["content"] == "Click on it."
    assert wording.outcome("acme", "semantic") == wording.semantic.looked["acme", "hit"]
    assert wording.cache.saved["acme"].gpu_ms > 0.0


def test_an_answer_that_differs_closes_it() -> None:
    """Once an engine says something else to the other wording, that is kept apart, and nothing is given."""
    wording = Wording({"acme": worded("tenant:acme")})
    teach(wording, 3)
    for _ in range(40):
        wording.forget_exact()
        assert wording.ask("acme", body_of(WAYS[1]), answer_of("Call us."))[0] == answer_of("Call us.")
    assert wording.semantic.checks["differing"] >= 1


@pytest.mark.parametrize(
    "other",
    [
        body_of(WAYS[0], seed=4),
        body_of(WAYS[0], max_tokens=5),
        body_of(WAYS[0], model="other"),
        body_of(WAYS[0], stream=True),
        body_of(WAYS[0], response_format={"type": "json_object"}),
        body_of(WAYS[0], user="somebody"),
        json.dumps(
            {
                "model": "m",
                "temperature": 0,
                "messages": [
                    {"role": "system", "content": "Be rude."},
                    {"role": "user", "content": WAYS[0]},
                ],
            }
        ).encode(),
    ],
)
def test_everything_but_the_words_must_be_equal(other: bytes) -> None:
    """Another parameter, model, system prompt or format is another frame, in which nothing is known."""
    wording = made()
    teach(wording)
    assert wording.ask("acme", body_of(WAYS[0]), b"")[1] == "semantic"
    assert wording.ask("acme", other, answer_of("other"))[1] == "engine"
    assert wording.semantic.looked["acme", "unknown"] >= 1


@pytest.mark.parametrize(
    "messages",
    [
        [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": ONE},
        ],
        [{"role": "user", "content": [{"type": "text", "text": ONE}, {"type": "text", "text": "now"}]}],
        [{"role": "user", "content": ONE}, {"role": "assistant", "content": "Cli"}],
        [{"role": "tool", "content": "x", "tool_call_id": "1"}, {"role": "user", "content": ONE}],
        [{"role": "user", "content": " "}],
        [{"role": "user", "content": "x" * 1_001}],
    ],
)
def test_what_is_no_single_question_is_not_compared(messages: list[Any]) -> None:
    """Turns, parts, tools and long texts are the exact cache's alone."""
    wording = made()
    body = json.dumps({"model": "m", "messages": messages, "temperature": 0}).encode()
    found = wording.look("acme", body)
    assert isinstance(found, WantedAnswer)
    assert found.asked is None
    assert wording.ask("acme", body, answer_of())[1] == "engine"
    assert not wording.semantic.scopes


def test_turns_that_are_equal_may_stand_before_the_question() -> None:
    """With `history` the same question after the same turns is compared; after others it is not."""
    wording = made(history=2)

    def turned(before: str, text: str) -> bytes:
        turns = [{"role": "user", "content": before}, {"role": "assistant", "content": "Hi"}]
        return json.dumps(
            {"model": "m", "temperature": 0, "messages": [*turns, {"role": "user", "content": text}]}
        ).encode()

    wording.ask("acme", turned("Hello", ONE), answer_of())
    wording.ask("acme", turned("Hello", WAYS[0]), answer_of())
    assert wording.semantic.looked["acme", "unsure"] == 1
    wording.ask("acme", turned("Goodbye", WAYS[0]), answer_of())
    assert wording.semantic.looked["acme", "unsure"] == 1


def test_an_unlike_question_is_refused_by_its_kind() -> None:
    """A question that reads alike is refused by a guard, which is counted by what differs."""
    wording = made()
    wording.ask("acme", body_of("Convert 5 miles to km"), answer_of("8"))
    wording.ask("acme", body_of("Convert 5 km to miles"), answer_of("3"))
    wording.ask("acme", body_of("Convert 6 miles to km"), answer_of("9"))
    assert wording.semantic.refused == {"order": 2, "numbers": 1} or wording.semantic.refused["numbers"] >= 1
    assert wording.semantic.looked["acme", "refused"] == 2


def test_a_late_or_missing_process_is_a_miss() -> None:
    """What is not heard in time goes to an engine; so does all when nobody can be asked."""
    wording = made()
    teach(wording)
    found = wording.look("acme", body_of(WAYS[0]))
    assert isinstance(found, WantedAnswer)
    told: list[CachedAnswer | None] = []
    name = wording.cache.join(found, "acme", until_ns=0, size=1, tell=told.append)
    assert name
    wording.cache.leave(name)
    wording.port.deliver()
    assert told == []
    wording.port.up = False
    assert wording.ask("acme", body_of(WAYS[0]), answer_of())[1] == "engine"
    assert wording.semantic.looked["acme", "away"] == 1


def test_an_equal_request_waits_for_the_one_that_is_looked_for() -> None:
    """Two equal requests at once are one question to an engine, also while the first is looked for."""
    wording = made()
    found = wording.look("acme", body_of(ONE))
    assert isinstance(found, WantedAnswer)
    told: list[CachedAnswer | None] = []
    others: list[CachedAnswer | None] = []
    assert wording.cache.join(found, "acme", until_ns=10**12, size=1, tell=told.append)
    assert wording.cache.join(found, "acme", until_ns=10**12, size=1, tell=others.append)
    wording.port.deliver()
    assert told == [None]
    assert others == []
    wording.cache.flagged("r", "acme", found)
    wording.cache.fill("r", answer_of("once"))
    assert [each.body for each in others if each is not None] == [answer_of("once")]


def test_a_client_that_refreshes_is_not_given_anothers_words() -> None:
    """`refresh` asks an engine and replaces what is kept; `off` leaves no trace."""
    wording = made()
    teach(wording)
    before = len(wording.semantic.scopes["tenant:acme"].entries)
    assert wording.look("acme", body_of(WAYS[0]), directive=CacheDirective.OFF) is None
    assert isinstance(wording.look("acme", body_of(WAYS[0]), directive=CacheDirective.REFRESH), WantedAnswer)
    assert len(wording.semantic.scopes["tenant:acme"].entries) == before


def test_what_is_purged_is_gone_from_the_index_too() -> None:
    """A purge leaves no question, no answer and no vector, nor what was still being compared."""
    wording = made()
    teach(wording, 4)
    found = wording.look("acme", body_of(WAYS[0], max_tokens=9))
    assert isinstance(found, WantedAnswer)
    wording.cache.purge([PurgeOrder()])
    assert not wording.semantic.scopes
    assert not wording.port.index.scopes
    assert wording.semantic.size == 0


def test_a_comparison_that_was_under_way_keeps_nothing_after_a_purge() -> None:
    """An answer that differs is kept as a question of its own, but not when all was purged meanwhile."""
    wording = made()
    wording.ask("acme", body_of(ONE), answer_of("one"))
    found = wording.look("acme", body_of(WAYS[0]))
    assert isinstance(found, WantedAnswer)
    wording.cache.join(found, "acme", until_ns=0, size=1, tell=lambda _: None)
    wording.port.deliver()
    wording.cache.flagged("r", "acme", found)
    wording.cache.fill("r", answer_of("another"))
    wording.cache.purge([PurgeOrder()])
    wording.port.deliver()
    assert not wording.semantic.scopes


def test_bounds_hold_and_what_is_used_least_goes() -> None:
    """No more entries than the bound a scope, no more bytes than the bound in all; the books are right."""
    wording = Wording({"acme": worded("tenant:acme")}, entries_max=5, bytes_max=40_000)
    for number in range(30):
        wording.ask("acme", body_of(f"Tell me of thing{number} and thing{number + 1}"), answered(str(number)))
        scope = wording.semantic.scopes["tenant:acme"]
        assert len(scope.entries) <= 5
        assert wording.semantic.size == scope.size == sum(each.size for each in scope.entries.values())
        assert wording.semantic.size <= 40_000
        assert sum(len(each) for each in wording.port.index.scopes["tenant:acme"].frames.values()) == len(
            scope.entries
        )
    assert wording.semantic.evicted == 25


def test_a_new_process_is_told_again() -> None:
    """After its end the process knows nothing; what is kept and what was learned is told to the next one."""
    wording = made()
    teach(wording)
    wording.port.index = type(wording.port.index)(wording.port.index._embed)
    wording.semantic.begun()
    assert wording.ask("acme", body_of(WAYS[0], seed=999), answer_of("x"))[1] == "engine"
    for _ in range(20):
        wording.semantic.step(now_ns=wording.now_ns)
    assert wording.ask("acme", body_of(WAYS[0]), b"")[1] == "semantic"


def test_an_answer_that_is_too_old_is_not_given() -> None:
    """After ttl_s it is asked again; the same answer renews it with all that was learned."""
    wording = made()
    teach(wording)
    wording.now_ns += 3_600_000_000_001
    assert wording.ask("acme", body_of(WAYS[0]), answer_of("Click on it."))[1] == "engine"
    assert wording.semantic.looked["acme", "stale"] == 1
    wording.forget_exact()
    assert wording.ask("acme", body_of(WAYS[0]), b"")[1] == "semantic"
    wording.now_ns += 11 * 3_600_000_000_000
    wording.cache.step(now_ns=wording.now_ns)
    assert not wording.semantic.scopes


def test_too_many_wrong_answers_turn_it_off() -> None:
    """Where checks of what would have been given are wrong, nothing is given any more, and that is said."""
    said: list[bool] = []
    wording = made(check_share=1.0)
    wording.semantic.turned = lambda _scope, off, _checks, _wrong: said.append(off)
    teach(wording, 60)
    assert wording.semantic.looked["acme", "hit"] == 0
    assert wording.semantic.looked["acme", "check"] > 5
    learner = wording.port.index.scopes["tenant:acme"].learner
    for _ in range(40):
        learner.checked(same=False)
    for number in range(3):
        wording.forget_exact()
        wording.ask("acme", body_of(WAYS[number]), answer_of("Click on it."))
    assert wording.semantic.looked["acme", "off"] == 3
    assert said == [True]

"""The exact cache: what is looked up, what is kept, and what becomes of answers that come late or wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from extproc.cache.exact import AWAITED_MAX, LATE_NS
from extproc.core.cachekeys import CachedAnswer, CacheDirective, CacheRule, WantedAnswer
from tests.stand.cached import CHAT, Asking, answer_of, body_of

RULE = CacheRule(scope="tenant:a", ttl_ns=1_000_000_000_000)


def asking(**rule: Any) -> Asking:
    from msgspec.structs import replace

    return Asking({"a": replace(RULE, **rule)})


def test_the_second_is_answered_from_the_first() -> None:
    """With its body, its age and its usage; the saved tokens and replica time are counted."""
    made = asking()
    assert made.serve("a", body_of(), answer_of()) == answer_of()
    made.now_ns += 12_300_000_000
    found = made.look("a", body_of())
    assert isinstance(found, CachedAnswer)
    assert (found.body, found.age_s) == (answer_of(), 12)
    saved = made.cache.saved["a"]
    assert (saved.hits, saved.input_tokens, saved.output_tokens, saved.gpu_ms) == (1, 3, 2, 10.0)
    assert (made.outcome("a", "miss"), made.outcome("a", "hit")) == (1, 1)


@pytest.mark.parametrize(
    "other",
    [
        {"text": "Hello"},
        {"max_tokens": 5},
        {"seed": 1},
        {"logprobs": True},
        {"stream": True},
        {"user": "me"},
        {"x_unknown": 1},
        {"response_format": {"type": "json_object"}},
        {"stop": ["a"]},
        {"temperature": 0.0},
    ],
)
def test_anything_that_differs_is_another_question(other: dict[str, Any]) -> None:
    """The prompt, each limit, unknown fields, the user, streaming."""
    made = asking()
    made.serve("a", body_of(), answer_of())
    assert isinstance(made.look("a", body_of(**other)), WantedAnswer)


def test_system_prompts_and_earlier_turns_count() -> None:
    """The whole conversation is the question, not its last turn."""
    made = asking()
    last = {"role": "user", "content": "and then?"}
    talks = [
        [last],
        [{"role": "system", "content": "be brief"}, last],
        [{"role": "user", "content": "x"}, last],
    ]
    for i, messages in enumerate(talks):
        body = json.dumps({"messages": messages, "temperature": 0}).encode()
        assert made.serve("a", body, answer_of(str(i))) == answer_of(str(i))


def test_model_pool_revision_and_route_count() -> None:
    """The same body to another model, pool, revision or route is another question."""
    made = asking()
    made.serve("a", body_of(), answer_of())
    assert isinstance(made.look("a", body_of(), model="n"), WantedAnswer)
    assert isinstance(made.look("a", body_of(), pool="q"), WantedAnswer)
    made.rules["a"] = CacheRule(scope="tenant:a", revision="2")
    assert isinstance(made.look("a", body_of()), WantedAnswer)
    both = json.dumps({"prompt": "x", "inputs": "x", "temperature": 0, "messages": []}).encode()
    keys = set()
    for path in ("/v1/completions", "/generate", "/generate_stream", "/"):
        found = made.look("a", both, path=path)
        assert isinstance(found, WantedAnswer)
        keys.add(found.key)
    assert len(keys) == 4


def test_a_client_may_ask_for_a_new_answer_or_none() -> None:
    """`refresh` asks an engine and keeps what it says; `off` neither looks nor keeps."""
    made = asking()
    made.serve("a", body_of(), answer_of("old"))
    assert made.look("a", body_of(), directive=CacheDirective.OFF) is None
    assert made.serve("a", body_of(), answer_of("new"), directive=CacheDirective.REFRESH) == answer_of("new")
    assert made.serve("a", body_of(), answer_of("never")) == answer_of("new")


def test_where_a_tenant_asks_nothing_is_looked_up_unasked() -> None:
    """Mode `ask`: only with the header."""
    made = asking(asks=True)
    assert made.look("a", body_of()) is None
    assert isinstance(made.look("a", body_of(), directive=CacheDirective.USE), WantedAnswer)


def test_who_has_no_rule_has_no_cache() -> None:
    """Nothing is looked up, kept or counted."""
    made = asking()
    assert made.look("b", body_of()) is None
    assert not made.cache.looked


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (body_of(temperature=0.7), "sampled"),
        (json.dumps({"messages": [{"content": "x"}]}).encode(), "sampled"),
        (body_of(n=2), "several"),
        (body_of(tools=[{"type": "function"}]), "tools"),
        (body_of()[:-1] + b',"model":"n"}', "uncanonical"),
        (body_of("x" * 5_000), "large"),
    ],
)
def test_what_is_not_looked_up_is_counted_with_its_reason(body: bytes, outcome: str) -> None:
    """By tenant."""
    made = asking()
    assert made.look("a", body) is None
    assert made.outcome("a", outcome) == 1


def test_only_an_answer_that_is_awaited_is_kept_and_once() -> None:
    """An unknown request's, and a second one of the same request, are not."""
    made = asking()
    wanted = made.look("a", body_of())
    assert isinstance(wanted, WantedAnswer)
    assert not made.cache.fill("r1", answer_of())
    made.cache.flagged("r1", "a", wanted)
    assert made.cache.fill("r1", answer_of("first"))
    assert not made.cache.fill("r1", answer_of("second"))
    made.cache.settled("r1", gpu_ms=1.0)
    assert not made.cache.fill("r1", answer_of("third"))
    found = made.look("a", body_of())
    assert isinstance(found, CachedAnswer)
    assert found.body == answer_of("first")
    assert made.cache.awaited == 0


def test_an_answer_may_come_after_its_record_but_not_long_after() -> None:
    """Ten seconds; then nobody awaits it."""
    made = asking()
    for name, late_ns, comes in (("r1", LATE_NS - 1, True), ("r2", LATE_NS, False)):
        wanted = made.look("a", body_of(name))
        assert isinstance(wanted, WantedAnswer)
        made.cache.flagged(name, "a", wanted)
        made.cache.settled(name, gpu_ms=7.0)
        made.now_ns += late_ns
        made.cache.step(now_ns=made.now_ns)
        assert made.cache.fill(name, answer_of()) is comes
    assert made.cache.awaited == 0


def test_what_never_ends_is_forgotten() -> None:
    """An expired reservation's answer is not awaited, and no more are awaited than the bound says."""
    made = asking()
    wanted = made.look("a", body_of())
    assert isinstance(wanted, WantedAnswer)
    made.cache.flagged("r0", "a", wanted)
    made.cache.gone("r0")
    assert made.cache.awaited == 0
    for i in range(AWAITED_MAX + 5):
        made.cache.flagged(f"r{i}", "a", wanted)
    assert made.cache.awaited == AWAITED_MAX
    assert made.cache.filled["bound.awaited_max"] == 5


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"{}", "unreadable"),
        (b'{"error":"x"}', "error"),
        (answer_of(""), "empty"),
        (answer_of("x" * 9_000), "large"),
    ],
)
def test_a_bad_answer_is_not_kept(answer: bytes, why: str) -> None:
    """The next one is a miss again."""
    made = asking()
    made.serve("a", body_of(), answer)
    assert made.cache.filled[why] == 1
    assert isinstance(made.look("a", body_of()), WantedAnswer)


def test_a_damaged_answer_is_a_miss_and_gone() -> None:
    """It is never given; the next answer takes its place."""
    made = asking()
    made.serve("a", body_of(), answer_of())
    kept = next(iter(made.store.shelves["tenant:a"].answers.values()))
    kept.packed = kept.packed[:-2]
    assert isinstance(made.look("a", body_of()), WantedAnswer)
    assert made.outcome("a", "poisoned") == 1
    assert len(made.store) == 0
    assert made.serve("a", body_of(), answer_of("new")) == answer_of("new")


def test_an_old_answer_is_not_given() -> None:
    """From its tenant's time on it is a miss."""
    made = asking(ttl_ns=5_000)
    made.serve("a", body_of(), answer_of())
    made.now_ns += 5_000
    assert isinstance(made.look("a", body_of(), path=CHAT), WantedAnswer)

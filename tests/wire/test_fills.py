"""The fill call: what Envoy posts is kept under the request's own key, and nobody else can post anything."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import envoy_messages as envoy
import pytest

from extproc.cache.exact import ResponseCache
from extproc.cache.memory import MemoryAnswers
from extproc.core.cachekeys import CacheRule
from extproc.core.contract import CACHE_KEY, DECISION_NAMESPACE, RESERVATION_HEADER, RESERVATION_KEY
from extproc.core.policy import ClassSpec, Policy
from extproc.wire.exchange import Exchange
from extproc.wire.fills import CacheFills
from extproc.wire.processor import Processor
from extproc.wire.seal import EVENT, TICKET, Seal
from tests.stand.cached import answer_of, body_of
from tests.stand.schedulers import make_pool, make_processor, make_scheduler

BOUND = 4_096


class Posted:
    """A call with these headers."""

    def __init__(self, *headers: tuple[str, str]) -> None:
        self._headers = headers

    def metadata(self) -> Iterable[tuple[str, str]]:
        return self._headers

    def write(self, messages: Sequence[bytes], *, end: bool = False) -> None:
        raise AssertionError((messages, end))

    def fail(self, *_: Any) -> None:
        raise AssertionError


def caching(processor: Processor | None = None) -> tuple[Processor, MemoryAnswers]:
    processor = processor or make_processor(make_scheduler(make_pool("10.0.0.1:80")))
    store = MemoryAnswers(1 << 20)
    processor.event_cluster = "events"
    processor.cache = ResponseCache(
        store,
        lambda tenant, _: CacheRule(scope=f"tenant:{tenant}"),
        answer_bytes_max=BOUND,
        request_bytes_max=BOUND,
        clock=lambda: 0,
    )
    return processor, store


def ask(processor: Processor, body: bytes, *headers: tuple[str, str]) -> Any:
    exchange = Exchange(processor)
    exchange.receive(envoy.headers("POST", "/v1/chat/completions", *headers))
    answer = envoy.response(exchange.receive(envoy.body(body)).data)
    exchange.delivered()
    exchange.close()
    return answer


def test_a_miss_is_flagged_filled_and_then_answered() -> None:
    """The decision says how much to gather; the fill makes the next request an immediate answer."""
    processor, _ = caching()
    told = envoy.metadata(ask(processor, body_of()), DECISION_NAMESPACE)
    assert told[CACHE_KEY] == str(BOUND)
    call = Posted((RESERVATION_HEADER, told[RESERVATION_KEY]))
    assert CacheFills(processor).receive(answer_of(), call) == b""
    hit = ask(processor, body_of()).immediate_response
    assert (hit.status.code, hit.body, hit.details) == (200, answer_of(), "steersman_cached")
    assert envoy.mutated(hit.headers) == {
        "content-type": "application/json",
        "x-steersman-cache": "hit; age=0",
    }


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (body_of(temperature=1), ()),
        (body_of(), (("x-steersman-cache", "off"),)),
        (body_of(), (("x-steersman-cache", " OFF "),)),
    ],
)
def test_what_is_not_cached_is_not_gathered(body: bytes, headers: tuple[tuple[str, str], ...]) -> None:
    """Nothing is asked of Envoy for it."""
    processor, _ = caching()
    assert CACHE_KEY not in envoy.metadata(ask(processor, body, *headers), DECISION_NAMESPACE)


def test_without_a_cluster_of_its_own_nothing_is_gathered() -> None:
    """Envoy could not say it to this service."""
    processor, _ = caching()
    processor.event_cluster = ""
    assert CACHE_KEY not in envoy.metadata(ask(processor, body_of()), DECISION_NAMESPACE)


def test_nobody_else_can_fill_it() -> None:
    """Without a seal, with another's or of another kind, for one that asked for nothing, or twice."""
    processor, store = caching()
    told = envoy.metadata(ask(processor, body_of()), DECISION_NAMESPACE)
    plain = envoy.metadata(ask(processor, body_of(temperature=1)), DECISION_NAMESPACE)
    sealed = told[RESERVATION_KEY]
    name = processor.seal.opened(sealed, EVENT)
    assert name is not None
    fills = CacheFills(processor)
    for header in (
        "",
        name,
        Seal().sealed(name, EVENT),
        processor.seal.sealed(name, TICKET),
        sealed[:-1],
        plain[RESERVATION_KEY],
    ):
        fills.receive(answer_of("forged"), Posted((RESERVATION_HEADER, header)))
    fills.receive(answer_of("forged"), Posted())
    assert len(store) == 0
    counts = processor.scheduler.counts
    assert (counts["cache.forged"], counts["cache.unknown"]) == (6, 1)
    fills.receive(answer_of("true"), Posted((RESERVATION_HEADER, sealed)))
    fills.receive(answer_of("late"), Posted((RESERVATION_HEADER, sealed)))
    assert ask(processor, body_of()).immediate_response.body == answer_of("true")


def test_what_is_too_large_is_not_read() -> None:
    """Whatever Envoy's script was told."""
    processor, store = caching()
    told = envoy.metadata(ask(processor, body_of()), DECISION_NAMESPACE)
    call = Posted((RESERVATION_HEADER, told[RESERVATION_KEY]))
    CacheFills(processor).receive(b"x" * (BOUND + 1), call)
    assert processor.scheduler.counts["cache.unwanted"] == 1
    assert len(store) == 0


def test_a_fault_of_the_cache_costs_no_request() -> None:
    """Looked up wrongly it is a miss, filled wrongly it is lost; both are counted."""

    class Broken(ResponseCache):
        def look(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError

        def fill(self, *_: Any) -> bool:
            raise RuntimeError

    processor, store = caching()
    told = envoy.metadata(ask(processor, body_of()), DECISION_NAMESPACE)
    processor.cache = Broken(store, lambda *_: None, answer_bytes_max=BOUND, request_bytes_max=9, clock=int)
    assert ask(processor, body_of()).request_body.response.clear_route_cache
    call = Posted((RESERVATION_HEADER, told[RESERVATION_KEY]))
    assert CacheFills(processor).receive(answer_of(), call) == b""
    counts = processor.scheduler.counts
    assert counts["exception.looking into the cache"] == counts["exception.filling the cache"] == 1


def test_who_may_not_use_a_model_gets_no_answer_of_it() -> None:
    """Kept or not: a model of others is as good as none."""
    processor, _ = caching()
    told = envoy.metadata(ask(processor, body_of()), DECISION_NAMESPACE)
    CacheFills(processor).receive(answer_of(), Posted((RESERVATION_HEADER, told[RESERVATION_KEY])))
    other = json.dumps({**json.loads(body_of()), "model": "z"}).encode()
    assert ask(processor, other).immediate_response.status.code == 404


def waits(processor: Processor, body: bytes) -> tuple[Exchange, list[Any]]:
    """A request that waits for an equal one's answer, and what it is answered once that is decided."""
    exchange = Exchange(processor)
    exchange.receive(envoy.headers("POST", "/v1/chat/completions"))
    reply = exchange.receive(envoy.body(body))
    assert reply.wait
    assert envoy.response(reply.data).HasField("override_message_timeout")
    replies: list[Any] = []
    exchange.when_ready(replies.append)
    return exchange, replies


def holding(*, permits: int = 4) -> Processor:
    policy = Policy(classes=(ClassSpec(hold_ns=10**10),))
    return make_processor(make_scheduler(make_pool("10.0.0.1:80", permits=permits), policy=policy))


def test_an_equal_request_waits_and_gets_the_answer() -> None:
    """It is no decision under way meanwhile, and holds nothing once it is answered."""
    processor, _ = caching(holding())
    told = envoy.metadata(ask(processor, body_of()), DECISION_NAMESPACE)
    exchange, replies = waits(processor, body_of())
    assert (processor.joined, processor.deciding) == (1, 0)
    call = Posted((RESERVATION_HEADER, told[RESERVATION_KEY]))
    CacheFills(processor).receive(answer_of(), call)
    assert [envoy.response(each.data).immediate_response.body for each in replies] == [answer_of()]
    exchange.close()
    assert (processor.joined, processor.open_exchanges) == (0, 0)


def test_one_that_waited_in_vain_is_decided_on_and_may_be_held() -> None:
    """The answer was a bad one: the next goes, waits for room like any other, and is then the first."""
    processor, store = caching(holding(permits=1))
    told = envoy.metadata(ask(processor, body_of()), DECISION_NAMESPACE)
    exchange, replies = waits(processor, body_of())
    call = Posted((RESERVATION_HEADER, told[RESERVATION_KEY]))
    CacheFills(processor).receive(b"{}", call)
    assert replies[0].wait
    exchange.when_ready(replies.append)
    name = processor.seal.opened(told[RESERVATION_KEY], EVENT)
    assert name is not None
    processor.scheduler.cancel(name, now_ns=0)
    second = envoy.metadata(envoy.response(replies[1].data), DECISION_NAMESPACE)
    exchange.delivered()
    exchange.close()
    CacheFills(processor).receive(answer_of(), Posted((RESERVATION_HEADER, second[RESERVATION_KEY])))
    assert len(store) == 1


def test_one_that_leaves_while_it_waits_is_forgotten() -> None:
    """The answer comes for nobody, and is kept."""
    processor, store = caching(holding())
    told = envoy.metadata(ask(processor, body_of()), DECISION_NAMESPACE)
    exchange, replies = waits(processor, body_of())
    exchange.close()
    assert (processor.joined, processor.open_exchanges) == (0, 0)
    CacheFills(processor).receive(answer_of(), Posted((RESERVATION_HEADER, told[RESERVATION_KEY])))
    assert replies == []
    assert len(store) == 1


def test_who_asks_for_a_new_answer_waits_for_none() -> None:
    """`refresh` is sent beside the first."""
    processor, _ = caching(holding())
    ask(processor, body_of())
    answer = ask(processor, body_of(), ("x-steersman-cache", "refresh"))
    assert CACHE_KEY in envoy.metadata(answer, DECISION_NAMESPACE)

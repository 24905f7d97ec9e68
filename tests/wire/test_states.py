"""The table of an exchange's states: what follows what, and what each gives back where it is left."""

from __future__ import annotations

import json

import envoy_messages as envoy
import pytest

from extproc.core.accounts import Accounts
from extproc.core.cachekeys import AskAnswer
from extproc.core.outcome import Hold, LocalAnswer, Reject, Routed
from extproc.core.policy import ClassSpec, Policy
from extproc.core.quota.values import ASK, ScopeLimits
from extproc.core.scheduler import AskQuota
from extproc.core.tenant import ANONYMOUS
from extproc.wire.codec import Headers
from extproc.wire.exchange import Exchange
from extproc.wire.processor import Processor
from extproc.wire.states import (
    ASKING,
    BODY,
    DONE,
    HEADERS,
    HELD,
    JOINED,
    LOOKING,
    ROUTED,
    ExchangeState,
    Joining,
    Over,
)
from tests.stand.schedulers import make_pool, make_processor, make_scheduler

CHAT = json.dumps({"model": "m", "messages": [{"content": "hello"}], "max_tokens": 5}).encode()
STATES = (HEADERS, BODY, LOOKING, JOINED, ASKING, HELD, ROUTED, DONE)


class Remote:
    """A shared store that is asked, and told of what is given back."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []

    def reserve(self, *_: object, **__: object) -> object:
        return ASK

    def cancel(self, reservation_id: str, *, now_ns: int) -> None:
        self.cancelled.append(reservation_id)


def exchange_of(processor: Processor) -> Exchange:
    """One whose headers and body have come."""
    exchange = Exchange(processor)
    exchange.receive(envoy.headers("POST", "/v1/chat/completions"))
    exchange.receive(envoy.body(CHAT))
    return exchange


def processor_of(*, permits: int = 4) -> Processor:
    policy = Policy(classes=(ClassSpec(hold_ns=10**10),))
    return make_processor(make_scheduler(make_pool("10.0.0.1:80", permits=permits), policy=policy))


def test_what_follows_what() -> None:
    """Each decision leads one way; nothing follows a delivered one, and an answer ends whatever asks."""
    answers: dict[type, ExchangeState] = {LocalAnswer: DONE, Reject: DONE}
    assert {state.name: dict(state.then) for state in STATES} == {
        "headers": {Headers: BODY, Over: DONE, **answers},
        "body": {
            AskAnswer: LOOKING,
            AskQuota: ASKING,
            Hold: HELD,
            Routed: ROUTED,
            Joining: JOINED,
            **answers,
        },
        "looking": {},
        # Nothing is said while it waits: it is decided on as when its body came.
        "joined": {},
        "asking": {Hold: HELD, Routed: ROUTED, **answers},
        "held": {Routed: ROUTED, **answers},
        "routed": {Over: DONE},
        "done": {},
    }
    assert [state.name for state in STATES if state.undo is not None] == [
        "joined",
        "asking",
        "held",
        "routed",
    ]


def test_a_stream_that_breaks_while_the_store_is_asked_gives_its_quota_back() -> None:
    """Whether it was reserved by then or not."""
    remote = Remote()
    limits = {ANONYMOUS.name: ScopeLimits(concurrent=9)}
    policy = Policy(classes=(ClassSpec(),), accounts=Accounts(tenants=limits))
    pool = make_pool("10.0.0.1:80")
    processor = make_processor(make_scheduler(pool, policy=policy, quotas=remote))
    exchange = exchange_of(processor)
    assert exchange._state is ASKING
    exchange.close()
    assert remote.cancelled == ["i-1"]
    assert (exchange._state, processor.open_exchanges) == (DONE, 0)


@pytest.mark.parametrize("state", [HELD, ROUTED])
def test_a_stream_that_breaks_gives_back_its_place(state: ExchangeState) -> None:
    """In the queue, or on a replica; once, however often it is closed over."""
    processor = processor_of(permits=1)
    first = exchange_of(processor)
    if state is HELD:
        first.delivered()
    broken = exchange_of(processor) if state is HELD else first
    assert broken._state is state
    broken.close()
    assert broken._state is DONE
    left = (len(processor.scheduler.dispatcher.queue), len(processor.scheduler.ledger))
    assert left == ((0, 1) if state is HELD else (0, 0))
    broken._undo()
    assert left == (len(processor.scheduler.dispatcher.queue), len(processor.scheduler.ledger))


def test_what_was_delivered_is_not_given_back() -> None:
    """The access log settles it."""
    processor = processor_of()
    exchange = exchange_of(processor)
    exchange.delivered()
    assert exchange._state is DONE
    exchange.close()
    assert len(processor.scheduler.ledger) == 1

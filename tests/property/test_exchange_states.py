"""Whatever comes in whatever order, a stream's table has a row for it, and nothing it took is left behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "wire"))
import envoy_messages as envoy

from extproc.core.outcome import Outcome
from extproc.core.policy import ClassSpec, Policy
from extproc.wire.exchange import Exchange
from extproc.wire.responder import Reply
from extproc.wire.states import BODY, DONE, HEADERS, ROUTED
from tests.stand.examples import examples
from tests.stand.schedulers import make_pool, make_processor, make_scheduler

HEAD = envoy.headers("POST", "/v1/completions")
MESSAGES = {
    "headers": HEAD,
    "no body": envoy.headers("GET", "/info", end=True),
    "refused": envoy.headers("POST", "/nowhere"),
    "body": envoy.body(json.dumps({"model": "m", "prompt": "x", "max_tokens": 5}).encode()),
    "no json": envoy.body(b"{"),
    "stray": envoy.phase("response_headers"),
}
STEPS = [*MESSAGES, "delivered", "overdue", "unanswered", "another ends", "waited too long"]
#: Mostly the request comes as it should, and what happens then is anybody's guess.
BEGINNINGS: list[list[str]] = [[], ["headers", "body"], ["headers", "body", "another ends"], ["another ends"]]


@given(st.builds(list.__add__, st.sampled_from(BEGINNINGS), st.lists(st.sampled_from(STEPS), max_size=8)))
@examples(400)
def test_any_order_of_events_is_answered_and_gives_back_what_it_took(steps: list[str]) -> None:
    """One place on one replica, which another has first: the stream waits, is released, shed or left."""
    policy = Policy(classes=(ClassSpec(hold_ns=10**9),))
    now_ns = 0
    scheduler = make_scheduler(make_pool("10.0.0.1:80", permits=1), policy=policy)
    processor = make_processor(scheduler, clock=lambda: now_ns)
    first = Exchange(processor)
    for message in (HEAD, MESSAGES["body"]):
        answer = first.receive(message)
    first.delivered()
    first.close()
    other = scheduler.ledger.get(answer.reservation_id)
    assert other is not None
    exchange, kept = Exchange(processor), 1
    ready: list[Reply] = []
    exchange.when_ready(ready.append)
    for step in steps:
        if step in MESSAGES:
            assert exchange.receive(MESSAGES[step]).data
        elif step == "delivered":
            kept += exchange._state is ROUTED
            exchange.delivered()
        elif step == "overdue":
            assert exchange.overdue().end
        elif step == "unanswered" and exchange._state in (HEADERS, BODY):
            assert exchange.unanswered(ConnectionError("gone")).end
        elif step == "another ends" and other is not None:
            kept -= 1
            end = Outcome(reservation=other.reservation, final=True, status=200)
            scheduler.settlement.settle(end, now_ns=now_ns)
            other = None
        elif step == "waited too long":
            now_ns += 2 * 10**9
            scheduler.dispatcher.shed(now_ns=now_ns)
    exchange.close()
    assert exchange._state is DONE
    assert (processor.open_exchanges, processor.deciding, processor.bodies_bytes) == (0, 0, 0)
    assert (len(scheduler.ledger), len(scheduler.dispatcher.queue)) == (kept, 0)
    assert {name for name in scheduler.counts if name.startswith("exception")} <= {
        "exception.asking the quota"
    }

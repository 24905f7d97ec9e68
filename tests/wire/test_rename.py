"""Bodies of requests for a family: renamed at the decision, kept within a bound while it waits."""

from __future__ import annotations

import json
from typing import Any

import envoy_messages as envoy
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.contract import DECISION_NAMESPACE
from extproc.core.families import Family
from extproc.core.policy import ClassSpec
from extproc.core.scheduler import Policy
from extproc.core.spill.values import SpillAllowance, SpillRule
from extproc.core.strategies import Strategy
from extproc.core.tenant import Directory, Tenant, hash_key
from extproc.wire import exchange as exchange_module
from extproc.wire.exchange import Exchange
from extproc.wire.processor import Processor
from extproc.wire.rename import renamed, second_model
from extproc.wire.usage import with_usage
from tests.stand.schedulers import make_pool, make_processor, make_scheduler

AUTO = json.dumps({"model": "auto", "messages": [{"content": "hello"}], "max_tokens": 5}).encode()
KEY = ("authorization", "Bearer key")


class Broken(Strategy):
    """A policy that fails."""

    name = "broken"

    def rank(self, *_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a fault of ours")


def processor_of(
    *, permits: int = 4, hold_ns: int = 0, strategy: str = "least_work", **tenant: Any
) -> Processor:
    pools = [
        make_pool(f"10.0.0.{i}:80", permits=permits, name=name, models=(name,), strategy=strategy)
        for i, name in enumerate(("small", "large"))
    ]
    scheduler = make_scheduler(
        *pools, default_model="small", policy=Policy(classes=(ClassSpec(hold_ns=hold_ns),))
    )
    scheduler.settings.families = {
        "auto": Family(name="auto", models=("small", "large"), thresholds=(0.5,), wait_ms=None)
    }
    tenants = [(Tenant(name="acme", **tenant), [hash_key("key")])]
    return make_processor(scheduler, Directory(tenants, required=True), clock=lambda: 5_000_000_000)


def ask(exchange: Exchange, *extra: tuple[str, str], data: bytes = AUTO) -> Any:
    exchange.receive(envoy.headers("POST", "/v1/chat/completions", KEY, *extra))
    return exchange.receive(envoy.body(data))


def test_values_stay_to_the_letter() -> None:
    """Whatever they are; a name written twice counts as its last, as for who reads the body."""
    numbers, again = b'"big":123456789012345678901234567890, "s": "\\u00e9"', b'"mod\\u0065l": "auto"'
    body = b'{ "a" : 1.50, "model":"auto", ' + numbers + b", " + again + b" }"
    assert renamed(body, 'm"x') == (
        b'{"a":1.50,"model":"m\\"x","big":123456789012345678901234567890,"s":"\\u00e9"}'
    )
    with pytest.raises(msgspec.DecodeError):
        renamed(b"[1]", "m")


def test_a_decision_carries_the_new_body_and_its_length() -> None:
    """And the headers for the client; a named model carries neither."""
    processor = processor_of()
    answer = envoy.response(ask(Exchange(processor)).data)
    common = answer.request_body.response
    assert json.loads(common.body_mutation.body)["model"] == "small"
    assert envoy.mutated(common.header_mutation)["content-length"] == str(len(common.body_mutation.body))
    assert envoy.metadata(answer, DECISION_NAMESPACE)["x-steersman-model"] == "small"
    plain = envoy.response(ask(Exchange(processor), data=AUTO.replace(b"auto", b"small")).data)
    assert not plain.request_body.response.HasField("body_mutation")
    assert "content-length" not in envoy.mutated(plain.request_body.response.header_mutation)
    assert "x-steersman-model" not in envoy.metadata(plain, DECISION_NAMESPACE)


def test_a_family_in_the_header_needs_no_new_body() -> None:
    """The body names no model, so there is nothing to replace; the choice is made all the same."""
    processor = processor_of()
    unnamed = json.dumps({"messages": [{"content": "hello"}]}).encode()
    answer = envoy.response(ask(Exchange(processor), ("x-model", "auto"), data=unnamed).data)
    assert not answer.request_body.response.HasField("body_mutation")
    assert envoy.metadata(answer, DECISION_NAMESPACE)["x-steersman-model"] == "small"


def test_bodies_of_held_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """They count while they wait; above the bound 429, and the wait is given up; all is given back."""
    processor = processor_of(permits=1, hold_ns=10**10)
    first = Exchange(processor)
    assert ask(first).end
    held = Exchange(processor)
    assert ask(held).wait
    assert processor.bodies_bytes == len(AUTO)
    monkeypatch.setattr(exchange_module, "BODIES_BYTES_MAX", len(AUTO) + 1)
    refused = envoy.response(ask(Exchange(processor)).data).immediate_response
    assert refused.status.code == 429
    assert processor.scheduler.counts["bound.bodies_bytes_max"] == 1
    assert len(processor.scheduler.dispatcher.queue) == 1
    replies: list[Any] = []
    held.when_ready(replies.append)
    first.close()
    (released,) = replies
    body = envoy.response(released.data).request_body.response.body_mutation.body
    assert json.loads(body)["model"] == "small"
    assert processor.bodies_bytes == 0
    gone = Exchange(processor)
    assert ask(gone).wait
    gone.close()
    assert processor.bodies_bytes == 0


@pytest.mark.parametrize("kept", [True, False])
def test_who_waits_without_its_body_stays_at_home(monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    """Above the bound nobody could write the other pool's name into it: room there is not for it."""
    processor = processor_of(permits=1, hold_ns=10**10, spill=SpillAllowance())
    scheduler = processor.scheduler
    scheduler.settings.spills = {
        "small": SpillRule(pool="small", to="large", models={"small": "large"}, wait_ms=0.0)
    }
    exchanges = {name: Exchange(processor) for name in ("home", "there", "waits")}
    monkeypatch.setattr(exchange_module, "BODIES_BYTES_MAX", 10_000 if kept else 0)
    bodies = {name: AUTO.replace(b"auto", b"large" if name == "there" else b"small") for name in exchanges}
    assert [ask(each, data=bodies[name]).wait for name, each in exchanges.items()] == [False, False, True]
    replies: list[Any] = []
    exchanges["waits"].when_ready(replies.append)
    exchanges["there"].close()
    scheduler.step(now_ns=6_000_000_000)
    assert len(replies) == kept
    if kept:
        response = envoy.response(replies[0].data).request_body.response
        assert json.loads(response.body_mutation.body)["model"] == "large"
    assert processor.bodies_bytes == 0
    exchanges["waits"].close()


def test_a_field_whose_name_is_no_text_is_refused() -> None:
    """It could not go on under another model's name: 400, nothing reserved, no exception."""
    processor = processor_of()
    evil = AUTO.replace(b"{", b'{"i\xf1puts":1,', 1)
    refused = envoy.response(ask(Exchange(processor), data=evil).data).immediate_response
    assert refused.status.code == 400
    assert not any(name.startswith("exception.") for name in processor.scheduler.counts)
    assert len(processor.scheduler.ledger) == 0
    assert ask(Exchange(processor), data=evil.replace(b"auto", b"small")).reservation_id


def test_the_reason_is_told_who_may_ask() -> None:
    """Under a key of its own in the metadata: of an allowed tenant, when asked for."""
    asks = ("x-steersman-explain", " Reason ")
    for allowed, extra, told in ((True, (asks,), True), (True, (), False), (False, (asks,), False)):
        answer = envoy.response(ask(Exchange(processor_of(explain=allowed)), *extra).data)
        about = envoy.metadata(answer, DECISION_NAMESPACE)
        assert (about.get("explained") == about["reason"]) == told


@given(
    st.dictionaries(st.text(max_size=9), st.integers() | st.text(max_size=9) | st.just({"model": "gpt"})),
    st.text(max_size=9),
    st.booleans(),
)
def test_the_name_at_home_takes_the_others_place(fields: dict[str, Any], own: str, usage: bool) -> None:
    """The name is where it is said to stand, whatever else there is; nothing else is changed."""
    body = renamed(json.dumps({**fields, "model": own}).encode(), "gpt")
    body = with_usage(body, every=False) if usage else body
    at, length, name = second_model(body, own).split(" ", 2)
    assert body[int(at) : int(at) + int(length)] == b'"gpt"'
    back = body[: int(at)] + name.encode() + body[int(at) + int(length) :]
    assert json.loads(back) == {**json.loads(body), "model": own}


def test_a_body_that_was_written_otherwise() -> None:
    """It is nobody's to guess where its name stands."""
    with pytest.raises(ValueError, match="no model stands"):
        second_model(b'{ "model": "gpt" }', "own")

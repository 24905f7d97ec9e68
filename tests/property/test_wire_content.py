"""Whatever a client sends, the service decides: content ends no stream, and reserves nothing that stays."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "wire"))
import envoy_messages as envoy

from extproc.core.families import Family
from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.policy import ClassSpec
from extproc.core.routes import ROUTES, BodyKind, find_route
from extproc.core.scheduler import Policy, Scheduler, SchedulerLimits
from extproc.core.tenant import Directory, Tenant, hash_key
from extproc.wire.exchange import Exchange
from extproc.wire.processor import Processor
from tests.stand.examples import examples

KEY = ("authorization", "Bearer key")
PATHS = sorted(path for path, routes in ROUTES.items() if any(r.method == "POST" for r in routes))
FIELDS = [
    "model",
    "messages",
    "prompt",
    "inputs",
    "parameters",
    "n",
    "best_of",
    "max_tokens",
    "stream",
    "max_completion_tokens",
    "max_new_tokens",
    "tools",
    "user",
    "session_id",
    "response_format",
    "grammar",
    "content",
    "role",
    "type",
    "text",
    "image_url",
    "tool_calls",
]
NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([10**400, -(10**400), 2**63, 2**64, 2**31, 1024, 1025, 0, -1, 1e308]),
)
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["auto", "m", "small", "large", "\ud800", "\x00", "\N{PILE OF POO}"]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6), inner, max_size=5),
    ),
    max_leaves=20,
)
GOOD: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hello"}],
    "prompt": "hello",
    "inputs": "hello",
}
BODIES = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6).map(lambda fields: {**GOOD, **fields})


def processor_of() -> Processor:
    pools = [
        PoolSpec(name=name, models=(name,), strategy="steer", endpoints=((f"10.0.0.{i}:80", "", 4),))
        for i, name in enumerate(("small", "large", "m"), 1)
    ]
    scheduler = Scheduler(
        Fleet(pools),
        instance="i",
        default_model="m",
        limits=SchedulerLimits(),
        rng=Random(1),
        policy=Policy(classes=(ClassSpec(hold_ns=0),)),
    )
    scheduler.settings.families = {"auto": Family(name="auto", models=("small", "large"), thresholds=(0.5,))}
    directory = Directory([(Tenant(name="acme"), [hash_key("key")])], required=True)
    limits = {"decisions_concurrent_max": 8, "body_bytes_max": 1 << 20}
    return Processor(scheduler, directory, **limits, clock=lambda: 0)


def decided(path: str, data: bytes) -> Processor:
    """One request from its headers to its decision; then its client leaves."""
    processor = processor_of()
    exchange = Exchange(processor)
    route = find_route("POST", path)
    assert route is not None
    # A form says how large it is before any of it comes.
    form = (("content-length", str(len(data))), ("content-type", "multipart/form-data; boundary=x"))
    exchange.receive(envoy.headers("POST", path, KEY, *(form if route.body is BodyKind.FORM else ())))
    reply = exchange.receive(envoy.body(data))
    assert reply.end
    answer = envoy.response(reply.data)
    if reply.reservation_id:
        (entry,) = [processor.scheduler.ledger.get(reply.reservation_id)]
        assert entry is not None
        # What it asks for is counted, degraded or not.
        assert 0 <= entry.reservation.permits <= 4
        assert entry.reservation.output_tokens >= 0
    else:
        assert answer.immediate_response.status.code in (400, 403, 404, 413, 422, 429)
    exchange.close()
    assert (len(processor.scheduler.ledger), processor.open_exchanges, processor.bodies_bytes) == (0, 0, 0)
    assert all(e.permits == e.standby == e.tokens == 0 for e in processor.scheduler.fleet.endpoints)
    failures = {k: v for k, v in processor.scheduler.counts.items() if k.startswith("exception.")}
    assert not failures, failures
    return processor


@given(st.sampled_from(PATHS), BODIES, st.booleans())
@example("/v1/chat/completions", {**GOOD, "model": "auto", "max_tokens": 10**400}, True)
@example("/v1/chat/completions", {**GOOD, "n": 64, "max_tokens": 10**400}, True)
@example("/generate", {**GOOD, "parameters": {"max_new_tokens": 10**400, "best_of": 3}}, True)
@examples(300)
def test_any_values(path: str, body: dict[str, Any], ascii_only: bool) -> None:
    """Numbers of any size, NaN and infinities, lone surrogates, wrong types: a decision, and no exception."""
    decided(path, json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))


@given(st.sampled_from(PATHS), BODIES, st.data())
@example("/v1/chat/completions", {**GOOD, "model": "auto"}, None)
@examples(300)
def test_any_bytes_in_between(path: str, body: dict[str, Any], data: st.DataObject | None) -> None:
    """Bytes that are no text, repeated fields, and halves of bodies; for a family's name too."""
    raw = json.dumps(body).encode()
    if data is None:
        raw = raw.replace(b"{", b'{"i\xf1puts":1,"model":"m",', 1)
    else:
        at = data.draw(st.integers(0, len(raw)))
        noise = data.draw(
            st.sampled_from([b"\xf1", b"\xff\xfe", b"\x00", b',"n":3', b'"n\xf1":1,', b"", b"{"])
        )
        cut = data.draw(st.sampled_from([0, 0, 1, 5]))
        raw = raw[:at] + noise + raw[at + cut :]
    decided(path, raw)


@given(st.sampled_from(PATHS), st.binary(max_size=64))
@examples(200)
def test_any_bytes_at_all(path: str, data: bytes) -> None:
    """No JSON at all is the client's mistake."""
    decided(path, data)

"""The picker protocol whatever the split: the same decision, the same bytes, no piece too long."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from extproc._pb import ext_proc_pb2 as pb
from extproc.config.picker import PickerConfig as Settings
from extproc.core.fleet import PoolSpec
from extproc.core.outcome import Outcome
from extproc.wire.picker import Picker
from extproc.wire.picker.codec import CHUNK_BYTES_MAX, FULL_DUPLEX, address_of, pieces
from extproc.wire.picker.exchange import PickerExchange

sys.path.insert(0, str(Path(__file__).parents[1] / "wire"))
import envoy_messages as envoy

from tests.stand.examples import examples
from tests.stand.schedulers import make_processor, make_scheduler

texts = st.text(max_size=200)
bodies = st.one_of(
    st.builds(
        lambda text, tokens: json.dumps(
            {"model": "m", "prompt": text, "max_tokens": tokens}, ensure_ascii=False
        ).encode("utf-8", "surrogatepass"),
        texts,
        st.integers(-1, 100),
    ),
    st.binary(max_size=300),
    st.integers(0, 200_000).map(lambda n: b'{"model":"m","prompt":"' + "ü".encode() * (n // 2) + b'"}'),
)


def picker_of() -> tuple[Picker, list[Outcome]]:
    endpoints = (("10.0.0.1:80", "", 64), ("10.0.0.2:80", "", 64))
    pool = PoolSpec(name="p", models=("m",), strategy="least_work", endpoints=endpoints)
    scheduler = make_scheduler(pool)
    processor = make_processor(
        scheduler, decisions_concurrent_max=64, body_bytes_max=1_000_000, wall_clock=lambda: 0.0
    )
    outcomes: list[Outcome] = []
    picker = Picker(processor, Settings(enabled=True), settle=outcomes.append, first_token=lambda *_: None)
    return picker, outcomes


def head() -> bytes:
    message = pb.ProcessingRequest.FromString(envoy.headers("POST", "/v1/completions"))
    message.protocol_config.request_body_mode = FULL_DUPLEX
    message.protocol_config.response_body_mode = FULL_DUPLEX
    data: bytes = message.SerializeToString()
    return data


def piece(data: bytes, phase: str, *, end: bool) -> bytes:
    message = pb.ProcessingRequest()
    getattr(message, phase).body = data
    getattr(message, phase).end_of_stream = end
    return bytes(message.SerializeToString())


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({min(cut, len(data)) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


def fed(exchange: PickerExchange, parts: list[bytes], *, trailers: bool) -> list[bytes]:
    """All that goes out for a body in these parts."""
    out: list[bytes] = []
    for i, part in enumerate(parts):
        reply = exchange.receive(piece(part, "request_body", end=not trailers and i == len(parts) - 1))
        out += [data for data in (reply.data, *reply.more) if data]
        if reply.end:
            return out
    if trailers:
        reply = exchange.receive(envoy.phase("request_trailers"))
        out += [data for data in (reply.data, *reply.more) if data]
    return out


def joined(answers: list[Any], phase: str) -> tuple[bytes, bool]:
    """The body of the answers to a phase, and whether its last piece ends it; no piece is too long."""
    found = [getattr(a, phase).response.body_mutation.streamed_response for a in answers if a.HasField(phase)]
    assert all(len(each.body) <= CHUNK_BYTES_MAX for each in found)
    assert not any(each.end_of_stream for each in found[:-1])
    return b"".join(each.body for each in found), bool(found) and found[-1].end_of_stream


@examples(120)
@given(body=bodies, cuts=st.lists(st.integers(0, 300), max_size=40), trailers=st.booleans())
def test_every_split_of_a_body_gives_the_same_answer(body: bytes, cuts: list[int], trailers: bool) -> None:
    """The decision or refusal of a body does not depend on how it came; what goes on is the body."""
    picker, _ = picker_of()
    exchange = PickerExchange(picker)
    exchange.receive(head())
    whole = fed(exchange, [body], trailers=trailers)
    exchange.close()
    again, _ = picker_of()
    exchange = PickerExchange(again)
    exchange.receive(head())
    parts = fed(exchange, split(body, cuts), trailers=trailers)
    assert parts == whole
    answers = [envoy.response(data) for data in parts]
    if answers[0].HasField("request_headers"):
        assert joined(answers, "request_body") == (body, not trailers)
        assert answers[-1].HasField("request_trailers") == trailers
    else:
        assert [answer.WhichOneof("response") for answer in answers] == ["immediate_response"]
    exchange.delivered()
    exchange.close()
    assert (again.bodies_bytes, again.processor.open_exchanges, again.processor.following) == (0, 0, 0)


@examples(120)
@given(
    body=st.binary(max_size=200_000),
    cuts=st.lists(st.integers(0, 200_000), max_size=20),
    end=st.sampled_from(["body", "trailers", "cut"]),
)
def test_a_response_goes_back_to_the_byte_and_settles_once(body: bytes, cuts: list[int], end: str) -> None:
    """However it comes and however it ends."""
    picker, outcomes = picker_of()
    exchange = PickerExchange(picker)
    exchange.receive(head())
    fed(exchange, [b'{"model":"m","prompt":"x","stream":true}'], trailers=False)
    exchange.delivered()
    parts = split(body, cuts)
    answers: list[Any] = []
    for i, part in enumerate(parts):
        last = end == "body" and i == len(parts) - 1
        reply = exchange.receive(piece(part, "response_body", end=last))
        assert reply.end == last
        answers += [envoy.response(data) for data in (reply.data, *reply.more)]
    if end == "trailers":
        assert exchange.receive(envoy.phase("response_trailers")).end
    exchange.close()
    assert joined(answers, "response_body") == (body, end == "body")
    assert len(outcomes) == 1


@given(st.binary(max_size=3 * CHUNK_BYTES_MAX), st.booleans())
def test_pieces(body: bytes, end: bool) -> None:
    """As few as the bound allows; an empty body that ends is one, one that goes on none."""
    answers = [envoy.response(data) for data in pieces("request_body", body, end=end)]
    assert len(answers) == (-(-len(body) // CHUNK_BYTES_MAX) or int(end))
    assert joined(answers, "request_body") == (body, end and bool(answers))


@given(
    st.text(max_size=40) | st.ip_addresses().map(lambda ip: f"[{ip}]:80" if ip.version == 6 else f"{ip}:80")
)
def test_addresses(name: str) -> None:
    """Any text is read without a word, and what is read stays as it is."""
    read = address_of(name)
    assert read == "" or read == address_of(read.strip("[]") if read.endswith("]") else read)

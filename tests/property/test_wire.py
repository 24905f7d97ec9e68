from __future__ import annotations

import contextlib
import json

import msgspec
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from extproc._pb import access_log_pb2
from extproc._pb import ext_proc_pb2 as pb
from extproc.core import contract
from extproc.core.errors import error_body
from extproc.core.fleet import Fleet
from extproc.core.outcome import Outcome, Reject, Reservation
from extproc.core.reading import parse
from extproc.core.request import Dialect, Request
from extproc.core.routes import ROUTES
from extproc.core.tenant import Directory, Tenant, hash_key
from extproc.wire import accesslog, codec, ticket
from extproc.wire.exchange import Exchange
from extproc.wire.processor import Processor
from extproc.wire.seal import TICKET
from tests.stand.examples import examples
from tests.stand.schedulers import make_pool, make_processor, make_reservation, make_scheduler
from tests.stand.seals import SEAL

counts = st.integers(0, 2**63 - 1)
reservations = st.builds(
    Reservation,
    id=st.text(),
    tenant=st.text(),
    model=st.text(),
    pool=st.text(),
    address=st.text(),
    input_tokens=counts,
    output_tokens=counts,
    permits=counts,
    prompt_bytes=counts,
    stream=st.booleans(),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
field_names = st.sampled_from(
    [
        "messages",
        "prompt",
        "inputs",
        "parameters",
        "content",
        "type",
        "text",
        "n",
        "best_of",
        "model",
        "stream",
    ]
)
bodies = st.binary() | st.builds(
    lambda value: json.dumps(value).encode(),
    json_values | st.dictionaries(field_names, json_values | st.dictionaries(field_names, json_values)),
)
#: Anything a header can be: wanted names and others, with any bytes.
header_lists = st.lists(st.tuples(st.sampled_from(sorted(codec.WANTED)) | st.text(max_size=20), st.binary()))
methods = st.sampled_from([b"GET", b"POST", b"HEAD", b"\xff"])
paths = st.sampled_from([path.encode() for path in ROUTES]) | st.binary()


def opened(text: str) -> Reservation | None:
    """What a text says that one of us has sealed as a ticket."""
    return ticket.read(SEAL.sealed(text, TICKET), SEAL)


@given(reservations)
def test_a_ticket_round_trips(reservation: Reservation) -> None:
    """Any reservation comes back as it was."""
    assert ticket.read(ticket.write(reservation, SEAL), SEAL) == reservation


@given(st.text() | st.builds(json.dumps, json_values))
def test_no_text_breaks_the_ticket(text: str) -> None:
    """What is no ticket of ours is None, sealed or not."""
    assert ticket.read(text, SEAL) is None
    assert opened(text) is None


@given(st.sampled_from([route for routes in ROUTES.values() for route in routes]), bodies)
@examples(300)
def test_any_body_is_a_request_or_a_400(route: object, body: bytes) -> None:
    """Parsing raises nothing, and what it accepts is within its bounds."""
    parsed = parse(route, body)  # type: ignore[arg-type]
    if isinstance(parsed, Reject):
        assert parsed.status in (400, 422)
        error_body(parsed, Dialect.OPENAI)
        return
    assert isinstance(parsed, Request)
    assert parsed.sequences >= 1
    assert parsed.prompt_bytes >= 0
    assert parsed.max_new_tokens is None or parsed.max_new_tokens >= 0


def headers_message(headers: list[tuple[str, bytes]], *, end: bool) -> bytes:
    message = pb.ProcessingRequest()
    message.request_headers.end_of_stream = end
    for key, value in headers:
        header = message.request_headers.headers.headers.add()
        header.key, header.raw_value = key, value
    return message.SerializeToString()


@given(header_lists)
def test_any_header_bytes_are_read(headers: list[tuple[str, bytes]]) -> None:
    """Every wanted header is a text, whatever its bytes."""
    message = codec.read(headers_message(headers, end=True))
    assert isinstance(message, codec.Headers)
    assert set(message.values) == {key for key, _ in headers} & codec.WANTED


def processor_of(*, required: bool) -> Processor:
    fleet = Fleet([make_pool("10.0.0.1:80", permits=1_000)])
    scheduler = make_scheduler(fleet)
    return make_processor(
        scheduler,
        Directory([(Tenant(name="t"), [hash_key("key")])], required=required),
        decisions_concurrent_max=5,
    )


@given(methods, paths, header_lists, bodies, st.booleans(), st.booleans())
@examples(300)
def test_any_exchange_is_answered_and_leaks_nothing(
    method: bytes,
    path: bytes,
    headers: list[tuple[str, bytes]],
    body: bytes,
    bodyless: bool,
    required: bool,
) -> None:
    """Whatever a client sends, each message has a well-formed answer and no exception was met."""
    processor = processor_of(required=required)
    exchange = Exchange(processor)
    everything = [*headers, (":method", method), (":path", path)]
    reply = exchange.receive(headers_message(everything, end=bodyless))
    assert pb.ProcessingResponse.FromString(reply.data).WhichOneof("response")
    if not reply.end:
        message = pb.ProcessingRequest()
        message.request_body.body = body
        reply = exchange.receive(message.SerializeToString())
        assert pb.ProcessingResponse.FromString(reply.data).WhichOneof("response")
        assert reply.end
    exchange.close()
    assert processor.open_exchanges == 0
    assert len(processor.scheduler.ledger) == 0
    assert not [name for name in processor.scheduler.counts if name.startswith("exception")]


@given(st.binary())
def test_garbage_is_a_decode_error(data: bytes) -> None:
    """Bytes are a message or a DecodeError, in both protocols; nothing else is raised."""
    for read in (codec.read, lambda data: list(accesslog.read(data, SEAL))):
        with contextlib.suppress(DecodeError):
            read(data)


values = st.one_of(
    st.floats(), st.text(), st.booleans(), st.none(), st.sampled_from(["inf", "nan", "-1", "1e400", "12"])
)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                contract.FIRST_CHUNK_KEY,
                contract.INDEX_KEY,
                contract.PROMPT_TOKENS_KEY,
                contract.COMPLETION_TOKENS_KEY,
            ]
        ),
        values,
    ),
    st.text(),
    st.integers(0, 2**32 - 1),
    st.sampled_from(list(range(12))),
)
def test_any_record_with_a_ticket_is_an_outcome(
    seen: dict[str, object], header: str, status: int, kind: int
) -> None:
    """Whatever the filters observed, counts are natural numbers or unknown."""
    reservation = make_reservation(input_tokens=1, output_tokens=1, prompt_bytes=1, stream=True)
    message = access_log_pb2.StreamAccessLogsMessage()
    entry = message.http_logs.log_entry.add()
    metadata = entry.common_properties.metadata.filter_metadata
    metadata[contract.DECISION_NAMESPACE].update({contract.TICKET_KEY: ticket.write(reservation, SEAL)})
    metadata[contract.OBSERVED_NAMESPACE].update(seen)
    entry.common_properties.access_log_type = kind  # type: ignore[assignment]
    entry.response.response_code.value = status
    entry.response.response_headers[contract.GENERATED_TOKENS_HEADER] = header
    (outcome,) = accesslog.read(message.SerializeToString(), SEAL)
    assert isinstance(outcome, Outcome)
    for count in (outcome.prompt_tokens, outcome.output_tokens):
        assert count is None or 0 <= count <= accesslog.TOKENS_MAX
    assert outcome.ttft_ns is None or outcome.ttft_ns > 0


@given(st.text(), st.sampled_from([400, 401, 403, 404, 413, 415, 429, 503]), st.sampled_from(Dialect))
def test_error_bodies_are_json(message: str, status: int, dialect: Dialect) -> None:
    """In each dialect, with the message in them."""
    body = msgspec.json.decode(error_body(Reject(status=status, code="c", message=message), dialect))
    assert message == (body["error"] if dialect is Dialect.TGI else body["error"]["message"])


def test_a_ticket_of_a_later_version_is_read() -> None:
    """Fields at the end that this version does not know pass; a ticket cut short does not."""
    whole = (
        '["i","t","m","p","a",1,2,3,4,true,"k","standard",64,10,1.5,2.5,"steer","arm",0.5,7,"chat","p","",0,"","",'
        '{"new":1}]'
    )
    assert opened(whole) is not None
    assert opened('["i","t","m","p","a",1,2,3,4,true,"k","standard"]') is not None, "the version before"
    assert opened('["i","t","m","p","a",1,2,3,4]') is None
    assert opened('["i","t","m","p","a",1,2,3,4,true,' + "[" * 100_000) is None


def test_a_ticket_of_an_earlier_release_is_read() -> None:
    """Seal included: what an earlier release wrote is in flight while this one starts."""
    written = (
        'a246291ebb2ddb5e8df6261852f9813d["i-7","acme","m","p","10.0.0.1:80",100,10,1,400,true,"k1","premium",'
        'null,16,41.5,8.0,"steer","x/a",0.25,12345678901234567890,"chat"]'
    )
    reservation = Reservation(
        id="i-7",
        tenant="acme",
        model="m",
        pool="p",
        address="10.0.0.1:80",
        input_tokens=100,
        output_tokens=10,
        permits=1,
        prompt_bytes=400,
        stream=True,
        key="k1",
        service_class="premium",
        max_new_tokens=None,
        cached_tokens=16,
        ttft_ms=41.5,
        tpot_ms=8.0,
        strategy="steer",
        arm="x/a",
        held_ms=0.25,
        unit=12345678901234567890,
        route="chat",
    )
    assert ticket.read(written, SEAL) == reservation
    assert ticket.read(ticket.write(reservation, SEAL), SEAL) == reservation


@pytest.mark.parametrize("field", ["input_tokens", "output_tokens", "permits", "prompt_bytes"])
def test_a_ticket_never_brings_a_negative(field: str) -> None:
    """The ledger could go below zero by it."""
    order = ["input_tokens", "output_tokens", "permits", "prompt_bytes"]
    numbers = [-5 if name == field else 1 for name in order]
    read = opened(json.dumps(["i", "t", "m", "p", "a", *numbers, True]))
    assert read is not None
    assert getattr(read, field) == 0

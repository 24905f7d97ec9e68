from __future__ import annotations

import contextlib
from typing import Any

import envoy_messages as envoy
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from extproc._pb import access_log_pb2 as pb
from extproc.core.accounts import Price, used
from extproc.core.contract import DECISION_NAMESPACE, OBSERVED_NAMESPACE
from extproc.core.outcome import End, Outcome, Reservation
from extproc.core.quota import Amounts
from extproc.wire import accesslog, ticket
from tests.stand.schedulers import make_reservation
from tests.stand.seals import SEAL

RESERVATION = make_reservation(tenant="acme", input_tokens=10, output_tokens=20, prompt_bytes=40, stream=True)
START_NS = 1_700_000_000_000_000_000


def record(
    *,
    seen: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    flags: tuple[str, ...] = (),
    status: int = 200,
    kind: int = pb.DOWNSTREAM_END,
    stream: bool = True,
    upstream: tuple[str, int] | None = ("10.0.0.2", 80),
    size: int = 100,
    reservation: Reservation = RESERVATION,
) -> bytes:
    message, entry = envoy.record()
    common = entry.common_properties
    reservation = structs.replace(reservation, stream=stream)
    common.metadata.filter_metadata[DECISION_NAMESPACE].update({"ticket": ticket.write(reservation, SEAL)})
    if seen is not None:
        common.metadata.filter_metadata[OBSERVED_NAMESPACE].update(seen)
    for flag in flags:
        setattr(common.response_flags, flag, True)
    if upstream:
        address = common.upstream_remote_address.socket_address
        address.address, address.port_value = upstream
    common.access_log_type = kind
    common.upstream_request_attempt_count = 2
    common.start_time.FromNanoseconds(START_NS)
    common.duration.FromNanoseconds(1_500_000_000)
    entry.response.response_code.value = status
    entry.response.response_body_bytes = size
    entry.response.response_headers.update(headers or {})
    data: bytes = message.SerializeToString()
    return data


def read(data: bytes) -> Outcome:
    (outcome,) = accesslog.read(data, SEAL)
    return outcome


def test_a_whole_record() -> None:
    """Everything the books need, in their units."""
    seen = {"first_chunk_us": str((START_NS + 250_000_000) // 1_000), "index": 12, "prompt_tokens": 9}
    assert read(record(seen=seen)) == Outcome(
        reservation=RESERVATION,
        final=True,
        status=200,
        end=End.OK,
        start_unix_ns=START_NS,
        served_by="10.0.0.2:80",
        attempts=2,
        duration_ns=1_500_000_000,
        ttft_ns=250_000_000,
        prompt_tokens=9,
        output_tokens=12,
        response_bytes=100,
    )


@pytest.mark.parametrize(
    ("generates", "kind", "end"),
    [
        (True, pb.DOWNSTREAM_END, End.ERROR),
        (False, pb.DOWNSTREAM_END, End.OK),
        (True, pb.DOWNSTREAM_PERIODIC, End.OK),
    ],
)
def test_a_200_without_a_byte_is_no_answer(generates: bool, kind: int, end: End) -> None:
    """Where something was to be generated it is the engine's fault, and costs no tokens."""
    reservation = structs.replace(RESERVATION, max_new_tokens=None if generates else 0)
    outcome = read(record(size=0, kind=kind, reservation=reservation))
    assert outcome.end is end
    if end is End.ERROR:
        assert used(outcome, None, Price(), gpu_ms=None).output_tokens == 0


@pytest.mark.parametrize(
    ("kind", "final"),
    [
        (pb.NOT_SET, True),
        (pb.DOWNSTREAM_END, True),
        (pb.DOWNSTREAM_START, False),
        (pb.DOWNSTREAM_PERIODIC, False),
        (8, False),  # UpstreamPeriodic
        (9, False),  # UpstreamEnd: a retry may follow
        (99, False),
    ],
)
def test_what_ends_a_request(kind: int, final: bool) -> None:
    """Only the record of the downstream's end, or of an Envoy that says no type."""
    assert read(record(kind=kind)).final is final


@pytest.mark.parametrize(
    ("status", "flags", "end"),
    [
        (200, (), End.OK),
        (204, (), End.OK),
        (400, (), End.REFUSED),
        (429, (), End.REFUSED),
        (500, (), End.ERROR),
        (503, ("upstream_overflow",), End.ERROR),
        (0, (), End.ERROR),
        (0, ("downstream_connection_termination",), End.CLIENT_GONE),
        (200, ("downstream_remote_reset",), End.CLIENT_GONE),
        (503, ("downstream_connection_termination", "upstream_overflow"), End.CLIENT_GONE),
        (200, ("upstream_connection_termination",), End.ERROR),
        (200, ("stream_idle_timeout",), End.ERROR),
        (404, ("no_route_found",), End.ERROR),
    ],
)
def test_how_it_ended(status: int, flags: tuple[str, ...], end: End) -> None:
    """The client's leaving first, then faults (also within a 200), then the status."""
    assert read(record(status=status, flags=flags)).end is end


def test_every_flag_is_somebodys() -> None:
    """A flag in the message is read, as the client's or as a fault."""
    flags = {field.name for field in pb.ResponseFlags.DESCRIPTOR.fields}
    assert flags == {*accesslog._ENDED_BY_CLIENT, *accesslog._ENDED_BY_FAULT}


@pytest.mark.parametrize(
    ("seen", "headers", "output"),
    [
        (None, {}, None),
        ({}, {}, None),
        ({"index": 5}, {}, 5),
        ({"index": 5}, {"x-generated-tokens": "7"}, 7),
        ({"index": 5, "completion_tokens": 9}, {"x-generated-tokens": "7"}, 9),
        ({"completion_tokens": "9"}, {}, 9),
        ({"completion_tokens": 0, "index": 5}, {}, 0),
        ({"completion_tokens": None, "index": 5}, {}, 5),
        ({"completion_tokens": True}, {"x-generated-tokens": "7"}, 7),
        ({"completion_tokens": "many"}, {"x-generated-tokens": "7"}, 7),
        ({"completion_tokens": -1}, {}, None),
        ({"completion_tokens": 1e12}, {}, 100_000_000),
        ({"completion_tokens": "inf"}, {}, None),
        ({"completion_tokens": "nan"}, {}, None),
        ({"completion_tokens": {"a": 1}}, {}, None),
        ({}, {"x-generated-tokens": "²"}, None),
        ({}, {"x-generated-tokens": "-1"}, None),
        ({}, {"x-generated-tokens": "9" * 5_000}, 100_000_000),
    ],
)
def test_whose_count_of_output_tokens(
    seen: dict[str, Any] | None, headers: dict[str, str], output: int | None
) -> None:
    """The body's usage, then TGI's header, then the last index; what is no count is unknown."""
    assert read(record(seen=seen, headers=headers)).output_tokens == output


def test_whose_count_of_prompt_tokens() -> None:
    """The body's usage, then TGI's header."""
    header = {"x-prompt-tokens": "7"}
    assert read(record(seen={"prompt_tokens": 9.0}, headers=header)).prompt_tokens == 9
    assert read(record(headers=header)).prompt_tokens == 7
    assert read(record()).prompt_tokens is None


@pytest.mark.parametrize(("said", "cached"), [(96.0, 96), (0, 0), (None, None), (-1, None)])
def test_what_was_found_cached(said: float | None, cached: int | None) -> None:
    """The engine's own word; 0 is one, a null is none."""
    assert read(record(seen={"cached_tokens": said})).cached_tokens == cached
    assert read(record()).cached_tokens is None


@pytest.mark.parametrize(
    ("first_us", "ttft_ns"),
    [
        (START_NS / 1_000 + 1_000, 1_000_000),
        (str(START_NS // 1_000 + 1_000), 1_000_000),
        (str(START_NS // 1_000 - 1), None),
        ("soon", None),
        ("inf", None),
        ("nan", None),
        (None, None),
    ],
)
def test_time_to_first_token(first_us: Any, ttft_ns: int | None) -> None:
    """From the request's start to the first chunk; None where the clocks disagree or nothing was seen."""
    assert read(record(seen={"first_chunk_us": first_us})).ttft_ns == ttft_ns


@pytest.mark.parametrize("flags", [(), ("downstream_remote_reset",), ("upstream_remote_reset",)])
def test_a_refusal_inside_a_200(flags: tuple[str, ...]) -> None:
    """It is the engine's refusal however the stream ended then, and its first chunk was no token."""
    seen = {"first_chunk_us": str((START_NS + 250_000_000) // 1_000), "refused": True}
    outcome = read(record(seen=seen, flags=flags))
    assert (outcome.refused, outcome.end, outcome.ttft_ns) == (True, End.REFUSED, None)
    amounts = used(outcome, None, Price(input_per_million=1.0, output_per_million=1.0), gpu_ms=10.0)
    only_the_request = Amounts(requests=1, input_tokens=0, output_tokens=0, gpu_ms=0.0, cost=0.0)
    assert amounts == only_the_request


@pytest.mark.parametrize("value", [False, None, "1", 1])
def test_what_is_no_refusal(value: Any) -> None:
    """Our script writes true or nothing."""
    outcome = read(record(seen={"refused": value}))
    assert (outcome.refused, outcome.end) == (False, End.OK)


def test_no_time_to_first_token() -> None:
    """Neither for an answer that came whole, nor for an error."""
    seen = {"first_chunk_us": str(START_NS // 1_000 + 1_000)}
    assert read(record(seen=seen, stream=False)).ttft_ns is None
    assert read(record(seen=seen, status=500)).ttft_ns is None


@pytest.mark.parametrize(
    ("upstream", "served_by"),
    [(("10.0.0.2", 80), "10.0.0.2:80"), (("fd00::1", 8000), "[fd00::1]:8000"), (None, "")],
)
def test_who_served(upstream: tuple[str, int] | None, served_by: str) -> None:
    """Spelled as the configuration's canonical addresses are."""
    assert read(record(upstream=upstream)).served_by == served_by


def test_records_without_a_ticket_of_ours_pass() -> None:
    """No metadata, another's metadata, a ticket that is none: nothing to settle; the next one is read."""
    message, entry = envoy.record()
    message.http_logs.log_entry.add().common_properties.metadata.filter_metadata["other"].update({"a": 1})
    for wrong in ("", "garbage", "[]", 5, None):
        entry = message.http_logs.log_entry.add()
        entry.common_properties.metadata.filter_metadata[DECISION_NAMESPACE].update({"ticket": wrong})
    message.http_logs.log_entry.add().common_properties.metadata.filter_metadata[DECISION_NAMESPACE].update(
        {}
    )
    good = pb.StreamAccessLogsMessage.FromString(record())
    message.http_logs.log_entry.append(good.http_logs.log_entry[0])
    assert [outcome.reservation.id for outcome in accesslog.read(message.SerializeToString(), SEAL)] == [
        "i-1"
    ]


def test_garbage() -> None:
    """What is no message is a DecodeError; an empty one holds nothing."""
    with pytest.raises(DecodeError):
        list(accesslog.read(b"\xff\xff", SEAL))
    assert list(accesslog.read(b"", SEAL)) == []


def joined(*records: bytes) -> bytes:
    """One message of several."""
    whole = pb.StreamAccessLogsMessage()
    for each in records:
        whole.MergeFrom(pb.StreamAccessLogsMessage.FromString(each))
    data: bytes = whole.SerializeToString()
    return data


def test_a_record_that_no_clock_has_is_lost_alone() -> None:
    """A time outside of every calendar: the records beside it are settled."""
    bad = pb.StreamAccessLogsMessage.FromString(record())
    bad.http_logs.log_entry[0].common_properties.start_time.seconds = 2**62
    errors: list[Exception] = []
    found = list(
        accesslog.read(joined(record(), bad.SerializeToString(), record()), SEAL, failed=errors.append)
    )
    assert len(found) == 2
    assert len(errors) == 1


def test_a_record_that_is_no_text_is_lost_alone() -> None:
    """A name that is not UTF-8 makes the message unreadable as one; the others are read one by one."""
    bad = pb.StreamAccessLogsMessage.FromString(record())
    bad.http_logs.log_entry[0].request.path = "/PATH"
    data = joined(record(), bad.SerializeToString(), record()).replace(b"/PATH", b"/PA\xffH")
    with pytest.raises(DecodeError):
        pb.StreamAccessLogsMessage.FromString(data)
    errors: list[Exception] = []
    assert len(list(accesslog.read(data, SEAL, failed=errors.append))) == 2
    assert len(errors) == 1


@given(st.binary(max_size=200), st.integers(0, 200))
def test_garbage_is_told_from_records(noise: bytes, cut: int) -> None:
    """A message that is cut off or mixed with noise gives what records it has, or is no message."""
    data = joined(record(), record())
    for each in (noise, data[:cut] + noise, data + noise):
        with contextlib.suppress(DecodeError):
            assert len(list(accesslog.read(each, SEAL))) <= 3

from __future__ import annotations

import envoy_messages as envoy
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from extproc._pb import ext_proc_pb2 as pb
from extproc.core.contract import DECISION_NAMESPACE, EVENT_CLUSTER_KEY, RESERVATION_KEY
from extproc.core.outcome import LocalAnswer, Reason, Reject, Routed
from extproc.core.request import Dialect
from extproc.wire import codec
from extproc.wire.seal import EVENT
from tests.stand.schedulers import make_reservation
from tests.stand.seals import SEAL


def test_headers_are_read_from_raw_bytes() -> None:
    """Or from the text, where an older Envoy sends that; unwanted ones are left out."""
    message = pb.ProcessingRequest()
    fields = message.request_headers.headers.headers
    fields.add(key=":path", raw_value=b"/\xe9")
    fields.add(key="x-model", value="m")
    fields.add(key="cookie", raw_value=b"secret")
    read = codec.read(message.SerializeToString())
    assert read == codec.Headers({":path": "/é", "x-model": "m"}, end_of_stream=False)


@pytest.mark.parametrize("kind", sorted(codec.CONTINUE))
def test_going_on_sets_the_phase(kind: str) -> None:
    """Envoy takes an answer without its oneof, or without the response in it, as spurious."""
    answer = envoy.response(codec.CONTINUE[kind])
    assert answer.WhichOneof("response") == kind
    if not kind.endswith("trailers"):
        assert getattr(answer, kind).HasField("response")


@pytest.mark.parametrize(
    "kind", ["response_headers", "response_body", "request_trailers", "response_trailers", ""]
)
def test_other_phases(kind: str) -> None:
    """Named, and not looked into; a message without any has an empty name."""
    assert codec.read(envoy.phase(kind) if kind else b"") == codec.Other(kind)


def test_a_refusal() -> None:
    """Status, wait, challenge; the details hold no blank, for Envoy's access log."""
    answer = envoy.response(
        codec.immediate(
            Reject(status=401, code="invalid_api_key", message="é", retry_after_s=3), Dialect.OPENAI
        )
    ).immediate_response
    assert envoy.mutated(answer.headers) == {
        "content-type": "application/json",
        "retry-after": "3",
        "www-authenticate": "Bearer",
    }
    assert (answer.status.code, answer.details) == (401, "steersman_invalid_api_key")
    assert "é".encode() in answer.body


def test_an_answer() -> None:
    """What the service itself knows, as it is."""
    answer = envoy.response(
        codec.immediate(LocalAnswer(status=200, body=b"{}"), Dialect.TGI)
    ).immediate_response
    assert (answer.status.code, answer.body, answer.details) == (200, b"{}", "steersman_answered")
    assert envoy.mutated(answer.headers) == {"content-type": "application/json"}


def test_what_envoy_says_of_the_sender() -> None:
    """Metadata and attributes become evidence; a header of the same name does not."""
    from extproc._pb import ext_proc_pb2 as pb
    from extproc.core.contract import ATTRIBUTES_NAMESPACE, JWT_NAMESPACE
    from extproc.core.tenant import Credentials, ProxyTrust

    message = pb.ProcessingRequest()
    for key, value in (("x-fwd", "acme"), ("source.address", "1.2.3.4:5"), ("x-api-key", "k")):
        header = message.request_headers.headers.headers.add()
        header.key, header.raw_value = key, value.encode()
    bare = codec.read(message.SerializeToString(), claim="sub")
    assert isinstance(bare, codec.Headers)
    assert bare.evidence == Credentials(api_key="k")
    message.metadata_context.filter_metadata[JWT_NAMESPACE].update(
        {"payload": {"sub": "s", "aud": ["x"]}, "failure": {"code": 3, "message": "expired"}}
    )
    message.attributes[ATTRIBUTES_NAMESPACE].update(
        {"source.address": "[fd00::1]:99", "connection.dns_san_peer_certificate": "a.x"}
    )
    proxy = ProxyTrust("x-fwd", ())
    full = codec.read(message.SerializeToString(), claim="sub", proxy=proxy)
    assert isinstance(full, codec.Headers)
    assert full.evidence == Credentials(
        api_key="k", jwt="s", jwt_failure="expired", sans=("a.x",), proxy_tenant="acme", source="fd00::1"
    )
    header = message.request_headers.headers.headers.add()
    header.key, header.raw_value = "x-steersman-peer-address", b"10.0.0.9"
    peered = codec.read(
        message.SerializeToString(), proxy=ProxyTrust("x-fwd", (), peer_header="x-steersman-peer-address")
    )
    assert isinstance(peered, codec.Headers)
    assert (peered.evidence.source, peered.evidence.peer) == ("fd00::1", "10.0.0.9")
    for claim, jwt in (("none", ""), ("aud", ""), (None, None)):
        answer = codec.read(message.SerializeToString(), claim=claim)
        assert isinstance(answer, codec.Headers)
        assert answer.evidence.jwt == jwt


def test_whom_envoy_tells_of_the_first_token() -> None:
    """The decision carries its id and this service's cluster; without a cluster nobody is told."""
    reservation = make_reservation(input_tokens=1, output_tokens=1, prompt_bytes=1, stream=True)
    decision = Routed(
        cluster="pool.p/standard",
        addresses=("10.0.0.1:80",),
        reservation=reservation,
        reason=Reason("s", [], [], [], {}),
    )
    for cluster in ("steersman.log.1", ""):
        answer = envoy.response(codec.routed(decision, "request_body", seal=SEAL, event_cluster=cluster))
        about = envoy.metadata(answer, DECISION_NAMESPACE)
        assert SEAL.opened(about[RESERVATION_KEY], EVENT) == "i-1"
        assert about.get(EVENT_CLUSTER_KEY, "") == cluster


def test_joined_credentials_are_two() -> None:
    """Envoy joins the copies of Authorization itself."""
    answer = codec.read(envoy.headers("POST", "/", ("authorization", "Bearer a,Bearer b")))
    assert isinstance(answer, codec.Headers)
    assert answer.repeated == "authorization"


@given(
    st.binary(min_size=1, max_size=40),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
    st.sampled_from([b"", b"\x0a\x01z", b"\x10\x00"]),
    st.sampled_from([b"", b"\x22\x00", b"\x12\x00", b"\x5a\x02\x08\x02", b"\x22"]),
)
def test_a_large_body_is_read_as_protobuf_reads_it(
    unit: bytes, cut: int, end: bool, attributes: bool, inner: bytes, outer: bytes
) -> None:
    """Whatever stands beside it or is missing of it: the same body, the same phase, or the same complaint."""
    message = pb.ProcessingRequest()
    message.request_body.body = unit * (codec.LARGE_BYTES // len(unit) + 1)
    message.request_body.end_of_stream = end
    if attributes:
        message.attributes["x"].update({"a": "b"})
    body = message.request_body.SerializeToString() + inner
    alone = pb.ProcessingRequest(request_body=message.request_body).SerializeToString()
    rest = message.SerializeToString()[len(alone) :]
    data = b"\x22" + varint(len(body)) + body + rest + outer
    data = data[: len(data) - cut]
    try:
        theirs = pb.ProcessingRequest.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            codec.read(data)
        return
    ours = codec.read(data)
    if theirs.WhichOneof("request") == "request_body":
        assert ours == codec.Body(theirs.request_body.body, theirs.request_body.end_of_stream)
    else:
        assert not isinstance(ours, codec.Body)


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])

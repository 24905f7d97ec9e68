"""Our subset of Envoy's messages is Envoy's on the wire: held against envoy-data-plane, field by field.

`TokenUsage` (envoy.data.ai.v3) is exempt: envoy-data-plane 2.2 does not know it. Its numbers were read
off a record of Envoy 1.40, and nothing reads it yet.
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

import pytest
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.data.accesslog import v3 as data_accesslog
from envoy_data_plane.envoy.service.accesslog import v3 as accesslog
from envoy_data_plane.envoy.service.ext_proc import v3 as ext_proc
from envoy_data_plane.google.protobuf import Struct, Value
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from extproc._pb import access_log_pb2, ext_proc_pb2, health_pb2
from extproc.wire import server

#: Where the walk begins: every other message is met on the way.
ROOTS = [
    (ext_proc_pb2.ProcessingRequest.DESCRIPTOR, ext_proc.ProcessingRequest),
    (ext_proc_pb2.ProcessingResponse.DESCRIPTOR, ext_proc.ProcessingResponse),
    (access_log_pb2.StreamAccessLogsMessage.DESCRIPTOR, accesslog.StreamAccessLogsMessage),
]
#: Envoy's StatusCode enumerates HTTP codes by their own number, so an int32 is the same on the wire.
INT32_FOR_ENUM = {"HttpStatus.code"}
KINDS = {
    getattr(FieldDescriptor, name): name.removeprefix("TYPE_").lower()
    for name in dir(FieldDescriptor)
    if name.startswith("TYPE_")
}
SKIPPED = {"TokenUsage"}


def theirs_by_name(cls: Any) -> dict[str, Any]:
    return {field.name: field.metadata["betterproto"] for field in dataclasses.fields(cls)}


def pairs() -> dict[str, tuple[Descriptor, Any]]:
    """Each of our messages with Envoy's, found by walking the fields of both in step."""
    found: dict[str, tuple[Descriptor, Any]] = {}
    waiting = list(ROOTS)
    while waiting:
        ours, theirs = waiting.pop()
        if ours.full_name in found:
            continue
        found[ours.full_name] = (ours, theirs)
        for field in ours.fields:
            if is_ours(message_of(field)):
                name = f"{field.name}.value" if is_map(field) else field.name
                waiting.append((message_of(field), theirs._betterproto.cls_by_field[name]))
    return found


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def message_of(field: FieldDescriptor) -> Descriptor | None:
    """The message that a field holds, looking through maps."""
    if is_map(field):
        inner: Descriptor | None = field.message_type.fields_by_name["value"].message_type
        return inner
    return field.message_type


def is_ours(message: Descriptor | None) -> bool:
    return message is not None and message.full_name.startswith("steersman.")


PAIRS = pairs()


FIELDS = [
    pytest.param(field, theirs, id=f"{ours.name}.{field.name}")
    for ours, theirs in PAIRS.values()
    for field in ours.fields
]
ENUMS = [case for case in FIELDS if case.values[0].enum_type is not None]


def test_every_message_is_held() -> None:
    """The walk meets all messages of both files."""
    everything = {
        message.full_name
        for file in (ext_proc_pb2.DESCRIPTOR, access_log_pb2.DESCRIPTOR)
        for message in file.message_types_by_name.values()
        if message.name not in SKIPPED
    }
    assert set(PAIRS) == everything


@pytest.mark.parametrize(("ours", "theirs"), list(PAIRS.values()), ids=list(PAIRS))
def test_names(ours: Descriptor, theirs: Any) -> None:
    """A message is called as Envoy calls it (betterproto puts an outer message's name before its own)."""
    assert theirs.__name__.endswith(ours.name)


@pytest.mark.parametrize(("field", "theirs"), FIELDS)
def test_field(field: FieldDescriptor, theirs: Any) -> None:
    """Name, number, kind, repetition and message or enum are Envoy's."""
    known = theirs_by_name(theirs)
    assert field.name in known, f"Envoy has no field {field.name}"
    expected = known[field.name]
    assert field.number == expected.number
    if is_map(field):
        assert expected.proto_type == "map"
        for part, their_part in zip(("key", "value"), expected.map_meta, strict=True):
            assert KINDS[field.message_type.fields_by_name[part].type] == their_part.proto_type
        return
    assert field.is_repeated == expected.repeated
    if f"{field.containing_type.name}.{field.name}" in INT32_FOR_ENUM:
        assert (KINDS[field.type], expected.proto_type) == ("int32", "enum")
        return
    assert KINDS[field.type] == expected.proto_type
    if field.message_type is not None and not is_ours(field.message_type):
        wanted = expected.unwrap() if expected.unwrap else theirs._betterproto.cls_by_field[field.name]
        assert field.message_type.full_name == f"google.protobuf.{wanted.__name__}"


@pytest.mark.parametrize(("field", "theirs"), ENUMS)
def test_enum(field: FieldDescriptor, theirs: Any) -> None:
    """Every value that we name has Envoy's number and, but for its style, Envoy's name."""
    enum = theirs._betterproto.cls_by_field[field.name]
    known = {value.name.replace("_", "").lower(): value.value for value in enum}
    for value in field.enum_type.values:
        assert known[value.name.replace("_", "").lower()] == value.number


@pytest.mark.parametrize(("ours", "theirs"), list(PAIRS.values()), ids=list(PAIRS))
def test_oneofs(ours: Descriptor, theirs: Any) -> None:
    """What excludes each other here does so in Envoy."""
    known = theirs_by_name(theirs)
    for oneof in ours.oneofs:
        assert {known[field.name].group for field in oneof.fields} == {oneof.name}


def test_service_paths() -> None:
    """The paths that Envoy calls. grpcio-health-checking is not installed: its path is a constant of gRPC."""
    assert f"/{server.EXT_PROC}/Process" in mapping(ext_proc.ExternalProcessorBase)
    assert f"/{server.ACCESS_LOG}/StreamAccessLogs" in mapping(accesslog.AccessLogServiceBase)
    assert server.HEALTH == "grpc.health.v1.Health"


def mapping(base: Any) -> Any:
    return base().__mapping__()


def test_health_messages() -> None:
    """The published grpc.health.v1: HealthCheckRequest{service=1}, HealthCheckResponse{status=1}."""
    (service,) = health_pb2.HealthCheckRequest.DESCRIPTOR.fields
    assert (service.name, service.number, KINDS[service.type]) == ("service", 1, "string")
    (status,) = health_pb2.HealthCheckResponse.DESCRIPTOR.fields
    assert (status.name, status.number, KINDS[status.type]) == ("status", 1, "enum")
    values = {value.name: value.number for value in status.enum_type.values}
    assert values == {"UNKNOWN": 0, "SERVING": 1, "NOT_SERVING": 2, "SERVICE_UNKNOWN": 3}


def test_a_request_of_envoys() -> None:
    """What Envoy serialises parses here, and what is written here parses there with equal values."""
    theirs = ext_proc.ProcessingRequest(
        request_headers=ext_proc.HttpHeaders(
            headers=core.HeaderMap(
                headers=[
                    core.HeaderValue(key=":path", raw_value=b"/\xff"),
                    core.HeaderValue(key="a", value="b"),
                ]
            ),
            end_of_stream=True,
        ),
        metadata_context=core.Metadata(filter_metadata={"n": struct(ticket="t")}),
        attributes={"f": struct(a="b")},
    )
    ours = ext_proc_pb2.ProcessingRequest.FromString(bytes(theirs))
    assert ours.WhichOneof("request") == "request_headers"
    assert ours.request_headers.end_of_stream
    assert [(h.key, h.value, h.raw_value) for h in ours.request_headers.headers.headers] == [
        (":path", "", b"/\xff"),
        ("a", "b", b""),
    ]
    assert ours.metadata_context.filter_metadata["n"]["ticket"] == "t"
    assert ext_proc.ProcessingRequest.parse(ours.SerializeToString()) == theirs


def struct(**values: str) -> Struct:
    return Struct(fields={key: Value(string_value=value) for key, value in values.items()})


def test_a_body_of_envoys() -> None:
    """The same for a body."""
    theirs = ext_proc.ProcessingRequest(request_body=ext_proc.HttpBody(body=b"{}\x00", end_of_stream=True))
    ours = ext_proc_pb2.ProcessingRequest.FromString(bytes(theirs))
    assert (ours.request_body.body, ours.request_body.end_of_stream) == (b"{}\x00", True)
    assert ext_proc.ProcessingRequest.parse(ours.SerializeToString()) == theirs


def test_a_decision_of_ours() -> None:
    """What we answer is what Envoy reads: mutation, route cache, metadata, timeout."""
    ours = ext_proc_pb2.ProcessingResponse()
    common = ours.request_body.response
    common.clear_route_cache = True
    option = common.header_mutation.set_headers.add()
    option.header.key, option.header.raw_value = "x-steersman-cluster", b"pool.p"
    option.append_action = ext_proc_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    common.header_mutation.remove_headers.append("authorization")
    ours.dynamic_metadata.update({"envoy.lb": {"x-gateway-destination-endpoint": "1.1.1.1:80"}})
    ours.override_message_timeout.FromMilliseconds(1_500)
    theirs = ext_proc.ProcessingResponse.parse(ours.SerializeToString())
    assert theirs.request_body is not None
    answer = theirs.request_body.response
    assert answer is not None
    assert answer.clear_route_cache
    (mutation,) = answer.header_mutation.set_headers
    assert (mutation.header.key, mutation.header.raw_value) == ("x-steersman-cluster", b"pool.p")
    assert mutation.append_action is core.HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD
    assert answer.header_mutation.remove_headers == ["authorization"]
    assert theirs.override_message_timeout == datetime.timedelta(milliseconds=1_500)
    inner = theirs.dynamic_metadata.fields["envoy.lb"].struct_value
    assert inner.fields["x-gateway-destination-endpoint"].string_value == "1.1.1.1:80"
    assert ext_proc_pb2.ProcessingResponse.FromString(bytes(theirs)) == ours


def test_a_refusal_of_ours() -> None:
    """Status, headers, body and details of an immediate answer."""
    ours = ext_proc_pb2.ProcessingResponse()
    out = ours.immediate_response
    out.status.code, out.body, out.details = 429, b"{}", "steersman_overloaded"
    option = out.headers.set_headers.add()
    option.header.key, option.header.raw_value = "retry-after", b"1"
    theirs = ext_proc.ProcessingResponse.parse(ours.SerializeToString()).immediate_response
    assert theirs is not None
    assert (theirs.status.code, theirs.body, theirs.details) == (429, b"{}", "steersman_overloaded")
    assert theirs.headers.set_headers[0].header.raw_value == b"1"


def test_a_record_of_envoys() -> None:
    """Addresses, flags, times, metadata, headers and status of an access log entry."""
    entry = data_accesslog.HttpAccessLogEntry(
        common_properties=data_accesslog.AccessLogCommon(
            start_time=datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC),
            duration=datetime.timedelta(milliseconds=1_234),
            upstream_remote_address=core.Address(
                socket_address=core.SocketAddress(address="10.0.0.1", port_value=80)
            ),
            upstream_cluster="pool.p",
            response_flags=data_accesslog.ResponseFlags(downstream_connection_termination=True),
            metadata=core.Metadata(filter_metadata={"steersman": struct(ticket="t")}),
            upstream_request_attempt_count=2,
            access_log_type=data_accesslog.AccessLogType.DownstreamPeriodic,
        ),
        request=data_accesslog.HttpRequestProperties(path="/generate", request_id="r", request_body_bytes=9),
        response=data_accesslog.HttpResponseProperties(
            response_code=200, response_headers={"x-prompt-tokens": "7"}, response_code_details="via_upstream"
        ),
    )
    theirs = accesslog.StreamAccessLogsMessage(
        http_logs=accesslog.StreamAccessLogsMessageHttpAccessLogEntries(log_entry=[entry])
    )
    ours = access_log_pb2.StreamAccessLogsMessage.FromString(bytes(theirs))
    (record,) = ours.http_logs.log_entry
    common = record.common_properties
    assert common.upstream_remote_address.socket_address.port_value == 80
    assert common.response_flags.downstream_connection_termination
    assert common.duration.ToMilliseconds() == 1_234
    assert common.start_time.ToMicroseconds() % 1_000_000 == 6
    assert common.metadata.filter_metadata["steersman"]["ticket"] == "t"
    assert common.access_log_type == access_log_pb2.DOWNSTREAM_PERIODIC
    assert (record.response.response_code.value, record.request.path) == (200, "/generate")
    assert accesslog.StreamAccessLogsMessage.parse(ours.SerializeToString()) == theirs

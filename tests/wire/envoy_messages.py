"""What Envoy sends, as bytes; and what it would make of our answers."""

from __future__ import annotations

from typing import Any

from extproc._pb import access_log_pb2
from extproc._pb import ext_proc_pb2 as pb


def headers(
    method: str = "POST", path: str = "/v1/chat/completions", *extra: tuple[str, str], end: bool = False
) -> bytes:
    message = pb.ProcessingRequest()
    message.request_headers.end_of_stream = end
    for key, value in ((":method", method), (":path", path), *extra):
        header = message.request_headers.headers.headers.add()
        header.key, header.raw_value = key, value.encode("latin-1")
    return message.SerializeToString()


def body(data: bytes) -> bytes:
    message = pb.ProcessingRequest()
    message.request_body.body = data
    message.request_body.end_of_stream = True
    return message.SerializeToString()


def phase(kind: str) -> bytes:
    """An empty message of some phase."""
    message = pb.ProcessingRequest()
    getattr(message, kind).SetInParent()
    return message.SerializeToString()


def response(data: bytes) -> Any:
    return pb.ProcessingResponse.FromString(data)


def mutated(mutation: Any) -> dict[str, str]:
    return {option.header.key: option.header.raw_value.decode() for option in mutation.set_headers}


def metadata(answer: Any, namespace: str) -> dict[str, str]:
    fields = answer.dynamic_metadata.fields
    if namespace not in fields:
        return {}
    return {key: value.string_value for key, value in fields[namespace].struct_value.fields.items()}


def record() -> tuple[Any, Any]:
    """A StreamAccessLogsMessage and its one entry, to be filled."""
    message = access_log_pb2.StreamAccessLogsMessage()
    return message, message.http_logs.log_entry.add()

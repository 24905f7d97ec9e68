"""The records of an access log's message, also of one that cannot be read as a whole.

Owns the walk along protobuf's wire format that takes a message's records apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from google.protobuf.message import DecodeError

from extproc._pb import access_log_pb2 as pb
from extproc.wire.varint import varint

#: The numbers of StreamAccessLogsMessage.http_logs and of its log_entry.
HTTP_LOGS_FIELD, LOG_ENTRY_FIELD = 2, 1


def entries(data: bytes, failed: Callable[[Exception], None]) -> Iterator[pb.HttpAccessLogEntry]:
    """The records; `failed` is told of each that cannot be read. Raises DecodeError where there are none."""
    try:
        yield from pb.StreamAccessLogsMessage.FromString(data).http_logs.log_entry
        return
    except DecodeError:
        # One name that is not UTF-8 makes a whole message unreadable: its records are taken one by one.
        apart = [
            entry for logs in fields_of(data, HTTP_LOGS_FIELD) for entry in fields_of(logs, LOG_ENTRY_FIELD)
        ]
        if not apart:
            raise
    for each in apart:
        try:
            yield pb.HttpAccessLogEntry.FromString(each)
        except DecodeError as error:
            failed(error)


def fields_of(data: bytes, number: int) -> Iterator[bytes]:
    """The values of a message's field that has a length, as far as the message is one."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        kind, size = tag & 7, 0
        if kind == 0:
            _, at = varint(data, at)
        elif kind == 1:
            size = 8
        elif kind == 2:
            size, at = varint(data, at)
        elif kind == 5:
            size = 4
        else:
            return
        if at + size > len(data):
            return
        if kind == 2 and tag >> 3 == number:
            yield data[at : at + size]
        at += size

"""Access log records to outcomes.

Owns the reading of Envoy's record: who served, how it ended, when the first token came, how many
tokens there were and by whose count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from extproc._pb import access_log_pb2 as pb
from extproc.core.contract import (
    COMPLETION_TOKENS_KEY,
    DECISION_NAMESPACE,
    FIRST_CHUNK_KEY,
    GENERATED_TOKENS_HEADER,
    INDEX_KEY,
    OBSERVED_NAMESPACE,
    PROMPT_TOKENS_HEADER,
    PROMPT_TOKENS_KEY,
    REFUSED_KEY,
    TICKET_KEY,
    TRACE_KEY,
)
from extproc.core.outcome import End, Outcome
from extproc.wire import ticket

#: A count above this is a lie or a fault; it is read as unknown.
TOKENS_MAX = 100_000_000

#: Older Envoys say no type. An upstream's end is no request's end: a retry may follow.
_FINAL_TYPES = (pb.NOT_SET, pb.DOWNSTREAM_END)
_ENDED_BY_CLIENT = ("downstream_connection_termination", "downstream_remote_reset")
_ENDED_BY_FAULT = (
    "failed_local_healthcheck",
    "no_healthy_upstream",
    "upstream_request_timeout",
    "local_reset",
    "upstream_remote_reset",
    "upstream_connection_failure",
    "upstream_connection_termination",
    "upstream_overflow",
    "no_route_found",
    "upstream_retry_limit_exceeded",
    "stream_idle_timeout",
    "duration_timeout",
    "upstream_protocol_error",
    "no_cluster_found",
)


def read(data: bytes) -> Iterator[Outcome]:
    """Outcomes of one StreamAccessLogsMessage; records without a ticket of ours are passed over.

    Raises google.protobuf.message.DecodeError on garbage.
    """
    for entry in pb.StreamAccessLogsMessage.FromString(data).http_logs.log_entry:
        outcome = _outcome(entry)
        if outcome is not None:
            yield outcome


def _outcome(entry: pb.HttpAccessLogEntry) -> Outcome | None:
    common = entry.common_properties
    metadata = common.metadata.filter_metadata
    if DECISION_NAMESPACE not in metadata:
        return None
    fields = metadata[DECISION_NAMESPACE].fields
    if TICKET_KEY not in fields:
        return None
    reservation = ticket.read(fields[TICKET_KEY].string_value)
    if reservation is None:
        return None
    seen: Mapping[str, Any] = metadata[OBSERVED_NAMESPACE].fields if OBSERVED_NAMESPACE in metadata else {}
    headers = entry.response.response_headers
    status = entry.response.response_code.value
    upstream = common.upstream_remote_address.socket_address
    output = _count(seen, COMPLETION_TOKENS_KEY)
    if output is None:
        output = _header_count(headers, GENERATED_TOKENS_HEADER)
    if output is None:
        output = _count(seen, INDEX_KEY)
    prompt = _count(seen, PROMPT_TOKENS_KEY)
    if prompt is None:
        prompt = _header_count(headers, PROMPT_TOKENS_HEADER)
    refused = REFUSED_KEY in seen and seen[REFUSED_KEY].bool_value
    return Outcome(
        reservation=reservation,
        final=common.access_log_type in _FINAL_TYPES,
        status=status,
        end=_end(common.response_flags, status, refused=refused),
        served_by=_ip_port(upstream) if upstream.address else "",
        attempts=common.upstream_request_attempt_count,
        duration_ns=common.duration.ToNanoseconds(),
        # A non-streamed answer's first byte is its last as well, and a refusal's is no token.
        ttft_ns=_ttft_ns(common, seen) if reservation.stream and status == 200 and not refused else None,
        prompt_tokens=prompt,
        output_tokens=output,
        refused=refused,
        start_unix_ns=common.start_time.ToNanoseconds(),
        trace=fields[TRACE_KEY].string_value if TRACE_KEY in fields else "",
    )


def _end(flags: pb.ResponseFlags, status: int, *, refused: bool) -> End:
    if refused:
        # Whatever came after: a client mostly hangs up on it, and shall not pay for its prompt.
        return End.REFUSED
    if any(getattr(flags, name) for name in _ENDED_BY_CLIENT):
        return End.CLIENT_GONE
    if status >= 500 or status == 0 or any(getattr(flags, name) for name in _ENDED_BY_FAULT):
        return End.ERROR
    return End.REFUSED if status >= 400 else End.OK


def _ip_port(address: pb.SocketAddress) -> str:
    host = f"[{address.address}]" if ":" in address.address else address.address
    return f"{host}:{address.port_value}"


def _ttft_ns(common: pb.AccessLogCommon, seen: Mapping[str, Any]) -> int | None:
    first_us = _number(seen, FIRST_CHUNK_KEY)
    if first_us is None:
        return None
    # Whole microseconds first: the product would not fit a float's 53 bits.
    ttft_ns = int(first_us) * 1_000 - common.start_time.ToNanoseconds()
    # Envoy's two clocks are read apart; a stepped wall clock can turn the difference round.
    return ttft_ns if ttft_ns > 0 else None


def _number(seen: Mapping[str, Any], key: str) -> float | None:
    if key not in seen:
        return None
    value = seen[key]
    kind = value.WhichOneof("kind")
    if kind not in ("string_value", "number_value"):
        return None  # a JSON null is no zero
    try:
        number = float(getattr(value, kind))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _count(seen: Mapping[str, Any], key: str) -> int | None:
    return _bounded(_number(seen, key))


def _header_count(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name, "")
    return _bounded(float(text)) if text.isascii() and text.isdigit() else None


def _bounded(number: float | None) -> int | None:
    return int(number) if number is not None and 0 <= number <= TOKENS_MAX else None

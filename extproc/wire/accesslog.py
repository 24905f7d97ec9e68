"""Access log records to outcomes.

Owns the reading of Envoy's record: who served, how it ended, when the first token came, how many
tokens there were and by whose count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from extproc._pb import access_log_pb2 as pb
from extproc.core.contract import (
    CACHED_TOKENS_KEY,
    COMPLETION_TOKENS_KEY,
    DECISION_NAMESPACE,
    DONE_KEY,
    ERROR_KEY,
    EVENTS_KEY,
    FIRST_CHUNK_KEY,
    GENERATED_TOKENS_HEADER,
    GENERATED_TOKENS_KEY,
    INDEX_KEY,
    OBSERVED_NAMESPACE,
    PROMPT_TOKENS_HEADER,
    PROMPT_TOKENS_KEY,
    REFUSED_KEY,
    TICKET_KEY,
    TRACE_KEY,
)
from extproc.core.outcome import End, Outcome, Reservation
from extproc.wire import ticket
from extproc.wire.ended import ErrorOrigin, end_of, fault_of
from extproc.wire.records import entries
from extproc.wire.seal import Seal

#: A count above this is read as this: a lie or a fault in any case.
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


def _ignored(_: Exception) -> None:
    """Nobody is told."""


def read(
    data: bytes,
    seal: Seal,
    *,
    failed: Callable[[Exception], None] = _ignored,
    forged: Callable[[], None] = lambda: None,
) -> Iterator[Outcome]:
    """Outcomes of one StreamAccessLogsMessage; records without a ticket of ours are passed over.

    A record that cannot be read is lost alone, and `failed` is told why; `forged` hears of each whose ticket
    nobody sealed that we know. Raises google.protobuf.message.DecodeError on what holds no records at all.
    """
    for entry in entries(data, failed):
        try:
            sealed = _ticket(entry)
            if sealed is None:
                continue
            reservation = ticket.read(sealed, seal)
            if reservation is None:
                forged()
                continue
            outcome = _outcome(entry, reservation)
        except Exception as error:  # noqa: BLE001 (a bad record, such as a time of no calendar, is lost alone)
            failed(error)
            continue
        yield outcome


def _ticket(entry: pb.HttpAccessLogEntry) -> str | None:
    metadata = entry.common_properties.metadata.filter_metadata
    if DECISION_NAMESPACE not in metadata or TICKET_KEY not in metadata[DECISION_NAMESPACE].fields:
        return None
    return str(metadata[DECISION_NAMESPACE].fields[TICKET_KEY].string_value)


def _outcome(entry: pb.HttpAccessLogEntry, reservation: Reservation) -> Outcome:
    common = entry.common_properties
    metadata = common.metadata.filter_metadata
    fields = metadata[DECISION_NAMESPACE].fields
    seen: Mapping[str, Any] = metadata[OBSERVED_NAMESPACE].fields if OBSERVED_NAMESPACE in metadata else {}
    headers = entry.response.response_headers
    status = entry.response.response_code.value
    upstream = common.upstream_remote_address.socket_address
    output = _count(seen, COMPLETION_TOKENS_KEY)
    if output is None:
        output = _best_of(seen, headers, reservation.permits)
    if output is None:
        output = _count(seen, INDEX_KEY)
    prompt = _count(seen, PROMPT_TOKENS_KEY)
    if prompt is None:
        prompt = _header_count(headers, PROMPT_TOKENS_HEADER)
    events = _count(seen, EVENTS_KEY)
    if events is None and FIRST_CHUNK_KEY in seen and _streams(headers):
        events = 0  # counted, and there were none
    fault = ErrorOrigin.FULL if _true(seen, REFUSED_KEY) else fault_of(_text(seen, ERROR_KEY))
    output_seen = status == 200 and (fault is ErrorOrigin.NONE or bool(events))
    return Outcome(
        reservation=reservation,
        final=common.access_log_type in _FINAL_TYPES,
        status=status,
        end=_end(common.response_flags, status, fault, done=_true(seen, DONE_KEY)),
        served_by=_ip_port(upstream) if upstream.address else "",
        attempts=common.upstream_request_attempt_count,
        duration_ns=common.duration.ToNanoseconds(),
        # A non-streamed answer's first byte is its last as well, and an error's is no token.
        ttft_ns=_ttft_ns(common, seen) if reservation.stream and output_seen else None,
        prompt_tokens=prompt,
        output_tokens=output,
        cached_tokens=_count(seen, CACHED_TOKENS_KEY),
        refused=fault is ErrorOrigin.FULL,
        events=events,
        request_bytes=entry.request.request_body_bytes,
        response_bytes=entry.response.response_body_bytes if status == 200 else 0,
        start_unix_ns=common.start_time.ToNanoseconds(),
        trace=fields[TRACE_KEY].string_value if TRACE_KEY in fields else "",
    )


def _end(flags: pb.ResponseFlags, status: int, fault: ErrorOrigin, *, done: bool) -> End:
    # Who has seen a stream's last event may close at once, and has left nothing.
    gone = not done and any(getattr(flags, name) for name in _ENDED_BY_CLIENT)
    return end_of(status, fault, gone=gone, broke=any(getattr(flags, name) for name in _ENDED_BY_FAULT))


def _best_of(seen: Mapping[str, Any], headers: Mapping[str, str], sequences: int) -> int | None:
    """TGI's own counts are of the best sequence alone; the others are taken to be as long."""
    best = _count(seen, GENERATED_TOKENS_KEY)
    if best is None:
        best = _header_count(headers, GENERATED_TOKENS_HEADER)
    return None if best is None else best * max(1, sequences)


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


def _streams(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").lower().startswith("text/event-stream")


def _text(seen: Mapping[str, Any], key: str) -> str:
    return str(seen[key].string_value) if key in seen else ""


def _true(seen: Mapping[str, Any], key: str) -> bool:
    return key in seen and bool(seen[key].bool_value)


def _count(seen: Mapping[str, Any], key: str) -> int | None:
    return _bounded(_number(seen, key))


def _header_count(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name, "")
    return _bounded(float(text)) if text.isascii() and text.isdigit() else None


def _bounded(number: float | None) -> int | None:
    """None for what is no count; one that is too large is for the meter to judge."""
    return int(min(number, TOKENS_MAX)) if number is not None and number >= 0 else None

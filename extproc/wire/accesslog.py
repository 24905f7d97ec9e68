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
    CACHE_READ_TOKENS_KEY,
    CACHE_WRITTEN_TOKENS_KEY,
    CACHED_TOKENS_KEY,
    COMPLETION_TOKENS_KEY,
    DECISION_NAMESPACE,
    DONE_KEY,
    ERROR_KEY,
    EVENTS_KEY,
    FAILED_HOME_KEY,
    FAILED_THERE_KEY,
    FIRST_CHUNK_KEY,
    GENERATED_TOKENS_HEADER,
    GENERATED_TOKENS_KEY,
    INDEX_KEY,
    KEY_REFUSED_KEY,
    NO_ANSWER,
    OBSERVED_NAMESPACE,
    OWN_INPUT_KEY,
    OWN_OUTPUT_KEY,
    PROMPT_TOKENS_HEADER,
    PROMPT_TOKENS_KEY,
    PROVIDER_KEY,
    PROVIDER_THERE_KEY,
    REFUSED_KEY,
    RESPONSE_ID_KEY,
    TICKET_KEY,
    TOTAL_TOKENS_KEY,
    TRACE_KEY,
)
from extproc.core.outcome import Outcome, Reservation
from extproc.core.request import RouteKind
from extproc.wire import ticket
from extproc.wire.ended import ErrorOrigin, came_to_nothing, end_of, fault_of
from extproc.wire.records import entries
from extproc.wire.seal import Seal

#: A count above this is read as this: a lie or a fault in any case.
TOKENS_MAX = 100_000_000

#: What a filter says, and the kinds of protobuf's Value that it may be.
Seen = dict[str, str | float | bool]
_KINDS = ("string_value", "number_value", "bool_value")

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
            decided = _decided(entry)
            if decided is None:
                continue
            reservation = ticket.read(decided[TICKET_KEY].string_value, seal)
            if reservation is None:
                forged()
                continue
            outcome = _outcome(entry, reservation, decided)
        except Exception as error:  # noqa: BLE001 (a bad record, such as a time of no calendar, is lost alone)
            failed(error)
            continue
        yield outcome


def _decided(entry: pb.HttpAccessLogEntry) -> Mapping[str, Any] | None:
    """What rode with the request; None where no ticket of ours did."""
    metadata = entry.common_properties.metadata.filter_metadata
    if DECISION_NAMESPACE not in metadata:
        return None
    fields = metadata[DECISION_NAMESPACE].fields
    return fields if TICKET_KEY in fields else None


def _seen(common: pb.AccessLogCommon) -> Seen:
    """What Envoy's filters saw of the answer, as plain values: each is looked at more than once."""
    metadata = common.metadata.filter_metadata
    if OBSERVED_NAMESPACE not in metadata:
        return {}
    found: Seen = {}
    for key, value in metadata[OBSERVED_NAMESPACE].fields.items():
        kind = value.WhichOneof("kind")
        if kind in _KINDS:
            found[key] = getattr(value, kind)
    return found


def _outcome(entry: pb.HttpAccessLogEntry, reservation: Reservation, decided: Mapping[str, Any]) -> Outcome:
    common, response = entry.common_properties, entry.response
    seen, headers = _seen(common), response.response_headers
    status = response.response_code.value
    upstream = common.upstream_remote_address.socket_address
    start_ns = common.start_time.ToNanoseconds()
    own = reservation.route == RouteKind.OTHER.value
    output = _count(seen, OWN_OUTPUT_KEY) if own else None
    if output is None:
        output = _count(seen, COMPLETION_TOKENS_KEY)
    if output is None:
        output = _best_of(seen, headers, reservation.permits)
    if output is None:
        output = _count(seen, INDEX_KEY)
    prompt = _count(seen, OWN_INPUT_KEY) if own else None
    if prompt is None:
        prompt = _count(seen, PROMPT_TOKENS_KEY)
    if prompt is None:
        prompt = _header_count(headers, PROMPT_TOKENS_HEADER)
    if prompt is None and reservation.max_new_tokens == 0:
        prompt = _count(seen, TOTAL_TOKENS_KEY)
    cached, read = _count(seen, CACHED_TOKENS_KEY), _count(seen, CACHE_READ_TOKENS_KEY)
    if prompt is not None and (read is not None or CACHE_WRITTEN_TOKENS_KEY in seen):
        # Anthropic's dialect says three parts of a prompt.
        prompt = min(TOKENS_MAX, prompt + (read or 0) + (_count(seen, CACHE_WRITTEN_TOKENS_KEY) or 0))
        cached = read
    events = _count(seen, EVENTS_KEY)
    if events is None and FIRST_CHUNK_KEY in seen and _streams(headers):
        events = 0  # counted, and there were none
    said = _text(seen, ERROR_KEY)
    if own and said.startswith(NO_ANSWER):
        said = ""  # what its answers look like is theirs to say
    fault = ErrorOrigin.FULL if _true(seen, REFUSED_KEY) else fault_of(said)
    failed_there = _text(seen, FAILED_THERE_KEY)
    flags = {field.name for field, _ in common.response_flags.ListFields()}
    final = common.access_log_type in _FINAL_TYPES
    size = response.response_body_bytes
    empty = final and FIRST_CHUNK_KEY not in seen and came_to_nothing(status, reservation, size=size)
    output_seen = status == 200 and (fault is ErrorOrigin.NONE or bool(events))
    return Outcome(
        reservation=reservation,
        final=final,
        status=status,
        end=end_of(
            status,
            fault,
            # Who has seen a stream's last event may close at once, and has left nothing.
            gone=not _true(seen, DONE_KEY) and not flags.isdisjoint(_ENDED_BY_CLIENT),
            broke=not flags.isdisjoint(_ENDED_BY_FAULT) or empty,
        ),
        served_by=_ip_port(upstream),
        attempts=common.upstream_request_attempt_count,
        duration_ns=common.duration.ToNanoseconds(),
        # A non-streamed answer's first byte is its last as well, and an error's is no token.
        ttft_ns=_ttft_ns(start_ns, seen) if reservation.stream and output_seen else None,
        prompt_tokens=prompt,
        output_tokens=output,
        cached_tokens=cached,
        response_id=_text(seen, RESPONSE_ID_KEY),
        provider=_text(seen, PROVIDER_THERE_KEY if failed_there else PROVIDER_KEY),
        failed_there=failed_there,
        failed_home=_text(seen, FAILED_HOME_KEY),
        refused=fault is ErrorOrigin.FULL,
        error_said=fault is ErrorOrigin.ENGINE,
        key_refused=_true(seen, KEY_REFUSED_KEY),
        events=events,
        request_bytes=entry.request.request_body_bytes,
        response_bytes=size if status == 200 else 0,
        start_unix_ns=start_ns,
        trace=decided[TRACE_KEY].string_value if TRACE_KEY in decided else "",
    )


def _best_of(seen: Seen, headers: Mapping[str, str], sequences: int) -> int | None:
    """TGI's own counts are of the best sequence alone; the others are taken to be as long."""
    best = _count(seen, GENERATED_TOKENS_KEY)
    if best is None:
        best = _header_count(headers, GENERATED_TOKENS_HEADER)
    return None if best is None else best * max(1, sequences)


def _ip_port(address: pb.SocketAddress) -> str:
    host = address.address
    if not host:
        return ""
    return f"[{host}]:{address.port_value}" if ":" in host else f"{host}:{address.port_value}"


def _ttft_ns(start_ns: int, seen: Seen) -> int | None:
    first_us = _number(seen, FIRST_CHUNK_KEY)
    if first_us is None:
        return None
    # Whole microseconds first: the product would not fit a float's 53 bits.
    ttft_ns = int(first_us) * 1_000 - start_ns
    # Envoy's two clocks are read apart; a stepped wall clock can turn the difference round.
    return ttft_ns if ttft_ns > 0 else None


def _number(seen: Seen, key: str) -> float | None:
    value = seen.get(key)
    if value is None or isinstance(value, bool):
        return None  # a JSON null is no zero
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _streams(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").lower().startswith("text/event-stream")


def _text(seen: Seen, key: str) -> str:
    value = seen.get(key)
    return value if isinstance(value, str) else ""


def _true(seen: Seen, key: str) -> bool:
    return seen.get(key) is True


def _count(seen: Seen, key: str) -> int | None:
    return _bounded(_number(seen, key))


def _header_count(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name, "")
    return _bounded(float(text)) if text.isascii() and text.isdigit() else None


def _bounded(number: float | None) -> int | None:
    """None for what is no count; one that is too large is for the meter to judge."""
    return int(min(number, TOKENS_MAX)) if number is not None and number >= 0 else None

"""The ticket: a reservation in one string that rides with the request as dynamic metadata.

It comes back in the access log record, so that any process can settle the request from the record
alone. Clients can neither read nor write dynamic metadata; and since others may reach the port that takes
records, a ticket is sealed (wire/seal.py).
"""

from __future__ import annotations

import msgspec

from extproc.core.outcome import Reservation
from extproc.wire.seal import TICKET, Seal


class _Ticket(msgspec.Struct, array_like=True, frozen=True):
    # New fields go at the end, with defaults: tickets of the previous version are still in flight
    # when this one starts.
    id: str
    tenant: str
    model: str
    pool: str
    address: str
    input_tokens: int
    output_tokens: int
    permits: int
    prompt_bytes: int
    stream: bool
    key: str = ""
    service_class: str = "standard"
    max_new_tokens: int | None = None
    cached_tokens: int = 0
    ttft_ms: float = 0.0
    tpot_ms: float = 0.0
    strategy: str = ""
    arm: str = ""
    held_ms: float = 0.0
    unit: int = 0
    route: str = ""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Ticket)


def write(reservation: Reservation, seal: Seal) -> str:
    """A reservation as a ticket."""
    return seal.sealed(_text(reservation), TICKET)


def _text(r: Reservation) -> str:
    return _encoder.encode(
        (
            r.id,
            r.tenant,
            r.model,
            r.pool,
            r.address,
            r.input_tokens,
            r.output_tokens,
            r.permits,
            r.prompt_bytes,
            r.stream,
            r.key,
            r.service_class,
            r.max_new_tokens,
            r.cached_tokens,
            r.ttft_ms,
            r.tpot_ms,
            r.strategy,
            r.arm,
            r.held_ms,
            r.unit,
            r.route,
        )
    ).decode()


def read(sealed: str, seal: Seal) -> Reservation | None:
    """The reservation of a ticket; None when the text is no ticket of ours."""
    text = seal.opened(sealed, TICKET)
    if text is None:
        return None
    try:
        t = _decoder.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return Reservation(
        id=t.id,
        tenant=t.tenant,
        model=t.model,
        pool=t.pool,
        address=t.address,
        input_tokens=max(0, t.input_tokens),
        output_tokens=max(0, t.output_tokens),
        permits=max(0, t.permits),
        prompt_bytes=max(0, t.prompt_bytes),
        stream=t.stream,
        key=t.key,
        service_class=t.service_class,
        max_new_tokens=None if t.max_new_tokens is None else max(0, t.max_new_tokens),
        cached_tokens=max(0, t.cached_tokens),
        ttft_ms=max(0.0, t.ttft_ms),
        tpot_ms=max(0.0, t.tpot_ms),
        strategy=t.strategy,
        arm=t.arm,
        held_ms=max(0.0, t.held_ms),
        unit=t.unit,
        route=t.route,
    )

"""The ticket: a reservation in one string that rides with the request as dynamic metadata.

It comes back in the access log record, so that any process can settle the request from the record
alone. Clients can neither read nor write dynamic metadata.
"""

from __future__ import annotations

import msgspec

from extproc.core.outcome import Reservation


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


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Ticket)


def write(reservation: Reservation) -> str:
    """A reservation as a ticket."""
    r = reservation
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
        )
    ).decode()


def read(text: str) -> Reservation | None:
    """The reservation of a ticket; None when the text is no ticket of ours."""
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
    )

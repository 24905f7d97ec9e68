"""The ticket: a reservation in one string that rides with the request as dynamic metadata.

It comes back in the access log record, so that any process can settle the request from the record
alone. Clients can neither read nor write dynamic metadata; and since others may reach the port that takes
records, a ticket is sealed (wire/seal.py). What stands in it, and in which order, are `Reservation`'s fields.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Final

import msgspec
from msgspec.structs import replace

from extproc.core.outcome import Reservation
from extproc.wire.seal import TICKET, Seal

#: What counts something: less than none of it is none.
_COUNTS: Final = (
    "input_tokens",
    "output_tokens",
    "permits",
    "prompt_bytes",
    "max_new_tokens",
    "cached_tokens",
    "ttft_ms",
    "tpot_ms",
    "held_ms",
)

#: Of each ticket's at once; of these none may be None.
_counts = attrgetter(*(name for name in _COUNTS if name != "max_new_tokens"))
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Reservation)


def write(reservation: Reservation, seal: Seal) -> str:
    """A reservation as a ticket."""
    return seal.sealed(_encoder.encode(reservation).decode(), TICKET)


def read(sealed: str, seal: Seal) -> Reservation | None:
    """The reservation of a ticket; None when the text is no ticket of ours."""
    text = seal.opened(sealed, TICKET)
    if text is None:
        return None
    try:
        reservation = _decoder.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    if min(_counts(reservation)) >= 0 and (reservation.max_new_tokens or 0) >= 0:
        return reservation
    return replace(reservation, **{name: 0 for name in _COUNTS if (getattr(reservation, name) or 0) < 0})

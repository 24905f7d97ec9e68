"""A client's body with another model's name in it; everything else stays to the letter."""

from __future__ import annotations

import msgspec

from extproc.core.errors import Error
from extproc.core.outcome import Reject

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def renamed(body: bytes, model: str) -> bytes:
    """A JSON object's bytes with `model` as its model; values are not read, and of a repeated name the last
    counts, as for whoever read the body before. Raises msgspec.DecodeError on what is no object.
    """
    fields = _fields.decode(body)
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)


def not_utf8(body: bytes) -> Reject | None:
    """What to say of a body that is not; None where it is."""
    if body.isascii():
        return None
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return Error.INVALID_REQUEST.reject(f"the body is not UTF-8: {error.reason}")
    return None

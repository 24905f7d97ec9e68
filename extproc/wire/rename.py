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


def second_model(body: bytes, model: str) -> str:
    """What Envoy writes `model` in place of, in a body that `renamed` or usage.with_usage has written: where
    its model stands in bytes, how many it has, and the new one as JSON; blanks between.

    Raises ValueError on a body that was written otherwise.
    """
    fields, at = _fields.decode(body), 1
    for name, value in fields.items():
        at += len(msgspec.json.encode(name)) + 1
        told = bytes(value)
        if name == "model" and body[at : at + len(told)] == told:
            return f"{at} {len(told)} {msgspec.json.encode(model).decode()}"
        at += len(told) + 1
    raise ValueError("no model stands where it was written")


def not_utf8(body: bytes) -> Reject | None:
    """What to say of a body that is not; None where it is."""
    if body.isascii():
        return None
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return Error.INVALID_REQUEST.reject(f"the body is not UTF-8: {error.reason}")
    return None

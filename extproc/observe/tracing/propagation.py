"""What of a trace rides with the request: whoever settles it ends its span (law: the ticket rides along).

Owns the form: a short JSON list in the decision's dynamic metadata, beside the ticket. It holds ids and
names, never a prompt; its size is bounded by the names in the configuration and by context.py's bound.
"""

from __future__ import annotations

import msgspec

from extproc.core.request import RouteKind

#: Characters of the conversation's name that ride along.
USER_CHARACTERS_MAX = 256


class Carried(msgspec.Struct, array_like=True, frozen=True):
    """Of one sampled request: its trace, its parent's and its own span's id in hex; what it asked for.

    New fields go at the end, with defaults: requests of the previous version are still in flight when this
    one starts.
    """

    trace: str
    parent: str
    span: str
    kind: str = ""
    asked: str = ""
    user: str = ""
    state: str = ""

    @property
    def trace_id(self) -> int:
        """As a number."""
        return int(self.trace, 16)

    @property
    def parent_id(self) -> int:
        """As a number; 0 for the first span of a trace."""
        return int(self.parent, 16)

    @property
    def span_id(self) -> int:
        """As a number."""
        return int(self.span, 16)

    @property
    def route_kind(self) -> RouteKind | None:
        """What was asked for; None where it is not known here."""
        return RouteKind(self.kind) if self.kind in RouteKind._value2member_map_ else None

    @property
    def prompt(self) -> tuple[tuple[str, str], ...]:
        """Never rides along."""
        return ()


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Carried)


def write(
    trace_id: int, parent_id: int, span_id: int, *, kind: RouteKind | None, asked: str, user: str, state: str
) -> str:
    """The text that rides along."""
    trace, parent, span = f"{trace_id:032x}", f"{parent_id:016x}", f"{span_id:016x}"
    name = kind.value if kind is not None else ""
    return _encoder.encode((trace, parent, span, name, asked, user[:USER_CHARACTERS_MAX], state)).decode()


def read(text: str) -> Carried | None:
    """What rode along; None where the text is none of ours."""
    try:
        carried = _decoder.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return (
        carried
        if _is_id(carried.trace, 32) and _is_id(carried.span, 16) and _hex(carried.parent, 16)
        else None
    )


def _hex(text: str, digits: int) -> bool:
    return len(text) == digits and all(each in "0123456789abcdef" for each in text)


def _is_id(text: str, digits: int) -> bool:
    return _hex(text, digits) and text != "0" * digits

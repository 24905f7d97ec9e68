"""What services say to each other, as bytes: shapes, bounds, encoding and the first thing that is wrong.

Owns the wire format. A frame is the sender's id, a zero byte and one MessagePack message, so that a
service knows its own echo unread. Every value of a load is absolute, never an increment: a message that
is lost, doubled or late can make knowledge old, but never wrong for longer than the next full one.
A change of format changes `VERSION`, which is part of the channel's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, TypeAlias

import msgspec

from extproc.core.turns import TurnRow

VERSION = 3

#: A peer's endpoints; above it the peer is not believed, and our own further ones are not told.
ENDPOINTS_MAX = 10_000
#: One frame, larger than any full load of `ENDPOINTS_MAX` endpoints and than any report.
MESSAGE_BYTES_MAX = 2 * 1024 * 1024
#: What a service may say of one endpoint.
REQUESTS_MAX, PERMITS_MAX, TOKENS_MAX = 1_000_000, 1_000_000, 1_000_000_000
#: Service classes, from 0; (tenant, level) of all pools in one message.
LEVELS_MAX, NEEDS_MAX, WAITED_MS_MAX = 15, 2_000, 86_400_000
#: Pools of which a service tells how many it refused, and how many each.
REFUSED_POOLS_MAX, REFUSED_MAX = 1_000, 2**53
#: A pool's name, an endpoint's address.
TEXT_CHARACTERS_MAX = 128
#: An agent's report: what its server takes at most.
REPORT_BYTES_MAX = 512 * 1024
NODE_CHARACTERS_MAX = 253
#: A message costs its receiver more than a report in it does, so reports travel together.
REPORTS_PER_FRAME_MAX = 64

#: (pool, address) and (requests, permits, tokens).
Key: TypeAlias = tuple[str, str]
Load: TypeAlias = tuple[int, int, int]
NO_LOAD: Load = (0, 0, 0)
Needs: TypeAlias = dict[str, dict[str, list[tuple[int, int, int, int]]]]

_SENDER = re.compile(r"[!-~]{1,128}")
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=TEXT_CHARACTERS_MAX)]
_Loads = dict[
    _Text,
    dict[
        _Text,
        tuple[
            Annotated[int, msgspec.Meta(ge=0, le=REQUESTS_MAX)],
            Annotated[int, msgspec.Meta(ge=0, le=PERMITS_MAX)],
            Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)],
        ],
    ],
]
_Report = tuple[
    Annotated[str, msgspec.Meta(min_length=1, max_length=NODE_CHARACTERS_MAX)],
    Annotated[bytes, msgspec.Meta(max_length=REPORT_BYTES_MAX)],
]
#: By pool and tenant: (level, held, running, milliseconds that the oldest has waited).
_Needs = dict[
    _Text,
    dict[
        _Text,
        Annotated[
            list[
                tuple[
                    Annotated[int, msgspec.Meta(ge=0, le=LEVELS_MAX)],
                    Annotated[int, msgspec.Meta(ge=0, le=REQUESTS_MAX)],
                    Annotated[int, msgspec.Meta(ge=0, le=REQUESTS_MAX)],
                    Annotated[int, msgspec.Meta(ge=0, le=WAITED_MS_MAX)],
                ]
            ],
            msgspec.Meta(max_length=LEVELS_MAX + 1),
        ],
    ],
]
#: By pool: requests that found no room, since the sender began.
_Refused = Annotated[
    dict[_Text, Annotated[int, msgspec.Meta(ge=0, le=REFUSED_MAX)]],
    msgspec.Meta(max_length=REFUSED_POOLS_MAX),
]
_Sequence = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]


class FullLoads(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag="full"):
    """All that a service has in flight, by pool and address; what is not named is nothing.

    `needs` is who waits and runs, in pools that somebody waits for; `refused` how many found no room since
    the service began, of pools that scale. Both are always whole.
    """

    sequence: _Sequence
    loads: _Loads
    needs: _Needs = {}
    refused: _Refused = {}


class Delta(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag="delta"):
    """What is different from the message before; zeros where an endpoint carries nothing any more."""

    sequence: _Sequence
    loads: _Loads
    needs: _Needs = {}
    refused: _Refused = {}


class Bye(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag="bye"):
    """The service ends and its load with it."""

    sequence: _Sequence


class Hello(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag="hello"):
    """The service has missed something: would all say everything once."""


class Reports(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag="reports"):
    """Nodes' telemetry reports as their agents sent them, from the service that proved who they were."""

    reports: Annotated[list[_Report], msgspec.Meta(max_length=REPORTS_PER_FRAME_MAX)]


Message: TypeAlias = FullLoads | Delta | Bye | Hello | Reports

_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_encoder = msgspec.msgpack.Encoder()


class MalformedError(ValueError):
    """A frame that no service of this version sends; `str()` is the code that is counted."""


def is_sender(text: str) -> bool:
    """Whether a text can be a service's id: 1 to 128 visible ASCII characters."""
    return _SENDER.fullmatch(text) is not None


def prefix(sender: str) -> bytes:
    """What every frame of a sender begins with."""
    return sender.encode("ascii") + b"\0"


def encode(sender: str, message: Message) -> bytes:
    """The frame of a message."""
    return prefix(sender) + _encoder.encode(message)


def decode(frame: bytes) -> tuple[str, Message]:
    """The sender and the message; raises MalformedError."""
    if len(frame) > MESSAGE_BYTES_MAX:
        raise MalformedError("too_long")
    head, zero, body = frame.partition(b"\0")
    sender = head.decode("ascii", "replace")
    if not zero or not is_sender(sender):
        raise MalformedError("no_sender")
    try:
        message = _decoder.decode(body)
    # UnicodeDecodeError is a ValueError that msgspec lets through.
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise MalformedError("malformed") from error
    if isinstance(message, FullLoads | Delta) and sum(map(len, message.loads.values())) > ENDPOINTS_MAX:
        raise MalformedError("too_many_endpoints")
    if isinstance(message, FullLoads | Delta) and sum(map(len, message.needs.values())) > NEEDS_MAX:
        raise MalformedError("too_many_needs")
    return sender, message


def needs_by_pool(needs: Mapping[str, Iterable[TurnRow]]) -> Needs:
    """Needs as they travel; above `NEEDS_MAX` those with most waiting and running."""
    rows = [(pool, row) for pool, some in needs.items() for row in some]
    if len(rows) > NEEDS_MAX:
        rows = sorted(rows, key=lambda each: each[1].held + each[1].running)[-NEEDS_MAX:]
    grouped: Needs = {}
    for pool, row in rows:
        held, running = min(row.held, REQUESTS_MAX), min(row.running, REQUESTS_MAX)
        figures = (min(row.level, LEVELS_MAX), held, running, min(row.waited_ms, WAITED_MS_MAX))
        grouped.setdefault(pool, {}).setdefault(row.tenant, []).append(figures)
    return grouped


def by_pool(loads: Iterable[tuple[Key, Load]]) -> dict[str, dict[str, Load]]:
    """Loads as they travel: each within the bounds that the others will hold us to."""
    grouped: dict[str, dict[str, Load]] = {}
    for (pool, address), load in loads:
        requests, permits, tokens = load
        if not (0 <= requests <= REQUESTS_MAX and 0 <= permits <= PERMITS_MAX and 0 <= tokens <= TOKENS_MAX):
            load = (
                min(max(requests, 0), REQUESTS_MAX),
                min(max(permits, 0), PERMITS_MAX),
                min(max(tokens, 0), TOKENS_MAX),
            )
        grouped.setdefault(pool, {})[address] = load
    return grouped

"""The states of a stream, as a table: what each becomes by what is said next, and what it undoes.

HEADERS ── BODY ─┬─ ASKING ─┬─ HELD ── ROUTED ── DONE
                 ├──────────┴──────────┘
                 └─ LOOKING, JOINED (back to BODY)
and from each of the first four, by an answer of ours: DONE
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from extproc.core.cachekeys import AskAnswer
from extproc.core.outcome import Hold, LocalAnswer, Reject, Routed
from extproc.core.scheduler import AskQuota
from extproc.wire.codec import Headers
from extproc.wire.processor import Processor


class Over:
    """Nothing more is decided on this stream: its decision went out whole, or its body comes on another."""


class Joining:
    """It waits for the answer of an equal request."""


@dataclass(frozen=True, slots=True, eq=False)
class ExchangeState:
    """How far a stream is; what it becomes by what is said next; how what it stands for is undone."""

    name: str
    then: Mapping[type, ExchangeState] = field(default_factory=dict, repr=False)
    undo: Callable[[Processor, str], None] | None = None


# From the last to the first. What is not in a row is a fault of ours, and refused as any.
DONE: Final = ExchangeState("done")
_ANSWERED: Final[dict[type, ExchangeState]] = {LocalAnswer: DONE, Reject: DONE}
#: Decided, and not yet delivered.
ROUTED: Final = ExchangeState("routed", {Over: DONE}, Processor.undo)
#: It waits for a replica.
HELD: Final = ExchangeState("held", {Routed: ROUTED, **_ANSWERED}, Processor.gave_up)
#: The quota's shared store is asked.
ASKING: Final = ExchangeState("asking", {Hold: HELD, Routed: ROUTED, **_ANSWERED}, Processor.forgo_quota)
#: It waits for the answer of an equal request; then it is decided on as when its body came.
JOINED: Final = ExchangeState("joined", {}, Processor.left_flight)
#: The store of answers is asked; then it is decided on as when its body came.
LOOKING: Final = ExchangeState("looking")
#: The body may come.
BODY: Final = ExchangeState(
    "body",
    {AskAnswer: LOOKING, AskQuota: ASKING, Hold: HELD, Routed: ROUTED, Joining: JOINED, **_ANSWERED},
)
HEADERS: Final = ExchangeState("headers", {Headers: BODY, Over: DONE, **_ANSWERED})

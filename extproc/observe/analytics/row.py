"""What is known of the requests of one key in one span of time: whole numbers and sketches, which add up.

Owns the figures, their units and how they are written. Knows nothing of requests (fold.py does).
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from extproc.core.series import Sketch

#: What those beyond a bound are summed up as; whose requests nobody knows.
OTHER, UNKNOWN = "(other)", "(unknown)"
#: Names kept in a row's tables; those beyond are summed up as OTHER.
NAMES_MAX = 64


class RowKey(NamedTuple):
    """Whose requests, of what pool and model, placed by what; "" where a request did not come so far."""

    tenant: str
    pool: str = ""
    model: str = ""
    strategy: str = ""
    #: An experiment's and its arm's name, EXPERIMENT/ARM.
    arm: str = ""
    #: Where its client is; "" where nothing says.
    place: str = ""

    def other(self) -> RowKey:
        """The key of the tenants that have no row of their own."""
        return self._replace(tenant=OTHER)


#: When even those are too many.
ALL_OTHER = RowKey(*[OTHER] * len(RowKey._fields))


class AnalyticsRow(msgspec.Struct, array_like=True, gc=False):
    """Figures of one key in one span.

    A request is counted once, when it ends: `ok`, `refused` and `error` as the engine answered, `client_gone`
    in the middle, `expired` when its end never came; `rejected` by us, `left` while it waited. Tokens, GPU
    time (microseconds) and money (billionths of the currency) are what was charged.
    """

    ok: int = 0
    refused: int = 0
    error: int = 0
    client_gone: int = 0
    expired: int = 0
    rejected: int = 0
    left: int = 0
    slo_met: int = 0
    slo_missed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    gpu_us: int = 0
    cost_nano: int = 0
    codes: dict[str, int] = {}
    families: dict[str, int] = {}
    ttft_ms: Sketch = msgspec.field(default_factory=Sketch)
    tpot_ms: Sketch = msgspec.field(default_factory=Sketch)
    total_ms: Sketch = msgspec.field(default_factory=Sketch)
    held_ms: Sketch = msgspec.field(default_factory=Sketch)
    prompt_tokens: Sketch = msgspec.field(default_factory=Sketch)
    answer_tokens: Sketch = msgspec.field(default_factory=Sketch)

    @property
    def served(self) -> int:
        """Requests that were sent to an endpoint."""
        return self.ok + self.refused + self.error + self.client_gone + self.expired

    @property
    def requests(self) -> int:
        """All requests."""
        return self.served + self.rejected + self.left

    def merge(self, other: AnalyticsRow) -> None:
        """Take another's figures; in any order the same."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in TABLES:
            mine: dict[str, int] = getattr(self, name)
            for each, count in getattr(other, name).items():
                count_in(mine, each, count)
        for name in SKETCHES:
            getattr(self, name).merge(getattr(other, name))

    def encoded(self) -> bytes:
        """As it is kept."""
        return _ENCODER.encode(self)


def decoded(data: bytes) -> AnalyticsRow:
    """A row that was kept. Raises msgspec.MsgspecError for anything else."""
    return _DECODER.decode(data)


def count_in(table: dict[str, int], name: str, count: int) -> None:
    """Count under a name, or as OTHER where there are NAMES_MAX others."""
    if name not in table and len(table) >= NAMES_MAX:
        name = OTHER
    table[name] = table.get(name, 0) + count


TABLES = ("codes", "families")
SKETCHES = ("ttft_ms", "tpot_ms", "total_ms", "held_ms", "prompt_tokens", "answer_tokens")
COUNTS = tuple(name for name in AnalyticsRow.__struct_fields__ if name not in TABLES + SKETCHES)

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(AnalyticsRow)

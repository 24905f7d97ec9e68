"""What became of each request, and the bounds that it is judged by.

Owns the rows that a simulation hands in. Knows no strategy and no figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from extproc.core.slo import ClassSpec
from extproc.sim.arrival import Arrival

OUTCOMES: Final = ("ok", "shed", "refused", "failed")


@dataclass(frozen=True, slots=True)
class Served:
    """One request's end. Times count from the start in nanoseconds; −1 where it did not come so far.

    "shed" is our 429, "refused" a replica's own, "failed" an error, a timeout or a broken stream.
    `cached_tokens` of the prompt were found in the replica's prefix cache. `expected_ms` is the first token
    that was predicted at dispatch, 0 where none was. `while_idle`: it was shed while a replica that would
    have taken it had, in truth, nothing to do; `while_room`: while one would have begun its prefill at once.
    """

    arrival: Arrival
    outcome: str
    endpoint: str
    decided_ns: int
    first_ns: int
    end_ns: int
    cached_tokens: int
    service_class: str = "standard"
    expected_ms: float = 0.0
    while_idle: bool = False
    while_room: bool = False


#: What requests are judged by: one class's targets, or each class's own by name.
Slo = ClassSpec | Mapping[str, ClassSpec]
SLO_8B: Final = ClassSpec()
SLO_70B: Final = ClassSpec(ttft_ns=2_000_000_000)


def met(served: Served, slo: Slo) -> bool:
    """Answered in full, and as `ClassSpec.attained` says."""
    spec = slo if isinstance(slo, ClassSpec) else slo[served.service_class]
    arrival = served.arrival
    return served.outcome == "ok" and spec.attained(
        arrival.prompt_tokens,
        ttft_ns=served.first_ns - arrival.at_ns,
        duration_ns=served.end_ns - arrival.at_ns,
        further=arrival.output_tokens - 1,
    )


def ttft_ms(served: Served) -> float:
    """Arrival to first token, of a request that has one."""
    return (served.first_ns - served.arrival.at_ns) / 1e6


def tpot_ms(served: Served) -> float | None:
    """Mean time per output token after the first; None for a single token."""
    after_first = served.arrival.output_tokens - 1
    return (served.end_ns - served.first_ns) / 1e6 / after_first if after_first else None

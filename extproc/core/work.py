"""What a strategy is asked about: a request's work, and the moment in which its replica is chosen. Values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec

from extproc.core.endpoint import Endpoint
from extproc.core.promptcount import PromptCount

NOTHING: Mapping[str, int] = MappingProxyType({})
#: What is aimed at when nobody says (the class `standard` of the configuration).
TTFT_MS, TPOT_MS = 1_000.0, 100.0


class Work(msgspec.Struct, frozen=True):
    """What a request is predicted to cost, over all its sequences, in tokens.

    An endpoint outside `zone` counts as if `zone_penalty_tokens` more were waiting on it; no zone, no
    penalty. `max_new_tokens` is one sequence's limit, None when the client set none. `prefix` are its
    chained block hashes (prefix.py), `block_tokens` tokens each. `rank` is its service class's place,
    0 first; `ttft_ms` and `tpot_ms` are what its class aims at, `deadline_ns` when its first token is due
    (0: nobody waits for it). `residuals` as in `load.Plan`. `session` groups requests of one
    conversation or user; 0 is none.
    """

    input_tokens: int
    output_tokens: int
    zone: str = ""
    zone_penalty_tokens: int = 0
    max_new_tokens: int | None = None
    sequences: int = 1
    prefix: Sequence[int] = ()
    block_tokens: float = 64.0
    session: int = 0
    rank: int = 0
    ttft_ms: float = TTFT_MS
    tpot_ms: float = TPOT_MS
    deadline_ns: int = 0
    residuals: Sequence[float] = ()
    #: The prompt's count, where there is a tokenizer.
    counted: PromptCount | None = None

    @property
    def tokens(self) -> int:
        """All of it, at least 1."""
        return max(1, self.input_tokens + self.output_tokens)


class SchedulingContext(msgspec.Struct, frozen=True):
    """The moment of a choice.

    `cached` are the prompt's tokens that an endpoint is believed to hold, by address. `patient` says that
    the request may be passed over for now, because others wait as well. `deciders` is how many services
    place requests on these endpoints.
    """

    now_ns: int = 0
    cached: Mapping[str, int] = NOTHING
    patient: bool = False
    deciders: int = 1
    #: It has waited as long as it may: what nobody would start now is turned away.
    last: bool = False
    #: The prompt's tokens that an endpoint will hold once what was placed there has ended, by address.
    coming: Mapping[str, int] = NOTHING
    #: For a prompt whose beginning nobody was given yet: prefix blocks given to each endpoint, by address.
    given: Mapping[str, int] = NOTHING
    #: Endpoints that only a lack of permits keeps from it, where it may wait for one of them.
    full: Sequence[Endpoint] = ()
    #: Whether the pool's engine caches a prompt when it is prefilled, not when its request ends.
    caches_at_prefill: bool = True


NOW = SchedulingContext()

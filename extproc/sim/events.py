"""What goes into a simulated replica and what comes out of it: plain values.

Pure: shared by the scheduler, the HTTP shell and the discrete-event simulation.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

RequestId = Hashable


@dataclass(frozen=True, slots=True, kw_only=True)
class SimRequest:
    """One sequence to generate.

    `prompt_tokens` ≥ 1; `output_tokens` in 1..`max_new_tokens` is what the model would write (the
    scheduler must not look ahead at it: reservations use `max_new_tokens`). `blocks` are the prompt's
    full blocks, at most `prompt_tokens // block_tokens` of them; none means nothing is cacheable.
    `adapter` is the LoRA adapter that it needs ("": the base alone).
    `sliced` says whether a generation longer than a slice reserves, runs and re-queues slice by slice.
    """

    request_id: RequestId
    prompt_tokens: int
    output_tokens: int
    max_new_tokens: int
    blocks: Sequence[Hashable] = ()
    sliced: bool = True
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A permit was taken and the request queued; `waiting` counts the queue, itself included."""

    waiting: int


@dataclass(frozen=True, slots=True)
class Overloaded:
    """No permit was free (or a `refuse` fault is on): TGI's `Model is overloaded`."""

    permits_in_use: int


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The prompt's prefill ended and the first token exists; `cached_tokens` the prefix cache spared."""

    request_id: RequestId
    at_ns: int
    cached_tokens: int = 0
    lane: int = 0


@dataclass(frozen=True, slots=True)
class Requeued:
    """A token was made, and with it a full generation slice: KV freed, back to the end of the queue."""

    request_id: RequestId
    at_ns: int
    tokens_made: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """A re-queued request was prefilled again and made one more token."""

    request_id: RequestId
    at_ns: int
    tokens_made: int
    lane: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The last token was made; permit and KV are free.

    `queue_ns` and `prefill_ns` are of the first slice; `cached_tokens` is what its prefix cache spared.
    """

    request_id: RequestId
    at_ns: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    submitted_ns: int
    admitted_ns: int
    first_token_ns: int

    @property
    def queue_ns(self) -> int:
        """Time from submission to the first admission into a batch."""
        return self.admitted_ns - self.submitted_ns

    @property
    def prefill_ns(self) -> int:
        """Time from admission to the first token."""
        return self.first_token_ns - self.admitted_ns

    @property
    def decode_ns(self) -> int:
        """Time from the first token to the last."""
        return self.at_ns - self.first_token_ns


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A cancelled request let go of its permit and KV."""

    request_id: RequestId
    at_ns: int
    tokens_made: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """One engine step ended.

    In one step's events those that leave (`Cancelled`, `Finished`, `Requeued`) come first, then this,
    then those that join (`FirstToken`, `Resumed`): so each sequence that is running when a `Stepped`
    is read has made exactly one token more. (A join that is also the end is followed by its leave.)
    `prefill_tokens` is 0 in a pure decode step; `batch` counts the sequences that made a token.
    """

    at_ns: int
    duration_ns: int
    prefill_tokens: int
    batch: int
    admitted: int
    lane: int = 0


Event = FirstToken | Requeued | Resumed | Finished | Cancelled | Stepped

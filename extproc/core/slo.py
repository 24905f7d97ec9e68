"""What a service class aims at, how long its requests may wait, and whether one attained that. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from extproc.core.load import MS_NS
from extproc.core.outcome import End, Outcome

#: What ends a stream after its last token takes a moment too.
_SLACK_NS = 5 * MS_NS


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSpec:
    """A service class: how long its requests may wait, the first token they aim at, and each further one.

    Prompts above `long_prompt_tokens` have a target and a hold of their own.
    """

    name: str = "standard"
    hold_ns: int = 5_000_000_000
    ttft_ns: int = 1_000_000_000
    tpot_ns: int = 100_000_000
    long_prompt_tokens: int = 4_000
    long_ttft_ns: int = 5_000_000_000
    long_hold_ns: int = 9_000_000_000
    #: Further endpoints that are tried, at the most: so many more does a decision name.
    retries: int = 2

    def target_ns(self, input_tokens: int) -> int:
        """The time to first token that a prompt of so many tokens aims at."""
        if input_tokens <= self.long_prompt_tokens:
            return self.ttft_ns
        return max(self.ttft_ns, self.long_ttft_ns)

    def wait_ns(self, input_tokens: int) -> int:
        """How long it may be held; 0 for a class that does not wait."""
        if not self.hold_ns or input_tokens <= self.long_prompt_tokens:
            return self.hold_ns
        return max(self.hold_ns, self.long_hold_ns)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one request says of its class's targets; None where it says nothing."""

    attained: bool | None
    error: bool | None
    ttft_ms: float | None = None


def sample_of(outcome: Outcome, spec: ClassSpec) -> Sample:
    """What a request's end says, by its class's targets.

    Attained: the first token and each further one came within the class's targets. An answer that is not
    streamed shows neither, so it attains when the whole came within the sum of both; a stream whose tokens
    nobody counted is judged by its first alone. What was refused, shed or failed is missed. A client that
    left says nothing, unless its first token had come, or was overdue already.
    """
    ttft = outcome.ttft_ns
    target_ns = spec.target_ns(outcome.reservation.input_tokens)
    failed = outcome.end is End.ERROR or outcome.refused
    ttft_ms = ttft / MS_NS if ttft is not None else None
    if failed or outcome.end is End.REFUSED:
        return Sample(False, failed)
    if outcome.end is End.CLIENT_GONE:
        if ttft is not None:
            return Sample(ttft <= target_ns, False, ttft_ms)
        return Sample(False if outcome.duration_ns > target_ns else None, None)
    further = max(0, tokens_each(outcome) - 1)
    if ttft is None:
        return Sample(outcome.duration_ns <= target_ns + further * spec.tpot_ns, False)
    in_time = ttft <= target_ns
    if outcome.output_tokens is not None:
        rest_ns = max(0, outcome.duration_ns - ttft)
        in_time = in_time and rest_ns <= further * spec.tpot_ns + _SLACK_NS
    return Sample(in_time, False, ttft_ms)


def tokens_each(outcome: Outcome) -> int:
    """Tokens of one of the request's sequences, as counted, else as predicted."""
    tokens = outcome.output_tokens
    if tokens is None:
        tokens = outcome.reservation.output_tokens
    return tokens // max(1, outcome.reservation.permits)

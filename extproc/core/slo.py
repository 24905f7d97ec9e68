"""What a service class aims at, how long its requests may wait, and whether one of them got it.

Owns the one meaning of "attained": metrics, analytics, alerts, experiments, the tuner and the simulator's
reports read it here. Pure values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from extproc.core.outcome import End, Outcome

#: An engine's answer to what it has no room for: the only 4xx that is not its client's mistake.
NO_ROOM = 429
#: What ends a stream after its last token takes a moment too.
SLACK_NS = 5_000_000


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
    #: How long its requests may wait for a pool's first replica (`ColdStart`).
    cold_hold_ns: int = 0

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

    def given_up(self, prompt_tokens: int, waited_ns: int) -> bool | None:
        """What a client says that left before a token came: nothing, or False where that was overdue."""
        return False if waited_ns > self.target_ns(prompt_tokens) else None

    def attained(
        self,
        prompt_tokens: int,
        *,
        ttft_ns: int | None,
        duration_ns: int,
        further: int | None,
        slack_ns: int = 0,
    ) -> bool:
        """Whether an answer was within its targets: the first token in time, and each further one.

        `further` is how many tokens came after the first, of one sequence; None where nobody counted them:
        then the first alone is judged, as with an answer of one token. An answer that came whole (`ttft_ns`
        None) shows neither, and is in time within the sum of both. `slack_ns`: what the end is later than the
        last token.
        """
        target_ns = self.target_ns(prompt_tokens)
        if ttft_ns is None:
            return duration_ns <= target_ns + (further or 0) * self.tpot_ns
        return ttft_ns <= target_ns and (
            not further or duration_ns - ttft_ns <= further * self.tpot_ns + slack_ns
        )


class Sample(NamedTuple):
    """What a request's end says of how it was served; None where it says nothing. Times in milliseconds.

    `error`: the fleet failed it (an engine that was overloaded inside a 200 too). `ttft_ms` is of every
    stream that began to answer, `tpot_ms` and `total_ms` of those that ended well.
    """

    attained: bool | None
    error: bool | None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    total_ms: float | None = None


#: Of what costs no place on a replica (a token count): its times would say nothing of the others'.
NOTHING_SAID = Sample(None, None)


def sample_of(outcome: Outcome, spec: ClassSpec) -> Sample:
    """What a request's end says, by its class's targets.

    What failed missed them, and so did what an engine had no room for; what it did not like of the request
    itself is its client's mistake. A client that left says nothing, unless its first token had come, or was
    overdue already. A stream whose tokens nobody counted is judged by its first alone.
    """
    reservation = outcome.reservation
    if not reservation.permits:
        return NOTHING_SAID
    end, ttft_ns = outcome.end, None if outcome.refused else outcome.ttft_ns
    ttft_ms = ttft_ns / 1e6 if ttft_ns is not None else None
    if outcome.refused or end is End.ERROR:
        return Sample(False, True, ttft_ms)
    if end is End.REFUSED:
        return Sample(False if outcome.status == NO_ROOM else None, False, ttft_ms)
    prompt = reservation.input_tokens
    if end is End.CLIENT_GONE:
        if ttft_ns is not None:
            return Sample(ttft_ns <= spec.target_ns(prompt), False, ttft_ms)
        return Sample(spec.given_up(prompt, outcome.duration_ns), None)
    further, counted = max(0, tokens_each(outcome) - 1), outcome.output_tokens is not None
    attained = spec.attained(
        prompt,
        ttft_ns=ttft_ns,
        duration_ns=outcome.duration_ns,
        further=further if counted or ttft_ns is None else None,
        slack_ns=SLACK_NS,
    )
    tpot_ms = None
    if ttft_ms is not None and counted and further:
        # (end − first)/(n − 1), of one sequence.
        tpot_ms = max(0.0, outcome.duration_ns / 1e6 - ttft_ms) / further
    return Sample(attained, False, ttft_ms, tpot_ms, outcome.duration_ns / 1e6)


def tokens_each(outcome: Outcome) -> int:
    """Tokens of one of the request's sequences, as counted, else as predicted."""
    tokens = outcome.output_tokens
    if tokens is None:
        tokens = outcome.reservation.output_tokens
    return tokens // max(1, outcome.reservation.permits)

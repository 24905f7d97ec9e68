"""How many tokens an answer had whose engine did not say: learned from the answers whose engine did.

Owns the estimate and its bounds. Knows no protocol: a stream is a number of events and bytes, a whole answer
bytes alone.

An event mostly is a token; with several tokens an event (stream intervals, speculative decoding, tool
parsers) bytes tell better. So tokens are taken for `a·events + b·bytes`, with a and b by least squares of the
relative error over the answers that were counted: where an event is a token a is 1 and b is 0 without a rest,
where events hold the same number a is that number, and where neither holds b carries it (a then takes away
what each event's frame weighs).
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from extproc.core.outcome import Counted, End, Outcome, Reservation

#: The longest answer of one sequence, where a client set no limit: the longest context served today.
OUTPUT_TOKENS_MAX: Final = 131_072
#: A text has at most so many tokens beside one for each byte of its request: templates, tools.
PROMPT_TOKENS_BESIDE: Final = 32_768
#: And so many times what was predicted.
PROMPT_TIMES: Final = 32
#: Where the engine reads more than the request holds (things by their address, a response before it): the
#: longest context served today.
PROMPT_NAMED_TOKENS: Final = 1_048_576
#: Engines may count the end's own token on top of the limit.
SLACK_TOKENS: Final = 1

#: Of a whole answer's bytes a token has about so many, before any was counted.
BYTES_PER_TOKEN: Final = 5.0
#: Bytes of an event, where nobody counted events or tokens yet (OpenAI's chunks have 150 to 300).
BYTES_PER_EVENT: Final = 230.0
#: An answer from so many tokens on weighs fully; shorter ones by their share.
FULL_TOKENS: Final = 256.0
#: The prior weighs as much as this part of an answer; old answers fade by this at each new one.
PRIOR_WEIGHT: Final = 0.02
FADE: Final = 0.99
#: From so many answers on, and while their tokens were told within this on the mean, an estimate is sure.
SURE_ANSWERS: Final = 4.0
SURE_ERROR: Final = 0.02
#: Answers of fewer tokens say little of the error, whose mean moves by this at each other.
JUDGED_TOKENS: Final = 32
ERROR_RATE: Final = 0.1
#: Where more events had tokens than these, a count of none is no count: some engines, and proxies before
#: them, write zeros in their usage.
EVENTS_OF_NONE: Final = 4
#: No estimate has fewer tokens than this share of the events.
EVENT_SHARE_MIN: Final = 0.5


class Meter:
    """Tokens by events and bytes, for answers of one kind."""

    __slots__ = ("_prior_a", "_prior_b", "_sx", "_sxx", "_sxy", "_sy", "_syy", "error", "seen")

    def __init__(self, *, per_event: float, per_byte: float) -> None:
        self._prior_a, self._prior_b = per_event, per_byte
        self._sxx = self._sxy = self._syy = self._sx = self._sy = 0.0
        #: Answers that taught, faded.
        self.seen = 0.0
        #: Mean relative error of what would have been estimated.
        self.error = 0.0

    @property
    def sure(self) -> bool:
        """Whether an estimate is worth as much as a count."""
        return self.seen >= SURE_ANSWERS and self.error <= SURE_ERROR

    def saw(self, events: int, size: int, tokens: int) -> None:
        """An answer of so many events and bytes had so many tokens."""
        if events <= 0 or size <= 0 or tokens <= 0:
            return
        if tokens >= JUDGED_TOKENS:
            error = min(1.0, abs(self.tokens(events, size) / tokens - 1.0))
            self.error += (ERROR_RATE if self.seen else 1.0) * (error - self.error)
        weight = min(1.0, tokens / FULL_TOKENS)
        x, y = events / tokens, size / tokens
        self._sxx = self._sxx * FADE + weight * x * x
        self._sxy = self._sxy * FADE + weight * x * y
        self._syy = self._syy * FADE + weight * y * y
        self._sx = self._sx * FADE + weight * x
        self._sy = self._sy * FADE + weight * y
        self.seen = self.seen * FADE + weight

    @property
    def coefficients(self) -> tuple[float, float]:
        """Tokens by event and by byte."""
        # The prior is worth PRIOR_WEIGHT of an answer of its own events and bytes.
        ridge_x, ridge_y = PRIOR_WEIGHT, PRIOR_WEIGHT * BYTES_PER_EVENT**2
        xx, yy, xy = self._sxx + ridge_x, self._syy + ridge_y, self._sxy
        x, y = self._sx + ridge_x * self._prior_a, self._sy + ridge_y * self._prior_b
        determinant = xx * yy - xy * xy
        if determinant <= 1e-9 * xx * yy:
            return self._prior_a, self._prior_b
        return (x * yy - y * xy) / determinant, (y * xx - x * xy) / determinant

    def tokens(self, events: int, size: int) -> int:
        """Tokens of so many events and bytes: at least half the events, at most the bytes."""
        a, b = self.coefficients
        estimate = max(a * events + b * size, EVENT_SHARE_MIN * events)
        return max(0, round(min(estimate, size) if size > 0 else estimate))


class Meters:
    """The meters of one pool: by route, streamed or whole; and bytes alone, where no events were counted."""

    def __init__(self) -> None:
        self._by_kind: dict[tuple[str, bool], Meter] = {}
        self._unseen: dict[str, Meter] = {}

    def saw(self, outcome: Outcome) -> None:
        """A whole answer whose engine counted its tokens."""
        reservation, tokens = outcome.reservation, outcome.output_tokens
        if tokens is None or outcome.end is not End.OK or outcome.counted is not Counted.ENGINE:
            return
        if reservation.stream:
            if outcome.events is not None:
                self.streamed(reservation.route).saw(outcome.events, outcome.response_bytes, tokens)
            self._bytes_alone(reservation.route).saw(1, outcome.response_bytes, tokens)
        else:
            self._whole(reservation.route).saw(1, outcome.response_bytes, tokens)

    def estimate(self, outcome: Outcome) -> int | None:
        """Tokens produced, by what was seen of the answer; None where nothing was."""
        route, size = outcome.reservation.route, outcome.response_bytes
        if not outcome.reservation.stream:
            return self._whole(route).tokens(0, size) if size > 0 else None
        if outcome.events is not None:
            return self.streamed(route).tokens(outcome.events, size)
        return self._bytes_alone(route).tokens(0, size) if size > 0 else None

    def streamed(self, route: str) -> Meter:
        """The meter of a route's streams, whose events were counted."""
        return self._of((route, True), per_event=1.0, per_byte=0.0)

    def _whole(self, route: str) -> Meter:
        return self._of((route, False), per_event=0.0, per_byte=1.0 / BYTES_PER_TOKEN)

    def _bytes_alone(self, route: str) -> Meter:
        found = self._unseen.get(route)
        if found is None:
            found = self._unseen[route] = Meter(per_event=0.0, per_byte=1.0 / BYTES_PER_EVENT)
        return found

    def _of(self, key: tuple[str, bool], *, per_event: float, per_byte: float) -> Meter:
        found = self._by_kind.get(key)
        if found is None:
            found = self._by_kind[key] = Meter(per_event=per_event, per_byte=per_byte)
        return found


def metered(outcome: Outcome, meters: Meters | None) -> Outcome:
    """The outcome with every count judged, and what was not counted estimated; the same again when metered.

    A count above what was asked for is no count: it is estimated as if the engine had said nothing, and
    `impossible` says so. Nor is one of no tokens where a stream of them was seen. What was not counted,
    and of which nothing was seen, stays unknown.
    """
    reservation = outcome.reservation
    if not reservation.permits:
        # It cost nothing: an answer that was made before says again what it cost then.
        if outcome.prompt_tokens is None and outcome.output_tokens is None:
            return outcome
        return replace(outcome, prompt_tokens=None, output_tokens=None, cached_tokens=None)
    most = output_bound(reservation)
    prompt, output = outcome.prompt_tokens, outcome.output_tokens
    if output == 0 and (outcome.events or 0) > EVENTS_OF_NONE:
        output = None
    if not most and output is None:
        output = 0  # it generates nothing, and engines mostly do not say so
    impossible = False
    if prompt is not None and prompt > prompt_bound(outcome):
        prompt, impossible = None, True
    if output is not None and output > most + SLACK_TOKENS * reservation.permits:
        output, impossible = None, True
    if output is not None and not impossible:
        return outcome if output == outcome.output_tokens else replace(outcome, output_tokens=output)
    counted = outcome.counted
    if output is None:
        estimate = _estimate(outcome, meters)
        if estimate is None and not impossible:
            return outcome
        counted = Counted.ESTIMATED
        output = None if estimate is None else min(estimate, most)
    return replace(
        outcome,
        prompt_tokens=prompt,
        output_tokens=output,
        counted=counted,
        impossible=impossible or outcome.impossible,
    )


def output_bound(reservation: Reservation) -> int:
    """The most tokens that a request may be charged: what its client asked for, over all sequences."""
    limit = reservation.max_new_tokens
    return (OUTPUT_TOKENS_MAX if limit is None else limit) * max(1, reservation.permits)


def prompt_bound(outcome: Outcome) -> int:
    """The most tokens that a prompt can have: one for each byte, and what templates add; a whole context's
    where it is more than a text (`prompt_bytes` is 0)."""
    reservation = outcome.reservation
    if not reservation.prompt_bytes:
        return PROMPT_NAMED_TOKENS
    size = outcome.request_bytes or reservation.prompt_bytes
    return max(size, PROMPT_TIMES * reservation.input_tokens) + PROMPT_TOKENS_BESIDE


def _estimate(outcome: Outcome, meters: Meters | None) -> int | None:
    """Tokens by what was seen of the answer; None where nothing tells."""
    if meters is None or outcome.status != 200:
        return None
    if outcome.end in (End.ERROR, End.REFUSED) and not outcome.events:
        # What came was the error alone, or nothing says otherwise.
        return None
    return meters.estimate(outcome)

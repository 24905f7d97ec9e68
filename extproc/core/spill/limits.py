"""What a provider says of its rate limits with each answer (`x-ratelimit-*`, Retry-After), and what is left.

Owns the reading of those headers and the account of what went there since. A provider's figures are of the
moment in which it began to answer, and come here with the answer's end: whatever went there after that
request counts against them, though some of it may be in them. So more is never thought to be left than is.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

#: How long figures count that come without a time; and at most, whatever they say.
UNSAID_S: Final = 60.0
TOLD_S_MAX: Final = 3_600.0
#: The longest text that is read.
TEXT_MAX: Final = 256
#: More than any provider grants.
LEFT_MAX: Final = 2**53
_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|h|m|s|d)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_NUMBER: Final = re.compile(r"\d{1,15}(?:\.\d{1,9})?")


class ToldLimits(msgspec.Struct, frozen=True):
    """What one answer said: requests and tokens left, and seconds until they are whole again.

    None where it said nothing. `retry_after_s` comes with a refusal.
    """

    requests: float | None = None
    requests_s: float = UNSAID_S
    tokens: float | None = None
    tokens_s: float = UNSAID_S
    retry_after_s: float | None = None


def told_limits(text: str) -> ToldLimits | None:
    """Five words as Envoy writes them: requests left, their reset, tokens left, their reset, Retry-After.

    "-" stands for each that was not there. None where nothing of it can be read.
    """
    words = text[:TEXT_MAX].split(" ")
    if len(words) != 5:
        return None
    requests, requests_s, tokens, tokens_s, after_s = words
    told = ToldLimits(
        _left(requests), _seconds(requests_s), _left(tokens), _seconds(tokens_s), _seconds_said(after_s)
    )
    return None if (told.requests, told.tokens, told.retry_after_s) == (None, None, None) else told


def _left(word: str) -> float | None:
    return min(float(word), LEFT_MAX) if _NUMBER.fullmatch(word) else None


def _seconds(word: str) -> float:
    said = _seconds_said(word)
    return UNSAID_S if said is None else said


def _seconds_said(word: str) -> float | None:
    """Seconds as a number, or as Go writes a duration: `1`, `6m0s`, `20ms`. None for what is neither."""
    if _NUMBER.fullmatch(word):
        return min(float(word), TOLD_S_MAX)
    parts = _DURATION.findall(word)
    if not parts or "".join(number + unit for number, unit in parts) != word:
        return None
    return min(sum(float(number) * _UNITS[unit] for number, unit in parts), TOLD_S_MAX)


class ProviderAccount:
    """What one provider has left, as it said itself."""

    __slots__ = ("_marks", "_requests", "_requests_told", "_tokens", "_tokens_told")

    def __init__(self) -> None:
        #: Requests and tokens that ever went there.
        self._requests = self._tokens = 0.0
        #: By request: how many those were when it went, itself included.
        self._marks: dict[str, tuple[float, float]] = {}
        #: What was left at which mark, and until when that counts.
        self._requests_told: tuple[float, float, int] | None = None
        self._tokens_told: tuple[float, float, int] | None = None

    def went(self, request_id: str, tokens: float) -> None:
        """A request goes there, of so many tokens at most."""
        self._requests += 1
        self._tokens += tokens
        self._marks[request_id] = self._requests, self._tokens

    def gone(self, request_id: str, told: ToldLimits | None, *, now_ns: int) -> None:
        """It is over, and its answer said so much."""
        requests, tokens = self._marks.pop(request_id, (self._requests, self._tokens))
        if told is None:
            return
        if told.requests is not None:
            self._requests_told = told.requests, requests, now_ns + int(told.requests_s * 1e9)
        if told.tokens is not None:
            self._tokens_told = told.tokens, tokens, now_ns + int(told.tokens_s * 1e9)

    def has_room(self, tokens: float, *, share: int, now_ns: int) -> bool:
        """Whether one request more of so many tokens fits; `share` services draw on it."""
        return _fits(self._requests_told, self._requests, 1.0, share, now_ns) and _fits(
            self._tokens_told, self._tokens, tokens, share, now_ns
        )

    def left(self, *, now_ns: int) -> dict[str, float | None]:
        """Requests and tokens that are left; None where nothing was said, or it is too old."""
        return {
            "requests": _left_of(self._requests_told, self._requests, now_ns),
            "tokens": _left_of(self._tokens_told, self._tokens, now_ns),
        }


def _left_of(told: tuple[float, float, int] | None, went: float, now_ns: int) -> float | None:
    if told is None or told[2] <= now_ns:
        return None
    return max(0.0, told[0] - (went - told[1]))


def _fits(told: tuple[float, float, int] | None, went: float, more: float, share: int, now_ns: int) -> bool:
    left = _left_of(told, went, now_ns)
    return left is None or more <= left / share

"""What is known of a prompt's tokens before an engine has counted them: the port of whoever counts, and how
far off counts have been.

Owns the values that cross. How texts are counted is extproc.tokens'.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

import msgspec

from extproc.core.request import Request

#: Counts that are remembered by the window of errors.
WINDOW = 64


class PromptShape(msgspec.Struct, frozen=True):
    """What a template adds tokens for: the kind of prompt, its messages (a chat's) or prompts, and its tools.

    `tools` is the digest of the tools offered, empty for none. `known` is False where the prompt holds what
    no count of its text covers: images, tool calls, shapes that are not read.
    """

    kind: str
    messages: int
    tools: bytes = b""
    known: bool = True


class PromptCount(msgspec.Struct, frozen=True):
    """A prompt as far as it was counted.

    `tokens` are all that is expected, the template's included, at least 1; None where counts are not to be
    gone by. `exact`: none of them is estimated. `texts` are the keys of its texts, for who learns later what
    they count; `estimate` is what would be expected without a tokenizer.
    """

    tokens: int | None
    exact: bool
    shape: PromptShape
    texts: tuple[bytes, ...]
    estimate: int
    #: By how many tokens it may be off, by what engines told of others; None where no bound is held by it.
    margin: int | None = None


class PromptCounter(Protocol):
    """Whoever counts a pool's prompts; returns within tens of microseconds, and waits for nothing."""

    @property
    def context_tokens(self) -> int:
        """Tokens of prompt and answer together that the model takes; 0 where its engine alone says so."""

    def count(self, request: Request, estimate: int, bytes_per_token: float) -> PromptCount | None:
        """What is known of a prompt's text; None where nothing is."""


class CountErrors:
    """How far off counts were: `Σ|predicted − told| / Σ told` over the last WINDOW answers.

    Weighted by tokens, so that a short prompt's template is no great error. `worst` is the largest difference
    of them in tokens.
    """

    __slots__ = ("_off", "_pairs", "_told", "count")

    def __init__(self) -> None:
        self._pairs: deque[tuple[int, int]] = deque()
        self._off = self._told = 0
        #: Answers ever compared.
        self.count = 0

    def saw(self, predicted: int, told: int) -> None:
        """A prompt of so many tokens by its engine was expected to have `predicted`."""
        if told <= 0 or predicted < 0:
            return
        off = abs(predicted - told)
        self.count += 1
        self._pairs.append((off, told))
        self._off += off
        self._told += told
        if len(self._pairs) > WINDOW:
            off, told = self._pairs.popleft()
            self._off -= off
            self._told -= told

    @property
    def share(self) -> float | None:
        """The relative error; None before the first answer."""
        return self._off / self._told if self._told else None

    @property
    def median(self) -> float:
        """Half of the recent answers were no further off, each by itself; 0 before the first."""
        each = sorted(off / told for off, told in self._pairs)
        return each[(len(each) - 1) // 2] if each else 0.0

    @property
    def worst(self) -> int:
        """The largest of the recent differences, in tokens."""
        return max((off for off, _ in self._pairs), default=0)

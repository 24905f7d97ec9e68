"""From which similarity on an answer may be given again, learned for each kept question by checks.

A would-be hit is asked of a replica all the same, and both answers are compared: one observation of how alike
the questions were, and whether the answers were the same. A threshold for each entry, with a bound on wrong
hits, is the idea of verified caches (arXiv 2502.03771); the model is ours:

    P(same | s) = (1 - lapse) / (1 + exp(-steepness (s - threshold)))

`threshold` is an entry's own; `lapse` (how often answers differ whatever the similarity) and `steepness` are
its scope's, as is the spread of thresholds, which begins at "never" for half of all. All of it is kept as
weights over a grid, so that what is uncertain stays so: an answer is given only where the share of wrong ones
is within the bound with the confidence that is asked for.

Pure: no clock, no chance.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import msgspec
import numpy as np

from extproc.cache.semantic.entries import WINDOW

Grid = np.ndarray[Any, np.dtype[np.float64]]

#: Thresholds of the grid; the last one is never reached.
THRESHOLDS: Final = (*(round(0.5 + 0.02 * step, 2) for step in range(28)), 9.0)
#: (steepness, lapse) of the grid, and what each is worth before anything is known.
_LAPSES: Final = {0.0: 0.4, 0.002: 0.25, 0.01: 0.15, 0.05: 0.12, 0.25: 0.08}
_STEEP: Final = (40.0, 80.0, 160.0)
NOISE: Final = tuple((steep, lapse) for steep in _STEEP for lapse in _LAPSES)
_NOISE_PRIOR: Final = tuple(share / len(_STEEP) for _ in _STEEP for share in _LAPSES.values())
NEVER_PRIOR: Final = 0.5
_PRIOR: Final = np.array([*([(1.0 - NEVER_PRIOR) / 28] * 28), NEVER_PRIOR])
_STEEPNESS: Final = np.array([[steep] for steep, _ in NOISE])
_LAPSE: Final = np.array([[lapse] for _, lapse in NOISE])
#: What is known of thresholds before any check counts as much as so many entries.
PRIOR_ENTRIES: Final = 10.0
#: Agreeing checks of its own that an entry needs, whatever the others say.
OWN_MIN: Final = 2
#: So many wrong ones, and more than the bound's share, turn a scope off until they are outweighed.
OFF_MIN: Final = 2


class EntryChecks(msgspec.Struct):
    """What checks say of one entry: log-likelihoods by noise and threshold, and what it adds to its scope."""

    likelihood: Any
    noise: Any
    held: Any
    same: int = 0
    differing: int = 0


class LikelyWrong(msgspec.Struct, frozen=True):
    """How likely the answers differ: expected, and with the confidence asked for at most; and whether the
    bound holds."""

    wrong: float
    wrong_at_most: float
    within: bool


class ThresholdLearner:
    """The thresholds of one scope. `bound` is the share of wrong answers that is allowed, `confidence` how
    sure it must be."""

    def __init__(self) -> None:
        self._noise = np.log(np.array(_NOISE_PRIOR))
        self._spread = PRIOR_ENTRIES * _PRIOR
        self._window: deque[bool] = deque(maxlen=WINDOW)
        self.same = self.differing = 0

    def observe(self, checks: EntryChecks | None, similarity: float, *, same: bool) -> EntryChecks:
        """One check of an entry (None: its first one); what is known of it then."""
        if checks is None:
            shape = (len(NOISE), len(THRESHOLDS))
            checks = EntryChecks(np.zeros(shape), np.zeros(len(NOISE)), np.zeros(len(THRESHOLDS)))
        wrong = _wrong(similarity)
        checks.likelihood += np.log(np.maximum(1.0 - wrong if same else wrong, 1e-12))
        if same:
            checks.same += 1
            self.same += 1
        else:
            checks.differing += 1
            self.differing += 1
        self._share(checks)
        return checks

    def forget(self, checks: EntryChecks) -> None:
        """An entry is gone; what it taught of its scope's noise stays, its threshold does not."""
        self._spread = self._spread - checks.held
        checks.held = np.zeros(len(THRESHOLDS))

    def judge(
        self, checks: EntryChecks | None, similarity: float, *, bound: float, confidence: float
    ) -> LikelyWrong:
        """Whether an entry's answer may be given to a question that is so alike."""
        if checks is None or checks.same < OWN_MIN:
            return LikelyWrong(1.0, 1.0, False)
        weights, wrong = self._weights(checks).ravel(), _wrong(similarity).ravel()
        weights = weights / weights.sum()
        order = np.argsort(wrong, kind="stable")
        # The value below which so much of the weight is.
        at = int(np.searchsorted(np.cumsum(weights[order]), confidence))
        at_most = float(wrong[order[min(at, len(order) - 1)]])
        expected = float(weights @ wrong)
        return LikelyWrong(expected, at_most, at_most <= bound and expected <= bound)

    def checked(self, *, same: bool) -> None:
        """An answer that would have been given was checked instead."""
        self._window.append(same)

    def forget_checked(self) -> None:
        """Know of none of those any more."""
        self._window.clear()

    def off(self, bound: float) -> bool:
        """Whether too many of those were wrong."""
        wrong = self._window.count(False)
        return wrong >= OFF_MIN and wrong > bound * len(self._window)

    @property
    def sampled(self) -> tuple[int, int]:
        """Checks of answers that would have been given, and how many of them were wrong."""
        return len(self._window), self._window.count(False)

    def _weights(self, checks: EntryChecks) -> Grid:
        """The posterior of (noise, threshold) of an entry, not normalised."""
        spread = np.log(np.maximum(self._spread - checks.held, 1e-9))
        logs = (self._noise - checks.noise)[:, None] + spread[None, :] + checks.likelihood
        return np.asarray(np.exp(logs - logs.max()))

    def _share(self, checks: EntryChecks) -> None:
        """Let the scope know what an entry says now, in place of what it said before."""
        weights = self._weights(checks)
        held = weights.sum(axis=0) / weights.sum()
        marginal = np.log(np.maximum(np.exp(checks.likelihood) @ _PRIOR, 1e-300))
        self._noise = self._noise + marginal - checks.noise
        self._spread = self._spread + held - checks.held
        checks.noise, checks.held = marginal, held


def _wrong(similarity: float) -> Grid:
    """How likely the answers differ at a similarity, by noise and threshold."""
    distance = np.clip(_STEEPNESS * (similarity - np.array(THRESHOLDS)[None, :]), -50.0, 50.0)
    return np.asarray(1.0 - (1.0 - _LAPSE) / (1.0 + np.exp(-distance)))

"""What replicas were seen to bear: the share that attained, by how much was asked of each.

Owns the record that corrects the capacity model. A model knows no bursts of a few seconds, no engine's quirks
and no cache; the ends of requests do. Load is what came to each ready replica, as a share of what the model
says one bears at the target; each bin of it has the requests that came then and how many of them attained.
"""

from __future__ import annotations

from math import isfinite
from typing import Final

#: Bins of load: their width, and how many.
WIDTH: Final = 0.1
BINS: Final = 30
#: Before anything was seen a bin counts as so many requests that attained, up to the model's own bound.
PRIOR_REQUESTS: Final = 200.0
#: A bin with more requests than this forgets half: what holds now counts.
REQUESTS_MAX: Final = 20_000.0
#: No correction is beyond these.
CORRECTION_MIN: Final = 0.3
CORRECTION_MAX: Final = 2.5
#: What of the load is unseen: the next bin above those that were well is tried, and no further one.
SEEN_REQUESTS: Final = 300.0


class ServedRecord:
    """One pool's."""

    def __init__(self) -> None:
        self.came = [0.0] * BINS
        self.good = [0.0] * BINS

    @property
    def requests(self) -> float:
        """How many it is made of."""
        return sum(self.came)

    def saw(self, load: float, *, attained: float, judged: float) -> None:
        """`judged` requests ended at a load, of which so many attained; nonsense is left out."""
        if (
            not (isfinite(load) and load >= 0.0 and 0.0 <= attained <= judged and isfinite(judged))
            or not judged
        ):
            return
        at = min(BINS - 1, int(load / WIDTH))
        self.came[at] += judged
        self.good[at] += attained
        if self.came[at] > REQUESTS_MAX:
            self.came[at] /= 2.0
            self.good[at] /= 2.0

    def correction(self, target: float) -> float:
        """The load, 1 being the model's, up to which a share `target` (0..1) of all requests attains.

        Those of lower loads make up for some of higher ones: it is the whole that is promised. 1 before
        anything was seen; above 1 only bin by bin, as each was seen to be well.
        """
        came = good = 0.0
        found = CORRECTION_MIN
        for at in range(BINS):
            upper = (at + 1) * WIDTH
            prior = PRIOR_REQUESTS if upper <= 1.0 + WIDTH / 2.0 else 0.0
            seen = self.came[at]
            if not prior and at and self.came[at - 1] < SEEN_REQUESTS:
                break
            bin_came, bin_good = seen + prior, self.good[at] + prior
            if came + bin_came > 0.0 and good + bin_good < target * (came + bin_came):
                # Within the bin: how much of it the others make up for.
                spare, lost = good - target * came, target * bin_came - bin_good
                found = max(found, at * WIDTH + WIDTH * min(1.0, max(0.0, spare) / max(lost, 1e-9)))
                break
            # Bins that nobody was in say nothing for or against others.
            came, good = came + seen, good + self.good[at]
            found = upper
        return min(max(found, CORRECTION_MIN), CORRECTION_MAX)

    def kept(self) -> tuple[list[float], list[float]]:
        """For a file."""
        return list(self.came), list(self.good)

    def recall(self, came: list[float], good: list[float]) -> None:
        """What a file says; what cannot be is left out."""
        for at, (each, well) in enumerate(zip(came[:BINS], good[:BINS], strict=False)):
            if isfinite(each) and 0.0 <= well <= each <= REQUESTS_MAX:
                self.came[at], self.good[at] = each, well

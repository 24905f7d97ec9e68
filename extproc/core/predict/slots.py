"""How many streams one engine decodes at once, where that is fewer than it is said to take.

An engine with S slots (llama.cpp's `--parallel`, a batch of one, a queue of its own before the engine)
accepts more requests than it runs. What it accepts beyond S has its first token only once one of the S has
ended: such a first token is late, it comes within a prefill of an end, and then S are taken. `BLOCKED_MIN` of
those in a row, beside as many as ever were, tell S. One beside more of them refutes it.

How many were taken when its prefill began: at least those that decode when its first token comes. Where the
engine is known to prefill side by side it is all that were placed there before it and had not ended by then
(core/load.py): an engine starts them in order. That is known to about one in ONE_IN, and shows S sooner,
since of the S some prefill while the others decode (simulated, after 100 prompts: of 48 engines 40 for 12).

An engine that is slow, or computes prompts one at a time, has late first tokens as well, but not as a rule
beside the most that it ever had, and right after an end.

Owns what is learnt of this for one endpoint, and when one more than that is tried. In sequences.
"""

from __future__ import annotations

import weakref
from collections import deque

from extproc.core.predict.trials import Trials

#: First tokens in a row that waited for another's end, from which the slots count as known.
BLOCKED_MIN = 3
#: What was taken is known to one in so many: an end may fall just before a start, or just after it.
ONE_IN = 6
#: How late one is to be for that: by this share of what was expected, and by so many milliseconds.
LATE_SHARE, LATE_MS = 0.5, 10.0
#: And how long after an end it comes at most: so many of its prefills, and so many milliseconds.
AFTER_PREFILLS, AFTER_MS = 1.5, 20.0
#: The most that were seen to decode at once count for one to two of these.
PEAK_NS = 60_000_000_000
#: One more is tried again after this, twice as long after each trial in vain.
TRIAL_FIRST_NS, TRIAL_MAX_NS = 2_000_000_000, 64_000_000_000
#: The weight of the last request's time in a slot in their mean.
LIFE_GAIN = 0.1


class SlotsModel:
    """What one pool's engines on one hardware have shown: the prior of each of them."""

    __slots__ = ("_members", "life_ms", "limit")

    def __init__(self) -> None:
        self.limit = 0
        #: How long a request has its slot, in the mean of all that ended.
        self.life_ms = 0.0
        self._members: weakref.WeakSet[Slots] = weakref.WeakSet()

    def join(self, member: Slots) -> None:
        """One more endpoint, for as long as it lives."""
        self._members.add(member)

    def learnt(self) -> None:
        """An endpoint's own limit is another: the others go by the largest."""
        self.limit = max((each.own for each in self._members), default=0)
        for member in self._members:
            member.refresh()


class Slots:
    """`limit` is how many sequences an engine decodes at once; 0 while nothing speaks for a limit.

    `life_ms` is how long a request has its slot, in the mean; 0 unknown.
    """

    __slots__ = (
        "__weakref__",
        "_blocked",
        "_model",
        "_peak",
        "_peak_before",
        "_peak_ns",
        "life_ms",
        "limit",
        "own",
        "trials",
    )

    def __init__(self, model: SlotsModel) -> None:
        self._model = model
        #: By its own first tokens alone.
        self.own = 0
        self.limit = 0
        self.life_ms = 0.0
        self._blocked = deque[int](maxlen=BLOCKED_MIN)
        self._peak = self._peak_before = 0
        self._peak_ns = 0
        #: When one more than the limit is tried.
        self.trials = Trials(TRIAL_FIRST_NS, TRIAL_MAX_NS)
        model.join(self)
        self.refresh()

    def saw(self, taken: int, *, waited: bool, now_ns: int, about: bool = False) -> bool:
        """A first token came whose prefill began beside so many, it included; whether it waited for an end.

        `waited`: it was late, and came right after an end (`after_end`). `about`: `taken` is known to one in
        ONE_IN. True where it waited for a slot.
        """
        most = max(self._peak, self._peak_before)
        slack = most // ONE_IN if about else 0
        if now_ns - self._peak_ns >= PEAK_NS:
            self._peak_before, self._peak, self._peak_ns = self._peak, 0, now_ns
        self._peak = max(self._peak, taken)
        if taken > self.limit + slack and self.limit:
            self.trials.succeeded()
            if self.own:
                self.own = 0
                self._model.learnt()
            self.refresh()
        if taken > most + slack:
            # More than ever: no limit that was thought to be there.
            self._blocked.clear()
            return False
        if not waited:
            if taken >= most:
                self._blocked.clear()
            return False
        if taken < most - slack:
            return False
        self._blocked.append(taken)
        if len(self._blocked) == BLOCKED_MIN:
            own = sorted(self._blocked)[BLOCKED_MIN // 2]
            if own != self.own:
                self.own = own
                self._model.learnt()
        return True

    def refresh(self) -> None:
        """Take what the pool has learnt since: its limit counts where nothing speaks against it here."""
        pool = self._model.limit
        most = max(self._peak, self._peak_before)
        self.limit = self.own or (pool if pool + pool // ONE_IN >= most else 0)

    def ended(self, life_ms: float) -> None:
        """A request was over, and had its slot so long."""
        self.life_ms += (LIFE_GAIN if self.life_ms else 1.0) * (life_ms - self.life_ms)
        model = self._model
        model.life_ms += (LIFE_GAIN if model.life_ms else 1.0) * (life_ms - model.life_ms)

    def expected_life_ms(self, factor: float) -> float:
        """How long a request has its slot; before any ended here, as in its pool, `factor` times as long."""
        return self.life_ms or factor * self._model.life_ms

    def wait_ms(self, taken: int, *, factor: float = 1.0) -> float:
        """How long one more waits for its slot, with so many sequences there: each end makes room for one.

        `factor` is how many times slower than its pool's typical engine this one is.
        """
        if not self.full(taken):
            return 0.0
        return (taken + 1 - self.limit) * self.expected_life_ms(factor) / self.limit

    def full(self, taken: int) -> bool:
        """Whether so many sequences there, waiting or decoding, are all that it decodes at once."""
        return 0 < self.limit <= taken


def after_end(observed_ms: float, expected_ms: float, since_end_ms: float, prefill_ms: float) -> bool:
    """Whether a first token was late, and came so soon after another's end that it may have waited for it.

    `since_end_ms` is the time since the last end there; negative or infinite: none since it was placed.
    """
    late = observed_ms > expected_ms * (1.0 + LATE_SHARE) + LATE_MS
    return late and 0.0 <= since_end_ms <= AFTER_PREFILLS * prefill_ms + AFTER_MS

"""How an engine admits: what a prefill waits for those that were there before it.

The forecast's engine takes one prefill at a time: a prompt's first token comes after the prefills ahead of
it. Real ones may run several side by side (llama.cpp's slots, data-parallel ranks or several cards behind
one port). Here the share of the prefills ahead that a prompt truly waits for is learnt from first tokens,
by how many were ahead:

    observed = (time to first token − own prefill − decode terms) ÷ prefills ahead
    share(q) = the lower third of the last observations with q requests ahead, over `SERIAL_SHARE`, 0 to 1

1 is one at a time (or side by side on one card, which takes as long), 0 is as if nobody else were there.
What is ahead counts without the part of the head's prefill that is over already. The lower third and not
the mean: a prompt that was taken for cached and was not is late as well, but nothing makes a prompt early
behind others on an engine that takes one at a time. Without observations a queue is taken for open
(`PRIOR_SHARE`): a few first tokens correct it, while a bound that is never tried is never found wrong. From
`SERIAL_SHARE` on it counts as 1, so that noise opens nothing. An endpoint's own observations count, and the
pool's until it has enough. Where an agent says that requests wait in the engine, it starts no more of them
now: with W of them waiting the share with q ahead is at least W/q, whatever was learnt. (Foreign traffic that
is not known of makes replicas look slow, and then those that are waited for as if they took all at once.)

The share of a prefill that holds up the streams beside it is learnt from their ends: the median slope
(Theil, Sen) of decode time over prefills of others meanwhile, both in predicted steps. An error of the
predicted step moves all points alike, and no slope.

Owns what is learnt of this, and when a queue that is taken for closed is tried again. Knows no queue itself.
"""

from __future__ import annotations

import weakref
from collections import deque
from itertools import combinations

from extproc.core.predict.trials import Trials

#: Requests ahead, by level: 1, 2, 3 and 4, 5 to 8, 9 and more. An engine may run two at once and no third.
LEVEL_STARTS = (1, 2, 3, 5, 9)
#: Requests ahead that are told apart; more count as so many.
AHEAD_MAX = LEVEL_STARTS[-1]
_LEVEL_OF = tuple(
    max((i for i, start in enumerate(LEVEL_STARTS) if start <= ahead), default=0)
    for ahead in range(AHEAD_MAX + 1)
)
#: The share before anything is known.
PRIOR_SHARE = 0.08
#: From this on an engine counts as one that takes one prefill at a time.
SERIAL_SHARE = 0.6
#: Below this share prompts are prefilled side by side: who comes later delays nobody.
SIDE_BY_SIDE = 0.3
#: Of the observations in order, the one that counts.
QUANTILE = 1 / 3
#: Observations that are remembered at a level, of a pool and of an endpoint; and how many of its own an
#: endpoint has when the pool's no longer count.
POOL_KEPT, OWN_KEPT, OWN_ENOUGH = 16, 9, 3
#: Less ahead than this, in milliseconds, or than this share of its own time, tells nothing.
AHEAD_MS_MIN, AHEAD_SHARE_MIN = 5.0, 0.3
#: Streams that are remembered for what prefills cost them, and pairs of them that tell it: those whose
#: prefills differ by this share of their steps.
STALLS_KEPT, PAIRS_MIN, APART_MIN = 12, 12, 0.3
#: Observations from which a share is evidence, and no prior.
KNOWN_MIN = 2
#: No first token heard of: after so many times its prediction a stream counts as running all the same, where
#: others are heard of; where nobody is and streams have ended so; and while neither is known: engines that
#: nobody hears are started with more, slow ones are not flooded. By `make sim-unlike`.
UNHEARD_STREAM, UNHEARD_NEVER, UNHEARD_FIRST = 3.0, 1.0, 1.5
#: So many streams that ended unheard tell that none will be heard of.
UNHEARD_ENDS = 3
#: A closed queue is tried again after this, twice as long after each trial that finds it closed.
TRIAL_FIRST_NS, TRIAL_MAX_NS = 1_000_000_000, 32_000_000_000


class AdmissionModel:
    """What one pool's engines on one hardware have shown: the prior of each of them."""

    __slots__ = ("_members", "answered", "heard", "missing", "seen", "stalls")

    def __init__(self) -> None:
        #: Whether any endpoint has answered yet, and whether a first token was heard of when it came.
        self.answered = self.heard = False
        #: Streams that ended without that.
        self.missing = 0
        #: The last observations, by level.
        self.seen = [deque[float](maxlen=POOL_KEPT) for _ in LEVEL_STARTS]
        #: And of what a prefill cost a stream.
        self.stalls = deque[tuple[float, float]](maxlen=STALLS_KEPT)
        self._members: weakref.WeakSet[Admission] = weakref.WeakSet()

    @property
    def patience(self) -> float:
        """How many times its prediction a stream's first token is waited for."""
        if self.heard:
            return UNHEARD_STREAM
        return UNHEARD_FIRST if self.missing < UNHEARD_ENDS else UNHEARD_NEVER

    def join(self, member: Admission) -> None:
        """One more endpoint, for as long as it lives."""
        self._members.add(member)

    def answers(self) -> None:
        """One of the endpoints gave a first token: those that have not yet are waited for."""
        if not self.answered:
            self.answered = True
            for member in self._members:
                member.refresh()

    def saw(self, level: int, observed: float) -> None:
        """One observation of any endpoint; told to those that go by the pool's."""
        before = _share(self.seen[level])
        self.seen[level].append(observed)
        # Mostly it stays all or nothing: then nobody need look.
        if len(self.seen[level]) == 1 or _share(self.seen[level]) != before:
            for member in self._members:
                if member.goes_by_pool(level):
                    member.refresh()


class Admission:
    """How one endpoint's engine admits. `shares[q]`, 0 to 1, is for q requests ahead (AHEAD_MAX: and more).

    `shares` are what a forecast multiplies the prefills ahead by; the same list for as long as it lives.
    """

    __slots__ = (
        "__weakref__",
        "_answered",
        "_learnt",
        "_model",
        "_own",
        "_stalls",
        "_waiting",
        "shares",
        "stall",
        "stall_known",
        "trials",
    )

    def __init__(self, model: AdmissionModel) -> None:
        self._model = model
        model.join(self)
        self._own = [deque[float](maxlen=OWN_KEPT) for _ in LEVEL_STARTS]
        self._stalls = deque[tuple[float, float]](maxlen=STALLS_KEPT)
        self.shares = [1.0] * (AHEAD_MAX + 1)
        #: The same as first tokens alone say it.
        self._learnt = list(self.shares)
        #: The share of a prefill that holds up the streams beside it, 0 to 1.
        self.stall = _counted(PRIOR_SHARE)
        #: Whether that rests on evidence, or on so many streams that the prior counts no more.
        self.stall_known = False
        #: When a queue that is taken for closed is tried again.
        self.trials = Trials(TRIAL_FIRST_NS, TRIAL_MAX_NS)
        self._answered = False
        #: How many its engine says wait in it.
        self._waiting = 0
        self.refresh()

    def answers(self) -> None:
        """It gave a first token."""
        if not self._answered:
            self._answered = True
            self.refresh()
            self._model.answers()

    def told(self, waiting: int) -> None:
        """Its agent says that so many requests (ours, others') wait in its engine: it starts no more now."""
        if waiting != self._waiting:
            self._waiting = waiting
            self._apply()

    def saw(self, ahead: int, ahead_ms: float, own_ms: float, waited_ms: float) -> None:
        """A first token came `waited_ms` later than its own `own_ms`, with so much prefill ahead of it."""
        if ahead < 1 or ahead_ms < max(AHEAD_MS_MIN, AHEAD_SHARE_MIN * own_ms):
            return
        level = _LEVEL_OF[min(ahead, AHEAD_MAX)]
        observed = waited_ms / ahead_ms
        self._own[level].append(observed)
        self._model.saw(level, observed)
        self.refresh()
        if self.share(ahead) < 1.0:
            self.trials.succeeded()

    def saw_decode(self, elapsed_ms: float, steps_ms: float, prefills_ms: float) -> None:
        """A stream decoded so long, its steps alone predicted to take `steps_ms`, beside others' prefills."""
        if steps_ms <= 0.0:
            return
        point = prefills_ms / steps_ms, elapsed_ms / steps_ms
        self._stalls.append(point)
        self._model.stalls.append(point)
        slope = _slope(self._stalls)
        if slope is None:
            slope = _slope(self._model.stalls)
        if slope is None:
            # Taken for open at first, as a queue is; for what the forecast's engine does where nothing is
            # told.
            self.stall_known = len(self._model.stalls) >= STALLS_KEPT
            slope = 1.0 if self.stall_known else PRIOR_SHARE
        else:
            self.stall_known = True
        self.stall = _counted(slope)

    def share(self, ahead: int) -> float:
        """The share of the prefills ahead that a prompt waits for, 0 to 1."""
        return self.shares[min(ahead, AHEAD_MAX)]

    def goes_by_pool(self, level: int) -> bool:
        """Whether it has too few observations of its own at a level."""
        return len(self._own[level]) < OWN_ENOUGH

    def refresh(self) -> None:
        """Take what the pool has learnt since."""
        # Who has not answered yet, while others have, may be ill, or slow: it gets one at a time.
        share = _counted(PRIOR_SHARE)
        shares, most = self._learnt, 0.0 if self._answered or not self._model.answered else 1.0
        for level, start in enumerate(LEVEL_STARTS):
            seen = (self._model.seen if self.goes_by_pool(level) else self._own)[level]
            # Of a level that nobody has seen no worse is thought than of the one below it.
            share = _share(seen) if seen else min(share, _counted(PRIOR_SHARE))
            # An engine that waits for one ahead waits for more as well.
            most = max(most, share)
            end = LEVEL_STARTS[level + 1] if level + 1 < len(LEVEL_STARTS) else AHEAD_MAX + 1
            for ahead in range(start, end):
                shares[ahead] = most
        self._apply()

    def _apply(self) -> None:
        """What was learnt, and no less than what waits now. Cheap: each report may say another number."""
        shares, waiting = self.shares, self._waiting
        shares[:] = self._learnt
        for ahead in range(1, AHEAD_MAX + 1) if waiting else ():
            least = waiting / ahead if waiting < ahead else 1.0
            if shares[ahead] < least:
                shares[ahead] = least

    @property
    def side_by_side(self) -> bool:
        """Whether it is known to prefill side by side: who does behind many does behind few as well."""
        shares, seen = self.shares, self._model.seen
        return any(
            shares[at] < SIDE_BY_SIDE and len(seen[i]) >= KNOWN_MIN for i, at in enumerate(LEVEL_STARTS)
        )

    def known(self, ahead: int) -> bool:
        """Whether the share with so many ahead rests on evidence, and not on the prior.

        What is closed with fewer ahead is known to be closed with more.
        """
        level = _LEVEL_OF[min(ahead, AHEAD_MAX)]
        return any(
            len(self._model.seen[i]) >= KNOWN_MIN and (i == level or self.shares[start] >= 1.0)
            for i, start in enumerate(LEVEL_STARTS[: level + 1])
        )


def _slope(points: deque[tuple[float, float]]) -> float | None:
    """The median slope of pairs of points; None for too few."""
    at = [x for x, _ in points]
    if not at or max(at) - min(at) < APART_MIN:
        return None  # of the many pairs none would be
    slopes = sorted(
        [(y - v) / (x - u) for (x, y), (u, v) in combinations(points, 2) if abs(x - u) >= APART_MIN]
    )
    return slopes[len(slopes) // 2] if len(slopes) >= PAIRS_MIN else None


def _share(seen: deque[float]) -> float:
    """The observation that counts, as a share of 0 to 1; the prior's where there is none."""
    return _counted(sorted(seen)[int(QUANTILE * len(seen))] if seen else PRIOR_SHARE)


def _counted(observed: float) -> float:
    """From `SERIAL_SHARE` on 1; 0 at the least."""
    return min(1.0, max(0.0, observed) / SERIAL_SHARE)

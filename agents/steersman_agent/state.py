"""What state a replica is in: a table of what each kind of evidence leads to, and after how often.

Owns the states, the signals and the hysteresis. Pure: no socket, no clock (seconds are handed in).

Each source of evidence (metrics, health, model, generation) feeds a `Channel` of its own and the worst
channel names the replica's state: a metrics page that answers must not make up for a prompt that hangs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum, IntEnum
from typing import Final


class ReplicaState(IntEnum):
    """As in telemetry.proto, number for number."""

    UNKNOWN = 0
    LOADING = 1
    READY = 2
    DEGRADED = 3
    DRAINING = 4
    GONE = 5
    HUNG = 6
    WRONG_MODEL = 7


class Symptom(Enum):
    """One piece of evidence."""

    ANSWERED = "answered"
    #: The engine's counters moved: it works, which says nothing about how well.
    MOVED = "moved"
    #: Answered, but far slower than this replica's own custom.
    SLOW = "slow"
    #: Answered with an error, or says itself that it is unwell.
    UNWELL = "unwell"
    #: Says that it is loading its model.
    LOADING = "loading"
    #: The connection stands and no answer comes.
    TIMED_OUT = "timed out"
    #: Nobody listens.
    REFUSED = "refused"
    WRONG_MODEL = "wrong model"


#: How many of a signal in a row it takes.
SUCCESSES_AFTER_TROUBLE: Final = 2  # to come back from hung or gone
SUCCESSES_AFTER_DEGRADED: Final = 3  # to come back from degraded
FAILURES_TO_DEGRADE: Final = 2
SLOW_TO_DEGRADE: Final = 3
TIMEOUTS_TO_HANG: Final = 2

Rule = tuple[int, ReplicaState]

_HANG: Final[Rule] = (TIMEOUTS_TO_HANG, ReplicaState.HUNG)
_WRONG: Final[Rule] = (1, ReplicaState.WRONG_MODEL)
_LOAD: Final[Rule] = (1, ReplicaState.LOADING)
_LOST: Final[Rule] = (1, ReplicaState.GONE)  # a refused connection is certain: nobody listens
_BAD: Final[Rule] = (FAILURES_TO_DEGRADE, ReplicaState.DEGRADED)

#: state → signal → (how many in a row, next state). A signal that is not listed changes nothing.
TABLE: Final[Mapping[ReplicaState, Mapping[Symptom, Rule]]] = {
    ReplicaState.UNKNOWN: {
        Symptom.ANSWERED: (1, ReplicaState.READY),
        Symptom.MOVED: (1, ReplicaState.READY),
        Symptom.SLOW: (1, ReplicaState.READY),
        Symptom.UNWELL: (1, ReplicaState.DEGRADED),
        Symptom.LOADING: _LOAD,
        Symptom.TIMED_OUT: _HANG,
        Symptom.REFUSED: (1, ReplicaState.LOADING),  # never ready yet: TGI binds its port after warm-up
        Symptom.WRONG_MODEL: _WRONG,
    },
    ReplicaState.LOADING: {
        Symptom.ANSWERED: (1, ReplicaState.READY),
        Symptom.UNWELL: _BAD,
        Symptom.TIMED_OUT: _HANG,
        Symptom.WRONG_MODEL: _WRONG,
    },
    ReplicaState.READY: {
        Symptom.SLOW: (SLOW_TO_DEGRADE, ReplicaState.DEGRADED),
        Symptom.UNWELL: _BAD,
        Symptom.LOADING: _LOAD,
        Symptom.TIMED_OUT: _HANG,
        Symptom.REFUSED: _LOST,
        Symptom.WRONG_MODEL: _WRONG,
    },
    ReplicaState.DEGRADED: {
        Symptom.ANSWERED: (SUCCESSES_AFTER_DEGRADED, ReplicaState.READY),
        Symptom.LOADING: _LOAD,
        Symptom.TIMED_OUT: _HANG,
        Symptom.REFUSED: _LOST,
        Symptom.WRONG_MODEL: _WRONG,
    },
    ReplicaState.HUNG: {
        Symptom.ANSWERED: (SUCCESSES_AFTER_TROUBLE, ReplicaState.READY),
        Symptom.MOVED: (SUCCESSES_AFTER_TROUBLE, ReplicaState.READY),
        Symptom.SLOW: (SUCCESSES_AFTER_TROUBLE, ReplicaState.DEGRADED),
        Symptom.UNWELL: _BAD,
        Symptom.LOADING: _LOAD,
        Symptom.REFUSED: _LOST,
        Symptom.WRONG_MODEL: _WRONG,
    },
    ReplicaState.GONE: {
        Symptom.ANSWERED: (SUCCESSES_AFTER_TROUBLE, ReplicaState.READY),
        Symptom.UNWELL: _BAD,
        Symptom.LOADING: _LOAD,
        Symptom.TIMED_OUT: _HANG,
        Symptom.WRONG_MODEL: _WRONG,
    },
    ReplicaState.WRONG_MODEL: {
        Symptom.ANSWERED: (1, ReplicaState.READY),
        Symptom.LOADING: _LOAD,
        Symptom.REFUSED: _LOST,
    },
}

#: From best to worst; the worst channel names the replica's state.
_SEVERITY: Final = (
    ReplicaState.UNKNOWN,
    ReplicaState.READY,
    ReplicaState.DEGRADED,
    ReplicaState.WRONG_MODEL,
    ReplicaState.HUNG,
    ReplicaState.LOADING,
    ReplicaState.GONE,
)


class Channel:
    """One source of evidence about one replica, walking through TABLE."""

    __slots__ = ("_run", "_toward", "detail", "name", "since_s", "state")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = ReplicaState.UNKNOWN
        self.since_s = 0.0
        #: Why it is in this state; empty when ready.
        self.detail = ""
        #: Where the last signals lead, and how many of them there were.
        self._toward: ReplicaState | None = None
        self._run = 0

    def feed(self, signal: Symptom, now_s: float, detail: str = "") -> bool:
        """Take a signal; whether the state changed."""
        rule = TABLE[self.state].get(signal)
        if rule is None:
            # An answer ends a run of trouble. Counters that moved end a run of silence, and no other:
            # while requests are served, prompts may fail or heal all the same.
            if signal is not Symptom.MOVED or self._toward is ReplicaState.HUNG:
                self._toward, self._run = None, 0
            return False
        needed, toward = rule
        # Counted by where they lead: slow and unwell add up, and so do answers and progress.
        self._run = self._run + 1 if toward is self._toward else 1
        self._toward = toward
        if self._run < needed:
            return False
        self.state, self.since_s, self._toward, self._run = toward, now_s, None, 0
        self.detail = "" if toward is ReplicaState.READY else f"{self.name}: {detail or signal.value}"
        return True

    def reset(self, now_s: float) -> None:
        """Forget everything: the process behind it is another one now."""
        self.state, self.since_s, self.detail = ReplicaState.UNKNOWN, now_s, ""
        self._toward, self._run = None, 0

    @property
    def heading(self) -> bool:
        """Whether the last signals lead elsewhere and more of them are awaited: look again soon."""
        return self._toward is not None


def worst(channels: Iterable[Channel]) -> Channel:
    """The channel that names the replica's state."""
    return max(channels, key=lambda channel: _SEVERITY.index(channel.state))


def shown(state: ReplicaState, *, draining: bool) -> ReplicaState:
    """The state to report: draining covers what would still take work, and hides no trouble."""
    if draining and state in (ReplicaState.READY, ReplicaState.DEGRADED):
        return ReplicaState.DRAINING
    return state

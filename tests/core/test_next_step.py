"""The scheduler says when it must be stepped next, and tells at once of what is due sooner."""

from __future__ import annotations

from extproc.core.ledger import STANDBY_NS
from extproc.core.load import UNHEARD_MIN_NS
from extproc.core.next_step import NextStep
from extproc.core.outcome import End, Hold, Outcome, Routed
from extproc.core.policy import Policy
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import ROUND_NS, STEP_NS, Scheduler
from extproc.core.slo import ClassSpec
from extproc.core.tenant import ANONYMOUS
from tests.stand.schedulers import make_pool, make_scheduler

MS, S = 1_000_000, 1_000_000_000
ASK = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=40, max_new_tokens=5)


class Told:
    """A scheduler of one replica with so many permits, and the times it said that a step is due sooner."""

    def __init__(self, *, permits: int, replicas: int = 1) -> None:
        addresses = [f"10.0.0.{i + 1}:80" for i in range(replicas)]
        policy = Policy(classes=(ClassSpec(hold_ns=3_600 * S),))
        self.scheduler: Scheduler = make_scheduler(make_pool(*addresses, permits=permits), policy=policy)
        self.sooner: list[int] = []
        self.scheduler.next_step.sooner = self.sooner.append

    def ask(self, now_ns: int) -> Routed | Hold:
        decision = self.scheduler.admit(ASK, ANONYMOUS, now_ns=now_ns)
        assert isinstance(decision, Routed | Hold)
        return decision

    def ends(self, routed: Routed, now_ns: int) -> None:
        outcome = Outcome(reservation=routed.reservation, final=True, status=200, end=End.OK)
        self.scheduler.settlement.settle(outcome, now_ns=now_ns)


def test_before_the_first_step_nothing_is_said() -> None:
    """It is due at once anyway."""
    told: list[int] = []
    next_step = NextStep()
    next_step.sooner = told.append
    next_step.by(5)
    assert (next_step.due_ns, told) == (0, [])


def test_where_nobody_asks_there_are_rounds_alone() -> None:
    """Four steps a second, and no word in between."""
    made = Told(permits=1)
    due = [made.scheduler.step(now_ns=S)]
    for _ in range(4):
        due.append(made.scheduler.step(now_ns=due[-1]))
    assert due == [S + (i + 1) * ROUND_NS for i in range(5)]
    assert made.sooner == []


def test_who_waits_is_tried_again_within_a_step() -> None:
    """The next one is said as soon as the first waits, and follows at once while anybody does."""
    made = Told(permits=1)
    made.scheduler.step(now_ns=0)
    routed = made.ask(MS)
    assert isinstance(routed, Routed)
    assert isinstance(made.ask(2 * MS), Hold)
    assert made.sooner[-1] == made.scheduler.next_step.due_ns == 2 * MS + STEP_NS
    said = len(made.sooner)
    assert isinstance(made.ask(3 * MS), Hold)
    assert len(made.sooner) == said
    assert made.scheduler.step(now_ns=2 * MS + STEP_NS) == 2 * MS + 2 * STEP_NS


def test_a_first_token_is_overdue_when_it_is() -> None:
    """Nobody waits: the step comes with the timer and not with the next round, nor for one that has ended."""
    made = Told(permits=8)
    made.scheduler.step(now_ns=0)
    first = made.ask(0)
    assert isinstance(first, Routed)
    # Everybody's first token is waited for so long at the least, and here no longer than one round.
    [due_ns] = made.sooner
    assert UNHEARD_MIN_NS <= due_ns < ROUND_NS
    made.ask(10 * MS)
    assert made.sooner == [due_ns]
    made.ends(first, 20 * MS)
    # The first is gone; the second was asked 10 ms later.
    assert made.scheduler.step(now_ns=due_ns) == due_ns + STEP_NS
    made.scheduler.step(now_ns=due_ns + STEP_NS)
    assert made.scheduler.counts["first_token.overdue"] == 1
    assert made.scheduler.next_step.due_ns == ROUND_NS


def test_what_is_kept_for_retries_is_a_timer_too() -> None:
    """Until it is given back, or the request has ended."""
    made = Told(permits=8, replicas=2)
    routed = made.ask(0)
    assert isinstance(routed, Routed)
    ledger = made.scheduler.ledger
    assert ledger.overdue(now_ns=S)
    assert ledger.next_timer_ns() == STANDBY_NS
    made.ends(routed, 2 * MS)
    assert ledger.next_timer_ns() is None

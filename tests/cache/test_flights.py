"""Single flight: equal requests wait for the first one's answer, and none waits for nothing."""

from __future__ import annotations

import pytest

from extproc.cache.exact import LATE_NS
from extproc.cache.flights import JOINED_BYTES_MAX, JOINED_MAX, LEADERLESS_NS, Flights
from extproc.core.cachekeys import CachedAnswer, CacheRule, WantedAnswer
from tests.stand.cached import Asking, answer_of, body_of

QUESTION, OTHER = ("tenant:a", b"k"), ("tenant:b", b"k")


class Waiting:
    """Flights on a clock of the test's, and what each that waits has heard."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.flights = Flights(lambda: self.now_ns)
        self.heard: dict[str, bool] = {}
        self.names: dict[str, str] = {}

    def join(self, who: str, question: tuple[str, bytes] = QUESTION, *, until_ns: int = 10**12) -> bool:
        def heard(answered: bool) -> None:
            assert who not in self.heard
            self.heard[who] = answered

        self.names[who] = self.flights.join(question, heard, until_ns=until_ns, size=10)
        return bool(self.names[who])

    def step(self, by_ns: int) -> None:
        self.now_ns += by_ns
        self.flights.step(now_ns=self.now_ns)


def test_all_who_wait_get_the_answer() -> None:
    """Of their own question; nobody waits for one that nobody asks, or for another's."""
    waiting = Waiting()
    assert not waiting.join("early")
    waiting.flights.begins(QUESTION, "r1")
    assert waiting.join("a")
    assert waiting.join("b")
    assert not waiting.join("c", OTHER)
    waiting.flights.ends(QUESTION, "r1", answered=True)
    assert waiting.heard == {"a": True, "b": True}
    assert not waiting.join("late")
    assert len(waiting.flights) == 0


def test_a_first_that_failed_lets_the_next_one_go_alone() -> None:
    """And the one after it when that has failed too; the rest get the answer of whoever gets one."""
    waiting = Waiting()
    waiting.flights.begins(QUESTION, "r1")
    for who in "abc":
        waiting.join(who)
    waiting.flights.ends(QUESTION, "r9", answered=False)
    assert waiting.heard == {}
    waiting.flights.ends(QUESTION, "r1", answered=False)
    assert waiting.heard == {"a": False}
    waiting.flights.begins(QUESTION, "r2")
    waiting.step(LEADERLESS_NS * 2)
    assert waiting.heard == {"a": False}
    waiting.flights.ends(QUESTION, "r2", answered=False)
    waiting.flights.begins(QUESTION, "r3")
    waiting.flights.ends(QUESTION, "r3", answered=True)
    assert waiting.heard == {"a": False, "b": False, "c": True}


def test_one_that_was_let_go_and_never_sent_holds_up_nobody() -> None:
    """It was turned away: a second later the next one goes."""
    waiting = Waiting()
    waiting.flights.begins(QUESTION, "r1")
    waiting.join("a")
    waiting.join("b")
    waiting.flights.ends(QUESTION, "r1", answered=False)
    waiting.step(LEADERLESS_NS - 1)
    assert waiting.heard == {"a": False}
    waiting.step(1)
    assert waiting.heard == {"a": False, "b": False}
    assert not waiting.join("c")


def test_an_answer_may_come_right_after_its_record() -> None:
    """Until a second has passed; then the next one goes."""
    for passes_ns, answered in ((LEADERLESS_NS - 1, True), (LEADERLESS_NS, False)):
        waiting = Waiting()
        waiting.flights.begins(QUESTION, "r1")
        waiting.join("a")
        waiting.flights.late(QUESTION, "r1")
        waiting.step(passes_ns)
        waiting.flights.ends(QUESTION, "r1", answered=True)
        assert waiting.heard == {"a": answered}


def test_nobody_waits_longer_than_it_may() -> None:
    """It goes on by itself, whatever becomes of the first; one that may not wait at all does not."""
    waiting = Waiting()
    waiting.flights.begins(QUESTION, "r1")
    assert not waiting.join("never", until_ns=0)
    waiting.join("a", until_ns=100)
    waiting.join("b", until_ns=200)
    waiting.step(150)
    assert waiting.heard == {"a": False}
    waiting.flights.ends(QUESTION, "r1", answered=True)
    assert waiting.heard == {"a": False, "b": True}


def test_one_that_leaves_hears_nothing() -> None:
    """Nor does it leave anything behind."""
    waiting = Waiting()
    waiting.flights.begins(QUESTION, "r1")
    waiting.join("a")
    waiting.flights.leave(waiting.names["a"])
    waiting.flights.leave(waiting.names["a"])
    waiting.flights.ends(QUESTION, "r1", answered=False)
    assert waiting.heard == {}
    assert not waiting.flights._flights
    assert waiting.flights._bytes == 0


def test_so_many_wait_and_no_more() -> None:
    """By number and by the bytes of their bodies; who comes then is sent as well."""
    waiting = Waiting()
    waiting.flights.begins(QUESTION, "r1")
    big = waiting.flights.join(QUESTION, lambda _: None, until_ns=1, size=JOINED_BYTES_MAX)
    assert big
    assert not waiting.join("a")
    waiting.flights.leave(big)
    for i in range(JOINED_MAX):
        assert waiting.join(str(i))
    assert not waiting.join("more")


def made() -> Asking:
    return Asking({name: CacheRule(scope=f"tenant:{name}") for name in ("a", "b")})


def wanted(asking: Asking, tenant: str) -> WantedAnswer:
    found = asking.look(tenant, body_of())
    assert isinstance(found, WantedAnswer)
    return found


def test_joined_answers_are_ones_own_and_counted() -> None:
    """Another tenant's equal request is none to wait for; the answer is the first one's, to the byte."""
    asking, told = made(), list[CachedAnswer | None]()
    first = wanted(asking, "a")
    asking.cache.flagged("r1", "a", first)
    other = wanted(asking, "b")
    assert not asking.cache.join(other, "b", until_ns=10**12, size=1, tell=told.append)
    assert asking.cache.join(wanted(asking, "a"), "a", until_ns=10**12, size=1, tell=told.append)
    asking.cache.fill("r1", answer_of("yes"))
    assert [each.body for each in told if each is not None] == [answer_of("yes")]
    assert (asking.outcome("a", "joined"), asking.cache.saved["a"].hits) == (1, 1)


@pytest.mark.parametrize("fails", ["bad", "gone", "late", "none"])
def test_each_way_to_fail_lets_the_next_go(fails: str) -> None:
    """A bad answer, a client that left, a reservation that expired, a record without an answer."""
    asking, told = made(), list[CachedAnswer | None]()
    asking.cache.flagged("r1", "a", wanted(asking, "a"))
    asking.cache.join(wanted(asking, "a"), "a", until_ns=10**15, size=1, tell=told.append)
    match fails:
        case "bad":
            asking.cache.fill("r1", b"{}")
        case "gone":
            asking.cache.gone("r1")
        case "late":
            asking.cache.settled("r1", gpu_ms=0.0)
            asking.now_ns += LEADERLESS_NS
            asking.cache.step(now_ns=asking.now_ns)
        case _:
            asking.cache.settled("r1", gpu_ms=0.0)
            asking.now_ns += LATE_NS
            asking.cache.step(now_ns=asking.now_ns)
    assert told == [None]
    assert asking.outcome("a", "waited") == 1


def test_a_tenant_may_have_none_wait() -> None:
    """`join: false`."""
    asking = Asking({"a": CacheRule(scope="tenant:a", joins=False)})
    asking.cache.flagged("r1", "a", wanted(asking, "a"))
    assert not asking.cache.join(wanted(asking, "a"), "a", until_ns=10**12, size=1, tell=lambda _: None)

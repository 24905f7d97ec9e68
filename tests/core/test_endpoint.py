from __future__ import annotations

import pytest

from extproc.core.endpoint import (
    SUSPECT_FIRST_NS,
    SUSPECT_MAX_NS,
    WEIGHT_MIN,
    Endpoint,
    Member,
)
from extproc.core.health import Cause, CauseKind
from extproc.core.reports import ReplicaReport


def endpoint() -> Endpoint:
    return Endpoint(address="10.0.0.1:80", pool="p", max_concurrent=8)


def says(**fields: object) -> ReplicaReport:
    return ReplicaReport(address="10.0.0.1:80", pool="p", **fields)  # type: ignore[arg-type]


def test_never_seen_is_no_report() -> None:
    """What nobody spoke of has no report and no age, not an idle one."""
    fresh = endpoint()
    assert (fresh.report, fresh.reported_ns, fresh.stale) == (None, None, False)
    assert (fresh.ready, fresh.weight) == (True, 1.0)


def test_an_idle_claim_attracts_nothing() -> None:
    """A report never takes away what our own ledger and the peers' know."""
    one = endpoint()
    one.requests, one.permits, one.tokens = 5, 5, 5000
    one.peer_requests, one.peer_permits, one.peer_tokens = 2, 2, 700
    for second in range(5):
        one.heard(says(running=0, waiting=0), now_ns=second)
    assert (one.load_requests, one.load_permits, one.tokens + one.peer_tokens) == (7, 7, 5700)


def test_foreign_requests_count_once_they_have_stayed() -> None:
    """The smallest surplus of three reports: one that has just ended here is not somebody else's."""
    one = endpoint()
    one.requests = one.permits = 2
    for running, foreign in ((9, 0), (4, 0), (6, 2), (7, 2), (5, 3), (2, 0)):
        one.heard(says(running=running, waiting=0), now_ns=0)
        assert one.foreign == foreign
    for _ in range(3):
        one.heard(says(running=3, waiting=1), now_ns=0)
    assert (one.load_requests, one.load_permits) == (4, 4)
    assert one.foreign == 2


def test_sequences_of_one_request_are_not_foreign() -> None:
    """A request for four sequences is four in the engine's figures, as in our permits."""
    one = endpoint()
    one.requests, one.permits = 1, 4
    for _ in range(3):
        one.heard(says(running=4, waiting=0), now_ns=0)
    assert one.foreign == 0


def test_an_engine_that_does_not_say_has_nothing_foreign() -> None:
    """Absent is not zero and not the last figure either."""
    one = endpoint()
    for _ in range(3):
        one.heard(says(running=6), now_ns=0)
    assert one.foreign == 6
    one.heard(says(), now_ns=0)
    assert one.foreign == 0
    one.heard(says(waiting=6), now_ns=0)
    assert one.foreign == 0, "it begins to count anew"


def test_what_waits_in_an_engine_is_known_while_it_says_so() -> None:
    """By its last report; of one that does not say, or that nobody hears of any more, nothing is."""
    one = endpoint()
    for report, waiting in ((says(waiting=3), 3), (says(running=6, waiting=1), 1), (says(running=6), 0)):
        one.heard(report, now_ns=0)
        assert one.waiting == waiting
        assert (one.admission.share(1) == 1.0) is (waiting > 0)
    one.heard(says(waiting=3), now_ns=0)
    one.forget_foreign()
    assert (one.waiting, one.admission.share(1) < 1.0) == (0, True)


@pytest.mark.parametrize(("said", "limit"), [(None, 8), (4, 4), (8, 8), (1000, 8), (0, 1)])
def test_the_lower_limit_counts(said: int | None, limit: int) -> None:
    """An engine's own permit count lowers the configured one and never raises it."""
    one = endpoint()
    one.heard(says(max_concurrent=said), now_ns=0)
    assert one.max_concurrent == limit
    one.listed(Member("10.0.0.1:80", max_concurrent=100), "p")
    assert one.max_concurrent == (100 if said is None else max(1, min(said, 100)))


def test_ready_and_weight_follow_health_and_drain() -> None:
    """Silenced at zero, drained by order, never a weight of zero."""
    one = endpoint()
    one.health.value = 0.5
    one.refresh()
    assert (one.ready, one.weight) == (True, 0.5)
    one.draining = True
    one.refresh()
    assert not one.ready
    one.draining = False
    one.health.set("state", Cause(CauseKind.HARD, 0.0))
    one.health.silence(now_ns=1)
    one.refresh()
    assert (one.ready, one.weight) == (False, WEIGHT_MIN)


def test_suspicion_after_failures_doubles_and_ends() -> None:
    """Failures while it is suspect count once; each later one lasts twice as long, to a bound."""
    one = endpoint()
    one.failed(0)
    one.failed(1)
    assert one.suspect_until_ns == SUSPECT_FIRST_NS
    one.failed(SUSPECT_FIRST_NS)
    assert one.suspect_until_ns == 3 * SUSPECT_FIRST_NS
    for _ in range(30):
        one.failed(one.suspect_until_ns)
    before = one.suspect_until_ns
    one.failed(before)
    assert one.suspect_until_ns == before + SUSPECT_MAX_NS
    one.succeeded()
    assert (one.failures, one.suspect_until_ns) == (0, 0)

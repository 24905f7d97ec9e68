"""Where we were away ourselves nobody's silence counts, until there was time to be heard."""

from __future__ import annotations

from extproc.core.absence import AWAY_NS, HEARING_NS, JUDGING_NS, Absence
from extproc.core.diagnosis import STALE_NS
from extproc.core.fleet import Fleet
from extproc.core.reports import ReplicaReport, ReportedState
from tests.stand.schedulers import make_pool

S, MS = 1_000_000_000, 1_000_000
ADDRESSES = ("10.0.0.1:80", "10.0.0.2:80")


def test_ages_stand_still_from_when_we_left_until_we_have_heard() -> None:
    """A short delay is none of it."""
    absence = Absence()
    absence.away(since_ns=10 * S, now_ns=10 * S + AWAY_NS - 1)
    assert absence.as_of_ns(now_ns=10 * S + AWAY_NS) == 10 * S + AWAY_NS
    absence.away(since_ns=20 * S, now_ns=50 * S)
    assert absence.as_of_ns(now_ns=50 * S + HEARING_NS - 1) == 20 * S
    assert absence.as_of_ns(now_ns=50 * S + HEARING_NS) == 50 * S + HEARING_NS
    assert absence.count == 1


def test_who_is_always_late_judges_half_of_the_time() -> None:
    """Never blind: an allowance is followed by as long a time without one."""
    absence, judged, now_ns = Absence(), 0, 0
    for _ in range(100):
        absence.away(since_ns=now_ns, now_ns=now_ns + S)
        now_ns += S
        judged += absence.as_of_ns(now_ns=now_ns) == now_ns
    share = JUDGING_NS / (HEARING_NS + JUDGING_NS)
    assert 100 * share - 2 <= judged <= 100 * share + 2


def reported() -> Fleet:
    """Two replicas of which an agent has just spoken."""
    fleet = Fleet([make_pool(*ADDRESSES)])
    for step in range(20):
        if step % 5 == 0:
            for address in ADDRESSES:
                report = ReplicaReport(address=address, pool="p", state=ReportedState.READY)
                fleet.heard(report, now_ns=step * 200 * MS)
        fleet.step(now_ns=step * 200 * MS)
    return fleet


def test_a_stall_of_ours_takes_no_health_away() -> None:
    """A minute later all telemetry is old, and none of it is doubted before the agents had time to speak."""
    left_ns = 20 * 200 * MS
    for told in (True, False):
        fleet = reported()
        back_ns = left_ns + 60 * S
        if told:
            fleet.absence.away(since_ns=left_ns, now_ns=back_ns)
        for now_ns in range(back_ns, back_ns + S, 200 * MS):
            fleet.step(now_ns=now_ns)
        assert [each.stale for each in fleet.endpoints] == [not told] * 2
        assert [each.health.value == 1.0 for each in fleet.endpoints] == [told] * 2
        assert fleet.pools["p"].blind is not told


def test_an_agent_that_stays_silent_is_doubted_after_it() -> None:
    """The allowance ends."""
    fleet = reported()
    back_ns = 60 * S
    fleet.absence.away(since_ns=4 * S, now_ns=back_ns)
    for now_ns in range(back_ns, back_ns + HEARING_NS + STALE_NS, 200 * MS):
        fleet.step(now_ns=now_ns)
    assert all(each.stale and each.health.value < 1.0 for each in fleet.endpoints)

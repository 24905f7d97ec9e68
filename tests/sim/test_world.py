"""The world keeps its promises: nothing is lost or counted twice, the same seed is the same world."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.strategies import PEERS, STRATEGIES
from extproc.lab.report import SLO_8B, figures
from extproc.lab.workload import Workload, poisson, sessions
from extproc.sim.capacity import capacity
from extproc.sim.world import ORACLE, Result, Setting, WorldFault, parse_fleet, run
from extproc.sim.world.run import CLASSICS
from extproc.sim.world.world import Delays
from tests.stand.examples import examples

FLEET = parse_fleet("2*a100-80g/llama-3-8b")
S = 1_000_000_000
TTL_S = 600


def made(load: float, *, seed: int = 1, requests: int = 120, prefixes: bool = False) -> Workload:
    """A short workload at a load of the small fleet."""
    drawn = (sessions if prefixes else poisson)(10.0, seed=seed, duration_s=requests / 8, limit=requests)
    return drawn.rescaled(load * capacity(FLEET.shares, drawn))


def attained(result: Result) -> float:
    """Per cent."""
    return 100 * figures(result.served, slo=SLO_8B).attainment


@pytest.mark.parametrize("strategy", [*STRATEGIES, *CLASSICS, ORACLE])
def test_every_arrival_ends_once_and_the_books_are_empty(strategy: str) -> None:
    """Each strategy answers for every request, in order, and leaves nothing in the ledger or the queue."""
    workload = made(1.5, requests=70, prefixes=True)
    result = run(workload, FLEET, Setting(strategy=strategy))
    assert [row.arrival for row in result.served] == list(workload.arrivals)
    for row in result.served:
        assert row.end_ns >= row.arrival.at_ns
        assert row.outcome != "ok" or row.arrival.at_ns <= row.decided_ns < row.first_ns <= row.end_ns
        assert (row.outcome == "ok") == (row.first_ns >= 0)
    scheduler = result.scheduler
    assert len(scheduler.ledger) == 0
    assert [
        (e.permits, e.load.queued, e.load.streaming, e.load.reserved_tokens)
        for e in scheduler.fleet.endpoints
    ] == [(0, 0, 0, 0)] * 2
    assert scheduler.dispatcher.queue.by_pool_count("sim") == 0


@pytest.mark.parametrize("strategy", ["steer", ORACLE, "llmd-default", "envoy-random"])
def test_the_same_seed_is_the_same_world(strategy: str) -> None:
    """Two runs agree in every nanosecond; another seed does not."""
    workload = made(1.1, requests=60)
    first, again, other = (run(workload, FLEET, Setting(strategy=strategy, seed=seed)) for seed in (3, 3, 4))
    assert first.served == again.served
    assert first.busy_ns == again.busy_ns
    assert first.served != other.served


@pytest.mark.parametrize("peer", [*(peer.name for peer in PEERS), *CLASSICS])
def test_peers_never_hold(peer: str) -> None:
    """Another project's policy decides on arrival, however full the engines are."""
    result = run(made(2.0), FLEET, Setting(strategy=peer))
    assert {row.decided_ns - row.arrival.at_ns for row in result.served} == {0}
    assert not any(row.outcome == "shed" for row in result.served)


def test_ours_holds_and_sheds_under_overload() -> None:
    """The default waits with what nobody would start, and says 429 to what waited too long."""
    result = run(made(2.5, requests=600), FLEET, Setting(strategy="steer"))
    assert any(row.decided_ns > row.arrival.at_ns for row in result.served)
    shed = [row for row in result.served if row.outcome == "shed"]
    assert shed
    assert all((row.end_ns - row.arrival.at_ns) / 1e6 <= 9_300 for row in shed)


def test_peers_meet_the_permits_of_the_engine_alone() -> None:
    """An engine's own limit refuses a peer's request inside the stream, and never one of ours."""
    few = FLEET.permitting(4)
    peer = run(made(1.0), few, Setting(strategy="round-robin"))
    ours = run(made(1.0), few, Setting(strategy="round_robin"))
    assert Counter(row.outcome for row in peer.served)["refused"] > 0
    assert Counter(row.outcome for row in ours.served)["refused"] == 0


@examples(8)
@given(
    event_loss=st.floats(0, 1),
    report_loss=st.floats(0, 1),
    record_loss=st.floats(0, 1),
    seed=st.integers(1, 99),
)
def test_what_is_lost_on_the_way_expires(
    event_loss: float, report_loss: float, record_loss: float, seed: int
) -> None:
    """Lost first tokens, reports and records wedge nothing: all end, and the books empty with the time."""
    workload = made(0.7, seed=seed, requests=80)
    delays = Delays(event_loss=event_loss, report_loss=report_loss, record_loss=record_loss)
    result = run(workload, FLEET, Setting(strategy="steer", seed=seed, delays=delays))
    assert [row.arrival for row in result.served] == list(workload.arrivals)
    scheduler = result.scheduler
    scheduler.step(now_ns=max(row.end_ns for row in result.served) + (TTL_S + 1) * S)
    assert len(scheduler.ledger) == 0
    assert all(e.permits == 0 for e in scheduler.fleet.endpoints)


def test_all_reports_late_or_lost_change_little() -> None:
    """Our own ledger carries the decisions: without telemetry attainment stays."""
    workload = made(0.8, requests=200)
    fresh, late, never = (
        attained(run(workload, FLEET, Setting(strategy="steer", delays=delays)))
        for delays in (Delays(), Delays(report_delay_ms=1_000.0), Delays(report_interval_ms=0.0))
    )
    assert late >= fresh - 2
    assert never >= fresh - 2


def test_a_hang_that_ends_delays_and_loses_nothing() -> None:
    """What a hung replica held is answered after it; meanwhile the other one works."""
    workload = made(0.6, requests=200)
    hang = [WorldFault(at_s=2.0, replica=0, hang=True), WorldFault(at_s=6.0, replica=0, hang=False)]
    result = run(workload, FLEET, Setting(strategy="steer", faults=hang))
    assert {row.outcome for row in result.served} <= {"ok", "shed"}
    answered = Counter(row.endpoint for row in result.served if 2 * S < row.first_ns < 6 * S)
    assert answered[FLEET.replicas[0][0]] == 0
    assert answered[FLEET.replicas[1][0]] > 0
    assert any(row.first_ns > 6 * S for row in result.served if row.endpoint == FLEET.replicas[0][0])


def test_a_hang_for_good_fails_what_it_held() -> None:
    """A request that never ends counts as failed at the end of the grace."""
    result = run(
        made(0.5, requests=60),
        FLEET,
        Setting(strategy="round-robin", faults=[WorldFault(at_s=0.0, replica=1, hang=True)]),
    )
    ends = Counter(row.outcome for row in result.served)
    assert ends == {"ok": 30, "failed": 30}


def test_a_refusing_replica() -> None:
    """Refusals inside the stream are counted as such, and the other replica answers."""
    result = run(
        made(0.5, requests=60),
        FLEET,
        Setting(strategy="round-robin", faults=[WorldFault(at_s=0.0, replica=0, refuse=True)]),
    )
    by_outcome = {(row.outcome, row.endpoint) for row in result.served}
    assert ("refused", FLEET.replicas[0][0]) in by_outcome
    assert ("ok", FLEET.replicas[1][0]) in by_outcome
    assert ("ok", FLEET.replicas[0][0]) not in by_outcome


def test_a_slowdown_moves_work_away() -> None:
    """A replica that becomes five times slower is given less by the default."""
    workload = made(0.6, requests=150)
    calm = run(workload, FLEET, Setting(strategy="steer", model_error=0.0))
    slow = run(
        workload,
        FLEET,
        Setting(strategy="steer", model_error=0.0, faults=[WorldFault(at_s=0.0, replica=0, slowdown=5.0)]),
    )
    address = FLEET.replicas[0][0]
    before, after = (sum(row.endpoint == address for row in one.served) for one in (calm, slow))
    assert after < 0.7 * before


def test_the_oracle_bounds_the_default() -> None:
    """With nothing to guess the same policy is not worse by more than a point."""
    workload = made(1.1, requests=250)
    ours, oracle = (attained(run(workload, FLEET, Setting(strategy=name))) for name in ("steer", ORACLE))
    assert oracle >= ours - 1.0


def test_busy_time_is_the_time_with_work() -> None:
    """A lone request keeps one replica busy from the hop's end to its last token, and the other never."""
    workload = made(0.5, requests=1 + 1).head(1)
    result = run(workload, FLEET, Setting(strategy="steer", delays=Delays(event_ms=0.0)))
    (row,) = result.served
    busy = result.busy_ns[row.endpoint]
    assert busy == row.end_ns - row.decided_ns - 500_000
    assert sum(result.busy_ns.values()) == busy


def test_an_empty_workload_is_no_run() -> None:
    """Nothing arrives, nothing is served."""
    assert run(replace(made(0.5), arrivals=()), FLEET, Setting(strategy="steer")).served == []

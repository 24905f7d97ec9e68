"""What is out of the ordinary in a world happens, and what it hides is hidden."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from extproc.core.outcome import Outcome
from extproc.core.scheduler import Scheduler
from extproc.core.settlement import Settlement
from extproc.lab.report import SLO_8B, figures
from extproc.lab.workload import Workload, poisson, sessions
from extproc.sim.arrival import Arrival
from extproc.sim.capacity import capacity
from extproc.sim.world import FleetError, Result, Setting, parse_fleet, run
from extproc.sim.world.fleets import UNLIKE
from extproc.sim.world.upsets import foreign_requests
from extproc.sim.world.world import Delays

PLAIN = "2*a100-80g/llama-3-8b"


def made(fleet: str, *, load: float = 0.6, requests: int = 200, prefixes: bool = False) -> Workload:
    drawn = (sessions if prefixes else poisson)(10.0, seed=1, duration_s=requests / 8, limit=requests)
    held = parse_fleet(fleet)
    return drawn.rescaled(load * held.own_share * capacity(held.shares, drawn))


def played(fleet: str, strategy: str = "steer", **of: object) -> Result:
    return run(made(fleet, **of), parse_fleet(fleet), Setting(strategy=strategy))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", UNLIKE)
def test_every_arrival_ends_once_on_every_engine(name: str) -> None:
    """And the books are empty: nothing out of the ordinary loses or doubles a request."""
    fleet = parse_fleet(name).scaled(2)
    drawn = sessions(10.0, seed=1, duration_s=20.0, limit=40)
    workload = drawn.rescaled(0.8 * fleet.own_share * capacity(fleet.shares, drawn))
    result = run(workload, fleet, Setting(strategy="steer"))
    assert [row.arrival for row in result.served] == list(workload.arrivals)
    assert len(result.scheduler.ledger) == 0
    assert Counter(row.outcome for row in result.served)["ok"] > 10


def watched(monkeypatch: pytest.MonkeyPatch, fleet: str) -> tuple[list[Outcome], list[str]]:
    """The records and the first tokens that a scheduler is told of."""
    records: list[Outcome] = []
    firsts: list[str] = []
    settle, first_token = Settlement.settle, Settlement.first_token

    def noted(self: Settlement, outcome: Outcome, *, now_ns: int) -> bool:
        records.append(outcome)
        return settle(self, outcome, now_ns=now_ns)

    def heard(self: Settlement, reservation_id: str, **more: Any) -> bool:
        firsts.append(reservation_id)
        return first_token(self, reservation_id, **more)

    monkeypatch.setattr(Settlement, "settle", noted)
    monkeypatch.setattr(Settlement, "first_token", heard)
    played(fleet, requests=40)
    return records, firsts


@pytest.mark.parametrize(
    ("setting", "usage", "heard"),
    [("", True, True), (":usage=false", False, True), (":heard=false", True, False)],
)
def test_what_is_not_told_is_not_told(
    monkeypatch: pytest.MonkeyPatch, setting: str, usage: bool, heard: bool
) -> None:
    """No tokens in any record; or no first token, neither at once nor in the record."""
    records, firsts = watched(monkeypatch, PLAIN + setting)
    assert len(records) == 40
    assert {record.output_tokens is not None for record in records} == {usage}
    assert {record.ttft_ns is not None for record in records} == {heard}
    assert bool(firsts) == heard


def reports(fleet: str) -> Scheduler:
    return played(fleet, requests=120, load=1.2).scheduler


def test_agents_are_absent_hidden_or_late() -> None:
    """None is heard of; what waits is not said; a report is as old as it is late."""
    assert [e.report for e in reports(PLAIN + ":agent=false").fleet.endpoints] == [None, None]
    hidden = reports(PLAIN + ":hidden=true").fleet.endpoints
    assert [e.report and e.report.waiting for e in hidden] == [None, None]
    assert all(e.report and e.report.running is not None for e in hidden)
    plain, late = reports(PLAIN), reports(PLAIN + ":late_s=1000")
    assert all(e.report is not None for e in plain.fleet.endpoints)
    assert [e.report for e in late.fleet.endpoints] == [None, None]


def test_503s_are_tried_elsewhere_and_fail_in_the_end() -> None:
    """Half of one replica's attempts cost nothing but a hop; where every attempt fails, all requests do."""
    half = played("1*a100-80g/llama-3-8b,1*a100-80g/llama-3-8b:errors=0.5")
    assert {row.outcome for row in half.served} == {"ok"}
    all_of_them = played(PLAIN + ":errors=1", requests=40)
    assert {row.outcome for row in all_of_them.served} <= {"failed", "shed"}
    assert any(row.outcome == "failed" for row in all_of_them.served)


def test_others_take_half_of_the_time() -> None:
    """With as much of others' work again a replica that is seldom busy is busy for nearly twice as long."""
    own = made(PLAIN, requests=100, load=0.03)
    alone = run(own, parse_fleet(PLAIN), Setting(strategy="round_robin"))
    shared = run(own, parse_fleet(PLAIN + ":foreign=0.5"), Setting(strategy="round_robin"))
    assert 1.4 < sum(shared.busy_ns.values()) / sum(alone.busy_ns.values()) < 2.2
    assert len(shared.served) == 100


def test_others_ask_as_often_as_is_said() -> None:
    """`per_own` for each of ours, with prefixes that are none of ours."""
    arrivals = [Arrival(at * 10_000_000, "t", 100, 5, None, (1, 2)) for at in range(4_000)]
    found = list(foreign_requests(arrivals, 0.5, Random(1)))
    assert 1_800 < len(found) < 2_200
    assert [at for at, _ in found] == sorted(at for at, _ in found)
    assert {request.blocks for _, request in found} == {(("foreign", 1), ("foreign", 2))}
    assert list(foreign_requests(arrivals, 0.0, Random(1))) == []


def test_a_change_of_speed_happens_and_is_looked_for() -> None:
    """From then on requests take longer, and what the scheduler predicts comes near in the end."""
    fleet = "1*a100-80g/llama-3-8b,1*a100-80g/llama-3-8b:change=3"
    workload = made(fleet, load=0.4, requests=600)
    result = run(workload, parse_fleet(fleet), Setting(strategy="steer"))
    assert list(result.change_known_s) == ["10.0.0.2:80"]
    known_s = result.change_known_s["10.0.0.2:80"]
    assert known_s is not None
    assert known_s > 0.0
    found = figures(result.served, slo=SLO_8B, change_known_s=result.change_known_s)
    assert (found.change_known_s, found.change_unknown) == (known_s, 0)
    never = figures(result.served, slo=SLO_8B, change_known_s={"a": None, "b": 2.0})
    assert (never.change_known_s, never.change_unknown) == (2.0, 1)


def test_a_stall_delays_what_runs() -> None:
    """The longest answer takes as long as a stall at least."""
    plain, stalled = (
        max(row.end_ns - row.first_ns for row in played(PLAIN + setting, requests=120).served)
        for setting in ("", ":stall_s=5:stall_every_s=10")
    )
    assert stalled > plain + 4_000_000_000


def shed_by(told: Callable[[Scheduler], object], monkeypatch: pytest.MonkeyPatch) -> Result:
    """A run in which the scheduler believes something of its endpoints that is not so."""
    made_by = Scheduler.__init__

    def believing(self: Scheduler, *given: object, **named: object) -> None:
        made_by(self, *given, **named)  # type: ignore[arg-type]
        told(self)

    monkeypatch.setattr(Scheduler, "__init__", believing)
    return run(
        made(PLAIN, requests=40, load=0.2),
        parse_fleet(PLAIN),
        Setting(strategy="steer", delays=Delays(report_interval_ms=0.0)),
    )


def test_what_is_shed_while_a_replica_is_idle_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the gateway believes: here it takes every permit for gone."""

    def full(scheduler: Scheduler) -> None:
        for endpoint in scheduler.fleet.endpoints:
            endpoint.peer_permits = endpoint.max_concurrent

    result = shed_by(full, monkeypatch)
    shed = [row for row in result.served if row.outcome == "shed"]
    assert shed
    assert all(row.while_idle and row.while_room for row in shed)
    found = figures(result.served, slo=SLO_8B)
    assert (found.shed_idle, found.shed_room) == (len(shed), len(shed))


def test_what_is_shed_under_overload_was_shed_by_busy_replicas() -> None:
    """No replica idles while the default turns requests away."""
    found = figures(played(PLAIN, load=3.0, requests=250).served, slo=SLO_8B)
    assert found.shed > 20
    assert found.shed_idle == 0


def test_predictions_are_judged_from_dispatch() -> None:
    """The error of the first tokens is there for who predicts, and small on engines as modelled."""
    found = figures(played(PLAIN, load=0.5).served, slo=SLO_8B).ttft_error
    assert found is not None
    assert 0.0 < found < 0.3


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("errors=2", "errors must lie in 0..1"),
        ("foreign=1", "foreign must lie in 0..1, below 1"),
        ("stall_s=60", "stall_s .60. must be below"),
        ("change=0", "change must be above 0"),
        ("told=b200", "told: unknown hardware"),
        ("order=lifo", "queue_order must be one of"),
        ("interference=2", "prefill_interference must lie"),
        ("budget=0", "budget must be positive"),
    ],
)
def test_mistakes_of_fleets_are_named(setting: str, said: str) -> None:
    """With what would do."""
    with pytest.raises(FleetError, match=said):
        parse_fleet(f"{PLAIN}:{setting}")


def test_load_one_is_what_the_engine_can_bear() -> None:
    """One sequence at a time bears less than a batch, two cards more than one, lanes on one card as one."""
    drawn = poisson(10.0, seed=1, duration_s=30.0, limit=200)

    def rate(setting: str) -> float:
        return capacity(parse_fleet(PLAIN + setting).shares, drawn)

    assert rate(":batch=1") < rate("") / 4
    assert rate(":parallel=2") > 1.5 * rate("")
    assert rate(":parallel=8:interference=1") == pytest.approx(rate(""))


def test_the_gateway_is_told_the_wrong_card() -> None:
    """Its member has the card that is said, and the replica the speed that is so."""
    fleet = parse_fleet("1*h100-80g/llama-3-8b:told=a100-80g/llama-3-8b")
    assert "A100" in fleet.members()[0].hardware
    assert fleet.groups[0].timing.name.startswith("h100")

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from recorded_traffic import record

from extproc.core.predict.prior import prior
from extproc.lab.capacity.cheapest import FewestReplicas, cheapest, fewest
from extproc.lab.capacity.choice import FleetChoice, busiest, planned
from extproc.lab.capacity.figures import binding_of, play_fleet
from extproc.lab.capacity.model import modelled
from extproc.lab.capacity.plays import FleetPlays
from extproc.lab.capacity.plot import plot_fleets
from extproc.lab.replay.fit import fitted
from extproc.lab.replay.log import LogError, read
from extproc.lab.replay.play import play
from extproc.lab.replay.rebuild import Scene, scene
from extproc.sim.served import met

CARD = "NVIDIA A100-SXM4-80GB"


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """160 requests that came to three A100, ten a second each."""
    path = tmp_path_factory.mktemp("record") / "record.jsonl"
    record(path, requests=160, per_s=25.0)
    return scene(read(path))


def test_as_recorded_is_the_replay(there: Scene) -> None:
    """A fleet of which nothing is changed attains what `replay` says of it, request by request."""
    fleet = planned(there, FleetChoice())
    assert fleet.replicas == 3
    assert fleet.hardware == CARD
    assert fleet.cost_per_hour == pytest.approx(6.0)
    slo = {spec.name: spec for spec in there.classes}
    replayed = play(there, seed=2)
    found = play_fleet(fleet, seed=2)
    assert found.attainment == sum(met(each, slo) for each in replayed) / len(replayed)
    assert found.use.looks > 0
    assert 0.0 < found.use.permits_p99 <= 1.0
    assert found.use.kv_p99 is not None
    assert 0.0 < found.use.kv_p99 <= 1.0


def test_another_card_scales_what_was_learned(there: Scene) -> None:
    """Each coefficient by the ratio of the rooflines, KV memory likewise; a card on record keeps its own."""
    machine = planned(there, FleetChoice(hardware="H100")).scene.machines[0]
    before, after = prior(CARD, there.model), prior("H100", there.model)
    learned = there.machines[0].timing
    assert machine.timing.decode_base_ms == pytest.approx(
        learned.decode_base_ms * after.timing.decode_base_ms / before.timing.decode_base_ms
    )
    assert machine.timing.prefill_per_token_ms < learned.prefill_per_token_ms
    assert machine.kv_tokens == pytest.approx(
        there.machines[0].kv_tokens * after.kv_capacity_tokens / before.kv_capacity_tokens, abs=1
    )
    assert planned(there, FleetChoice(hardware=CARD)).scene.machines == there.machines


def test_each_change_reaches_the_fleet(there: Scene) -> None:
    """Counts, permits, prefill, KV, targets, load and price."""
    choice = FleetChoice(
        replicas=5,
        max_concurrent=7,
        prefill_budget_tokens=512,
        kv_scale=2.0,
        ttft_ms=300.0,
        tpot_ms=20.0,
        load=2.0,
        price_per_hour=3.0,
    )
    fleet = planned(there, choice)
    machine = fleet.scene.machines[-1]
    assert fleet.replicas == 5
    assert (machine.member.max_concurrent, machine.budget_tokens) == (7, 512)
    assert machine.kv_tokens == 2 * there.machines[0].kv_tokens
    assert {spec.ttft_ns for spec in fleet.scene.classes} == {300_000_000}
    assert {spec.long_ttft_ns for spec in fleet.scene.classes} == {1_500_000_000}
    assert {spec.tpot_ns for spec in fleet.scene.classes} == {20_000_000}
    assert fleet.scene.workload.arrivals[-1].at_ns == round(there.workload.arrivals[-1].at_ns / 2)
    assert fleet.cost_per_hour == pytest.approx(15.0)
    assert choice.name == (
        "5 replicas, max_concurrent 7, prefill 512, KV ×2, TTFT 300 ms, TPOT 20 ms, load ×2"
    )


def test_prices_are_by_card(there: Scene) -> None:
    """A price given goes before the recorded one; a card without one makes the cost unknown."""
    assert planned(there, FleetChoice(), {CARD: 1.5}).cost_per_hour == pytest.approx(4.5)
    assert planned(there, FleetChoice(hardware="L40S"), {"L40S": 1.0}).cost_per_hour == pytest.approx(3.0)
    assert planned(there, FleetChoice(hardware="L40S")).cost_per_hour is None


def test_a_prompt_that_does_not_fit_is_missed(there: Scene) -> None:
    """It is not played, and counts in the share of those that attained."""
    longest = max(each.prompt_tokens for each in there.workload.arrivals)
    small = replace(
        there, machines=tuple(replace(each, kv_tokens=longest, budget_tokens=4096) for each in there.machines)
    )
    fleet = planned(small, FleetChoice(replicas=6))
    assert fleet.unfit >= 1
    assert play_fleet(fleet, seed=1).attainment <= 1.0 - fleet.unfit / 160
    with pytest.raises(LogError, match="no prompt on record fits"):
        planned(small, FleetChoice(kv_scale=1e-6))


@pytest.mark.parametrize("choice", [FleetChoice(replicas=1_001), FleetChoice(load=0.0)])
def test_what_cannot_be_simulated(there: Scene, choice: FleetChoice) -> None:
    """Says so before anything is played."""
    with pytest.raises(LogError, match="cannot be simulated"):
        planned(there, choice)


def test_the_busiest_part_is_played(there: Scene) -> None:
    """Requests in a row that ask most tokens a second, with time from the first, and it is said."""
    arrivals = list(there.workload.arrivals)
    # A rush between calm stretches: 40 requests within a tenth of a second.
    rushed = [
        replace(each, at_ns=i * 10**9 if i < 100 else 100 * 10**9 + i if i < 140 else i * 10**9)
        for i, each in enumerate(arrivals)
    ]
    part = busiest(replace(there, workload=replace(there.workload, arrivals=tuple(rushed))), 40)
    assert len(part.workload.arrivals) == len(part.rows) == 40
    assert part.workload.arrivals[0].at_ns == 0
    assert part.workload.arrivals[-1].at_ns == 39
    assert "from number 101" in part.notes[-1]
    assert busiest(there, 0) is there


def test_what_binds_is_named(there: Scene) -> None:
    """Full permits, full KV memory, late first tokens, slow tokens, and nothing."""

    def binding(choice: FleetChoice) -> str:
        return binding_of([play_fleet(planned(there, choice), seed=1)])

    assert binding(FleetChoice(replicas=6)) == "none"
    assert binding(FleetChoice(max_concurrent=4)) == "permits"
    assert binding(FleetChoice(kv_scale=0.03)) == "kv"
    assert binding(FleetChoice(replicas=6, ttft_ms=20.0)) == "ttft"
    assert binding(FleetChoice(replicas=6, tpot_ms=5.0)) == "tpot"


def test_the_fewest_are_found_and_one_fewer_is_not_enough(there: Scene) -> None:
    """For each kind; processes play what one process plays."""
    kinds = [FleetChoice(), FleetChoice(hardware="T4")]
    with FleetPlays(there, seeds=(1,), workers=1) as plays:
        found = fewest(plays, kinds, target=0.95, most=4)
        alone = plays.figures([FleetChoice(replicas=2)])
    for each in found:
        if each.enough is not None:
            assert each.enough.attainment >= 0.95
            assert each.short is None or each.short.attainment < 0.95
            assert each.short is None or each.short.replicas == each.enough.replicas - 1
        else:
            assert each.short is not None
            assert each.short.replicas == 4
    with FleetPlays(there, seeds=(1,), workers=2) as plays:
        assert plays.figures([FleetChoice(replicas=2)]) == alone


def test_the_cheapest_is_by_cost_else_by_cards(there: Scene) -> None:
    """Where a price is missing costs are not compared; kinds that are never enough are left out."""
    with FleetPlays(there, seeds=(1,), workers=1, prices={"H100": 100.0}) as plays:
        slow = plays.figures([FleetChoice(replicas=3)])[0]
        fast = plays.figures([FleetChoice(replicas=1, hardware="H100")])[0]
    dear, cheap = (
        FewestReplicas(FleetChoice(hardware="H100"), fast, None),
        FewestReplicas(FleetChoice(), slow, None),
    )
    never = FewestReplicas(FleetChoice(hardware="T4"), None, slow)
    assert cheapest([dear, cheap, never]) is cheap
    unpriced = replace(dear, enough=replace(fast, cost_per_hour=None))
    assert cheapest([unpriced, cheap]) is unpriced
    assert cheapest([never]) is None


def test_fleets_are_drawn(there: Scene, tmp_path: Path) -> None:
    """As a picture by the name's end; another end is refused before matplotlib is asked."""
    pytest.importorskip("matplotlib")
    with FleetPlays(there, seeds=(1, 2), workers=1) as plays:
        rows = plays.figures([FleetChoice(replicas=1), FleetChoice(replicas=2)])
    picture = plot_fleets(tmp_path / "plan.svg", rows, target=0.99)
    assert "cost an hour" in picture.read_text() or picture.stat().st_size > 5_000
    with pytest.raises(ValueError, match="ends in none of"):
        plot_fleets(tmp_path / "plan.txt", rows)


def test_the_models_word_stands_beside_the_simulation(there: Scene) -> None:
    """More replicas are expected to attain more, and of a fleet of several kinds nothing is said."""
    with FleetPlays(there, seeds=(1,), workers=1) as plays:
        few, many = plays.figures([FleetChoice(replicas=1), FleetChoice(replicas=6)])
    assert few.model is not None
    assert many.model is not None
    assert 0.0 <= few.model < many.model <= 1.0
    mixed = replace(
        there, machines=(*there.machines[:2], planned(there, FleetChoice(hardware="T4")).scene.machines[0])
    )
    assert modelled(planned(mixed, FleetChoice()), 0.0) is None


def test_a_plan_says_what_a_record_of_that_fleet_says(there: Scene, tmp_path: Path) -> None:
    """The same traffic on the fleet that was asked about (simulated too): few replicas, and few permits."""
    slo = {spec.name: spec for spec in there.classes}
    with FleetPlays(fitted(there), seeds=(1, 2), workers=1) as plays:
        found = plays.figures([FleetChoice(replicas=1), FleetChoice(max_concurrent=8)])
    for number, fleet in enumerate(("1*a100-80g/llama-3-8b:permits=64", "3*a100-80g/llama-3-8b:permits=8")):
        served = record(tmp_path / f"{number}.jsonl", requests=200, per_s=25.0, fleet=fleet)
        truth = sum(met(each, slo) for each in served) / len(served)
        assert truth < 0.9
        assert found[number].attainment == pytest.approx(truth, abs=0.15)

"""What a change of models costs: when it counts as one, and when it is chosen over a new replica."""

from __future__ import annotations

import pytest

from extproc.core.scaling.leaving import leaving
from extproc.core.scaling.planner import Planner
from extproc.core.scaling.switches import NS, SHARED_NS, CardSet, ModelSwitches, chosen_switch, memory_lost
from extproc.core.scaling.values import LoadTime, ReplicaFact, SwitchOffer
from tests.core.scaling.test_planner import SCALE, facts

CARDS = CardSet("node-1", ("GPU-a", "GPU-b"))
GIB = 2**30


def looked(switches: ModelSwitches, model: str, from_s: int, to_s: int, cards: CardSet = CARDS) -> None:
    """Every five seconds a replica of a model is ready there."""
    for at in range(from_s, to_s, 5):
        switches.saw(cards, model=model, pool=f"pool-{model}", hardware="a100", now_ns=at * NS)


def offer(
    address: str, seconds: float, *, measured: int = 3, room: int = 0, lost: float = 0.0
) -> SwitchOffer:
    took = LoadTime(p50_s=seconds, p90_s=seconds, measured=measured)
    return SwitchOffer(
        address=address, node="node-1", pool="code", switch=took, room_bytes=room, memory_lost=lost
    )


def test_a_switch_is_from_the_last_look_that_found_one_model_ready_to_the_first_of_another() -> None:
    """Ready until 100, another from 180 on: 85 s with looks every five, once it has stayed."""
    switches = ModelSwitches()
    looked(switches, "llama", 0, 100)
    looked(switches, "qwen", 180, 230)
    assert switches.of("pool-qwen", "a100").measured == 0
    looked(switches, "qwen", 230, 600)
    took = switches.of("pool-qwen", "a100")
    assert (took.measured, took.p50_s) == (1, 85.0)
    assert switches.of("pool-llama", "a100").measured == 0
    looked(switches, "llama", 700, 900)
    assert switches.of("pool-llama", "a100").p50_s == 105.0


def test_models_that_share_cards_do_not_switch() -> None:
    """Two that are ready by turns of a look are there both."""
    switches = ModelSwitches()
    for at in range(0, 10 * SHARED_NS // NS, 5):
        looked(switches, "llama", at, at + 1)
        looked(switches, "qwen", at + 2, at + 3)
    assert switches.of("pool-qwen", "a100").measured == 0
    assert switches.of("pool-llama", "a100").measured == 0


def test_the_same_model_again_or_a_card_that_was_empty_for_hours_is_no_switch() -> None:
    """A restart is a load; three hours without any replica are no switch's."""
    switches = ModelSwitches()
    looked(switches, "llama", 0, 100)
    looked(switches, "llama", 300, 600)
    looked(switches, "qwen", 600 + 3 * 3600, 600 + 3 * 3600 + 300)
    assert switches.of("pool-llama", "a100").measured == 0
    assert switches.of("pool-qwen", "a100").measured == 0


def test_a_switch_is_chosen_where_it_was_measured_is_sooner_and_has_room() -> None:
    """The soonest of those; none where a new replica is as soon."""
    load = LoadTime(p50_s=240.0, p90_s=300.0, measured=4)
    offers = [offer("a", 90.0, room=40 * GIB), offer("b", 30.0, room=10 * GIB), offer("c", 80.0, measured=0)]
    chosen = chosen_switch(offers, load, takes_bytes=20 * GIB)
    assert chosen is not None
    assert (chosen.address, chosen.load_p50_s, chosen.passed_over) == ("a", 240.0, 1)
    assert chosen_switch(offers, LoadTime(p50_s=60.0, p90_s=60.0), takes_bytes=20 * GIB) is None
    fewer = chosen_switch([offer("a", 90.0, lost=0.2), offer("d", 90.0)], load)
    assert fewer is not None
    assert fewer.address == "d"


def test_a_plan_names_the_switch_where_more_are_wanted() -> None:
    """With an offer that is sooner than a load; where nobody more is wanted it names none."""
    told = {"offers": (offer("10.1.0.1:80", 20.0),)}
    plan = Planner(SCALE).step(0, facts(100.0, **told))
    assert plan.wanted > plan.had
    assert plan.switch is not None
    assert plan.switch.address == "10.1.0.1:80"
    assert Planner(SCALE).step(0, facts(0.5, **told)).switch is None


def test_who_lacks_memory_leaves_before_who_has_more_to_lose() -> None:
    """A replica whose engine got a fifth less KV memory bears less; a hundredth is its rounding."""
    assert memory_lost(80_000, 100_000) == pytest.approx(0.2)
    assert memory_lost(99_000, 100_000) == memory_lost(0, 100_000) == 0.0
    whole = ReplicaFact(address="a", stage="ready")
    broken = ReplicaFact(address="b", stage="ready", cached_value_tokens=9_000, memory_lost=0.2)
    assert leaving((whole, broken), 2, prefill_ms_per_token=0.1) == ("b", "a")

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from recorded_traffic import record

from extproc.core.predict.timing import Timing
from extproc.lab.replay.compare import compare
from extproc.lab.replay.fit import fitted
from extproc.lab.replay.log import LogError, read
from extproc.lab.replay.play import Choice, play, slo_of
from extproc.lab.replay.rebuild import Scene, scene
from extproc.sim.served import Served, met


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Served], Scene]:
    """What became of the traffic, and what its record says."""
    path = tmp_path_factory.mktemp("record") / "record.jsonl"
    served = record(path, requests=300, per_s=20.0)
    return served, scene(read(path))


def test_what_was_recorded_is_replayed(recorded: tuple[list[Served], Scene]) -> None:
    """A scheduler with its recorder, then the replay of the record: as many requests, with the same ends."""
    served, there = recorded
    again = play(there)
    assert len(again) == len(served) == len(there.rows)
    assert Counter(each.outcome for each in again) == Counter(each.outcome for each in served)
    assert Counter(row.outcome for row in there.rows) == Counter(each.outcome for each in served)
    assert Counter(each.arrival.tenant for each in again) == Counter(each.arrival.tenant for each in served)
    assert {each.service_class for each in again} == {"premium", "standard"}
    assert {each.endpoint for each in again} == {machine.member.address for machine in there.machines}


def test_requests_that_were_shed_come_again(tmp_path: Path) -> None:
    """With too few replicas most of those turned away are turned away again; with more nobody is."""
    path = tmp_path / "record.jsonl"
    served = record(path, requests=250, per_s=25.0, fleet="1*a100-80g/llama-3-8b:permits=16")
    shed = sum(each.outcome == "shed" for each in served)
    there = scene(read(path))
    assert shed > 50
    assert sum(row.outcome == "shed" for row in there.rows) == shed
    assert sum(each.outcome == "shed" for each in play(there)) > shed / 2
    assert not any(each.outcome == "shed" for each in play(there, Choice(name="more", replicas=4)))


def test_a_seed_is_a_world(recorded: tuple[list[Served], Scene]) -> None:
    """The same gives the same to the nanosecond, another one another."""
    _, there = recorded
    short = there.part(0, 60)
    assert play(short, seed=3) == play(short, seed=3)
    assert play(short, seed=3) != play(short, seed=4)


def test_other_choices_do_other_things(recorded: tuple[list[Served], Scene]) -> None:
    """A strategy, its parameters, a peer that holds nothing, the oracle."""
    _, there = recorded
    there = there.part(0, 120)
    own = play(there)
    for choice in (
        Choice(name="rr", strategy="round_robin"),
        Choice(name="deep", parameters={"queue_tokens": 64}),
        Choice(name="peer", strategy="envoy-least-request"),
        Choice(name="bound", strategy="oracle"),
    ):
        other = play(there, choice)
        assert len(other) == len(own)
        assert other != own, choice


def test_a_weight_moves_the_queue(tmp_path: Path) -> None:
    """Of two tenants of one class the heavier one waits less."""
    path = tmp_path / "record.jsonl"
    record(path, requests=250, per_s=25.0, fleet="1*a100-80g/llama-3-8b:permits=16")
    there = scene(read(path))
    there = replace(there, class_of=dict.fromkeys(there.class_of, "standard"), weights={})

    def answered(weights: dict[str, float]) -> int:
        served = play(there, Choice(name="w", strategy="least_work", weights=weights))
        return sum(each.arrival.tenant == "globex" and each.outcome == "ok" for each in served)

    assert answered({"globex": 50.0}) > answered({"acme": 50.0})


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (Choice(name="x", strategy="best"), "no strategy 'best'"),
        (Choice(name="x", parameters={"queue_tokens": -1}), "queue_tokens is at least 0"),
        (Choice(name="x", replicas=-3), "leaves none"),
    ],
)
def test_what_cannot_be_played(recorded: tuple[list[Served], Scene], choice: Choice, said: str) -> None:
    """Says why."""
    with pytest.raises(LogError, match=said):
        play(recorded[1], choice)


def test_targets_are_those_of_each_class(recorded: tuple[list[Served], Scene]) -> None:
    """A class that the record no longer has counts as the last."""
    _, there = recorded
    strict = replace(there.classes[0], ttft_ns=1, long_ttft_ns=1)
    slo = slo_of(replace(there, classes=(strict, there.classes[1]), class_of={**there.class_of, "x": "gone"}))
    assert set(slo) == {"premium", "standard", "gone"}
    by_class = Counter(each.service_class for each in play(there) if met(each, slo))
    assert by_class["premium"] == 0
    assert by_class["standard"] > 0


def test_timings_are_fitted_to_what_was_measured(recorded: tuple[list[Served], Scene]) -> None:
    """Coefficients that are off by much are scaled back, and the notes say by how much."""
    _, there = recorded

    def off(scene_: Scene) -> dict[str, float]:
        found = compare(scene_, [], seeds=(1,)).fidelity
        return {
            each.figure: abs(each.replayed.mean / each.measured - 1)
            for each in found
            if each.replayed is not None and each.measured
        }

    slow = replace(
        there,
        machines=tuple(
            replace(each, timing=Timing(*(2 * getattr(each.timing, name) for name in Timing.__slots__)))
            for each in there.machines
        ),
    )
    before, mended = off(slow), fitted(slow)
    after = off(mended)
    assert before["ttft_p50_ms"] > 0.5
    assert after["ttft_p50_ms"] < 0.15
    assert after["e2e_p50_ms"] < 0.15 < before["e2e_p50_ms"]
    assert "timings are fitted to the first" in mended.notes[-1]
    few = there.part(0, 10)
    assert fitted(few).machines == few.machines
    assert "not fitted" in fitted(few).notes[-1]


def test_differences_are_paired(recorded: tuple[list[Served], Scene]) -> None:
    """A choice that changes nothing differs by nothing in every seed; the record itself has no difference."""
    _, there = recorded
    told: list[tuple[str, int]] = []
    found = compare(
        there.part(0, 80),
        [Choice(name="same"), Choice(name="fewer", replicas=-2)],
        seeds=(1, 2),
        told=lambda name, seed: told.append((name, seed)),
    )
    base, same, fewer = found.columns
    assert not any(base.differences.values())
    assert all(each is None or (each.mean, each.half) == (0.0, 0.0) for each in same.differences.values())
    more = fewer.differences["e2e_p50_ms"]
    assert more is not None
    assert more.mean > 0
    assert len(told) == 6

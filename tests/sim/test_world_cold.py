"""From zero in the simulated world: the very scheduler that serves holds requests until the first replica."""

from __future__ import annotations

from extproc.lab.workload import Workload, poisson
from extproc.sim.capacity import capacity
from extproc.sim.served import ttft_ms
from extproc.sim.world import Setting, parse_fleet, run

FLEET = parse_fleet("2*a100-80g/llama-3-8b")
S = 1_000_000_000


def made(load: float) -> Workload:
    """A short workload at a load of the small fleet."""
    drawn = poisson(10.0, seed=1, duration_s=15, limit=120)
    return drawn.rescaled(load * capacity(FLEET.shares, drawn))


def test_who_comes_to_an_empty_pool_is_served_when_it_is_ready() -> None:
    """Nobody is shed, none begins before, and a first token is late by what was left of the load."""
    result = run(made(0.3), FLEET, Setting(strategy="steer", cold_s=20.0))
    early = [each for each in result.served if each.arrival.at_ns < 20 * S]
    assert early
    assert {each.outcome for each in result.served} == {"ok"}
    assert all(each.decided_ns >= 20 * S for each in early)
    assert all(ttft_ms(each) >= 20_000 - each.arrival.at_ns / 1e6 for each in early)
    assert result.scheduler.counts["held.cold"] == len(early)


def test_a_cold_hold_that_is_shorter_than_the_load_sheds() -> None:
    """Whoever would wait longer is told in time; the others are served."""
    result = run(made(0.3), FLEET, Setting(strategy="steer", cold_s=20.0, cold_hold_ms=5_000.0))
    outcomes = {each.outcome for each in result.served if each.arrival.at_ns < 14 * S}
    assert outcomes == {"shed"}
    late = [each for each in result.served if each.arrival.at_ns > 16 * S]
    assert {each.outcome for each in late} == {"ok"}


def test_without_a_cold_hold_nobody_waits() -> None:
    """As it was before there was anything to wait for."""
    result = run(made(0.3), FLEET, Setting(strategy="steer", cold_s=20.0, cold_hold_ms=0.0))
    for each in result.served:
        assert each.outcome == ("shed" if each.arrival.at_ns < 20 * S else "ok")

"""The number that HPA sees, against HPA's own arithmetic."""

from __future__ import annotations

import math
from random import Random

import pytest

from extproc.core.scaling.reported import reported_milli


def hpa(current: int, value_milli: int, target_milli: int, tolerance: float) -> int:
    """What a HorizontalPodAutoscaler makes of a metric with an AverageValue (kube-controller-manager).

    Its two spellings of "within", of before and since Kubernetes 1.33, differ at the very edge: neither is
    relied on.
    """
    ratio = value_milli / (target_milli * current)
    before = abs(1.0 - ratio) <= tolerance
    since = 1.0 - tolerance <= ratio <= 1.0 + tolerance
    if before != since:
        assert abs(abs(1.0 - ratio) - tolerance) < 1e-9
    return current if since else math.ceil(value_milli / target_milli)


def settle(current: int, wanted: int, *, tolerance: float, target_milli: int = 1_000) -> list[int]:
    """The replicas that there are at HPA's steps, until they stay as they are."""
    seen = [current]
    while True:
        value = reported_milli(wanted, seen[-1], tolerance=tolerance, target_milli=target_milli)
        step = hpa(seen[-1], value, target_milli, tolerance)
        if step == seen[-1]:
            return seen
        seen.append(step)
        assert len(seen) < 5, f"no rest: {seen}"


@pytest.mark.parametrize("target_milli", [1_000, 100, 570, 7_500])
def test_a_cluster_without_tolerance_makes_what_is_wanted(target_milli: int) -> None:
    """With tolerance 0 every number of replicas becomes every other in one step."""
    for current in range(1, 101):
        for wanted in range(1, 101):
            steps = settle(current, wanted, tolerance=0.0, target_milli=target_milli)
            assert steps == ([current] if current == wanted else [current, wanted])


@pytest.mark.parametrize("tolerance", [0.1, 0.05, 0.2])
@pytest.mark.parametrize("target_milli", [1_000, 100, 7_500])
def test_more_are_always_made_and_never_too_few(tolerance: float, target_milli: int) -> None:
    """Up, HPA ends at the very number; down at it or a tolerance above, never below what is wanted; and it
    comes to rest."""
    for current in range(1, 101):
        for wanted in range(1, 101):
            steps = settle(current, wanted, tolerance=tolerance, target_milli=target_milli)
            assert min(steps[1:], default=wanted) >= wanted
            # Nothing is made that would not have to be for HPA to hear.
            beyond = (
                max(math.floor(current * (1 + tolerance)), math.floor((wanted - 1) / (1 - tolerance))) + 1
            )
            assert max(steps) <= max(current, wanted, beyond)
            if current < wanted:
                assert steps[-1] == wanted
            assert (steps[-1] - wanted) <= tolerance * steps[-1] + 1e-9


def test_the_default_tolerance_swallows_less_than_it_would() -> None:
    """Up to 20 replicas each number is reached, where wanted with a target of 1 stays at 10 for ever."""
    assert hpa(10, 11_000, 1_000, 0.1) == 10
    assert settle(10, 11, tolerance=0.1) == [10, 12, 11]
    assert settle(20, 21, tolerance=0.1) == [20, 23, 21]
    assert settle(11, 10, tolerance=0.1) == [11, 10]
    assert settle(30, 29, tolerance=0.1) == [30]
    assert settle(60, 62, tolerance=0.1) == [60, 68, 62]
    for current in range(1, 20):
        for wanted in range(1, 20):
            assert settle(current, wanted, tolerance=0.1)[-1] == wanted


def test_a_stale_count_of_replicas_does_no_harm() -> None:
    """HPA counts pods that we do not see yet, or no more: it makes no fewer than wanted, and what is too
    many is bounded by what we see."""
    for seen in range(40):
        for wanted in range(1, 40):
            value = reported_milli(wanted, seen)
            for current in range(1, 40):
                made = hpa(current, value, 1_000, 0.1)
                if made != current:
                    assert wanted <= made <= max(wanted, seen * 1.1 + 1, wanted / 0.9 + 1)


def test_nothing_is_wanted() -> None:
    """None wanted, or none there yet: the number is what it is."""
    assert reported_milli(0, 7) == 0
    assert reported_milli(3, 0) == 3_000
    assert reported_milli(0, 0) == 0


class Workload:
    """A Deployment under an HPA that looks every 15 s; pods load, and we see those alone that are ready."""

    def __init__(self, replicas: int, load_steps: int, *, step_up: int, step_down: int) -> None:
        self.loading: list[int] = []
        self.ready, self.load_steps = replicas, load_steps
        self.step_up, self.step_down = step_up, step_down
        self.started = 0

    def step(self, wanted: int, *, tolerance: float) -> int:
        """One look; the replicas that there are afterwards."""
        self.loading = [left - 1 for left in self.loading]
        self.ready += sum(left <= 0 for left in self.loading)
        self.loading = [left for left in self.loading if left > 0]
        current = self.ready + len(self.loading)
        value = reported_milli(wanted, self.ready, tolerance=tolerance)
        made = hpa(current, value, 1_000, tolerance)
        made = min(current + self.step_up, max(current - self.step_down, made))
        for _ in range(made - current):
            self.started += 1
            self.loading.append(self.load_steps)
        for _ in range(current - made):
            # A ReplicaSet ends pods that are not ready first.
            if self.loading:
                self.loading.pop()
            else:
                self.ready -= 1
        return made


@pytest.mark.parametrize("tolerance", [0.1, 0.0])
@pytest.mark.parametrize("load_steps", [1, 4, 20])
def test_pods_that_load_unseen_bring_no_runaway(tolerance: float, load_steps: int) -> None:
    """While what is wanted goes up and down, and pods load that we do not see: never more than a ninth
    and one beyond what was wanted, never fewer than wanted once that was reached; and then rest, at the
    number or a tolerance above it."""
    rng = Random(f"{tolerance} {load_steps}")
    for _ in range(60):
        least = rng.randrange(1, 60)
        work = Workload(least, load_steps, step_up=rng.choice((1, 4, 100)), step_down=rng.choice((1, 100)))
        peak = least
        for _ in range(4):
            wanted = rng.randrange(1, 60)
            peak, reached = max(peak, wanted), False
            for _ in range(100 + 2 * load_steps):
                made = work.step(wanted, tolerance=tolerance)
                reached = reached or made >= wanted
                assert made >= wanted or not reached
                assert made <= max(peak, math.floor(peak / (1 - tolerance)) + 1)
            assert wanted <= made <= wanted * (1 + tolerance) + 1
            before = work.started
            for _ in range(3 * load_steps):
                assert work.step(wanted, tolerance=tolerance) == made
            assert work.started == before
            peak = made

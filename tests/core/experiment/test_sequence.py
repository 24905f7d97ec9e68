from __future__ import annotations

import math
from itertools import pairwise
from random import Random

import pytest

from extproc.core.experiment.sequence import Mean, boundary


def looks(upto: int) -> list[int]:
    """When somebody who cannot wait looks: at every one of the first, then ever 8 % later."""
    found, at = [], 1.0
    while at <= upto:
        found.append(int(at))
        at = max(at + 1, at * 1.08)
    return found


def ever_wrong(rng: Random, share: float, *, alpha: float, upto: int) -> tuple[bool, bool]:
    """Whether our interval, and an ordinary one of the same level, ever miss the truth in one life."""
    mean, times = Mean(), set(looks(upto))
    ours = ordinary = False
    z = 1.96
    for n in range(1, upto + 1):
        mean.add(float(rng.random() < share))
        if n in times:
            interval = mean.interval(alpha)
            ours = ours or not interval.low <= share <= interval.high
            half = z * math.sqrt(max(interval.mean * (1 - interval.mean), 1e-9) / n)
            # The ordinary one gets a start: it is not asked before it is meant to be used.
            ordinary = ordinary or (n >= 50 and abs(interval.mean - share) > half)
    return ours, ordinary


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_peeking_does_not_fool_it(share: float) -> None:
    """Of 300 lives, looked at again and again, at most alpha are ever wrong; ordinary intervals in many."""
    rng, alpha, lives = Random(7), 0.05, 300
    wrong = [ever_wrong(rng, share, alpha=alpha, upto=600) for _ in range(lives)]
    ours, ordinary = sum(each[0] for each in wrong) / lives, sum(each[1] for each in wrong) / lives
    assert ours <= alpha
    assert ordinary > 3 * alpha


def test_two_equal_arms_are_not_told_apart() -> None:
    """The difference of two intervals excludes 0 in at most alpha of the lives, whenever one looks."""
    rng, alpha, lives = Random(3), 0.05, 300
    false = 0
    for _ in range(lives):
        one, two = Mean(), Mean()
        for n in range(1, 601):
            one.add(float(rng.random() < 0.9))
            two.add(float(rng.random() < 0.9))
            if n % 20 == 0:
                low, _, high = one.interval(alpha / 2).minus(two.interval(alpha / 2))
                if low > 0 or high < 0:
                    false += 1
                    break
    assert false / lives <= alpha


def test_a_difference_is_found() -> None:
    """Of 90 % and 75 % within 1,000 each in nearly every life; the estimate is near the truth then."""
    rng, lives, found, sizes = Random(5), 100, 0, []
    for _ in range(lives):
        one, two = Mean(), Mean()
        for n in range(1, 1_001):
            one.add(float(rng.random() < 0.9))
            two.add(float(rng.random() < 0.75))
            if n % 25 == 0 and one.interval(0.05 / 6).minus(two.interval(0.05 / 6))[0] > 0:
                found += 1
                sizes.append(n)
                break
    assert found >= 95
    assert sorted(sizes)[len(sizes) // 2] < 700


def test_a_drifting_mean_is_covered() -> None:
    """What is covered is the mean of the means so far, whatever they do."""
    rng, lives, wrong = Random(11), 300, 0
    for _ in range(lives):
        mean, truth = Mean(), 0.0
        for n in range(1, 501):
            share = 0.95 if (n // 100) % 2 == 0 else 0.4
            truth += share
            mean.add(float(rng.random() < share))
            if n % 10 == 0:
                interval = mean.interval(0.05)
                if not interval.low <= truth / n <= interval.high:
                    wrong += 1
                    break
    assert wrong / lives <= 0.05


def test_the_boundary_is_where_the_mixture_says() -> None:
    """At it the mixture is 1/alpha (Ville's bound), and it grows with the spread and with confidence."""
    lambdas = [0.9 * 2.0 ** (-k / 2) for k in range(20)]
    for spread in (0.0, 0.3, 5.0, 90.0, 1e4, 1e7):
        s = boundary(spread, 0.01)
        mixture = sum(math.exp(x * s - (-math.log1p(-x) - x) * spread) for x in lambdas) / 20
        assert mixture == pytest.approx(100.0, rel=1e-3)
        assert mixture >= 100.0 * (1 - 1e-9)
    assert all(a < b for a, b in pairwise(boundary(v, 0.01) for v in (0.0, 1.0, 10.0, 1e3)))
    assert boundary(50.0, 0.001) > boundary(50.0, 0.05)


def test_without_values_it_says_nothing() -> None:
    """Everything is possible; and what lies outside of [0, 1] is taken for its nearest end."""
    assert (Mean().interval(0.05).low, Mean().interval(0.05).high) == (0.0, 1.0)
    mean = Mean()
    mean.add(7.0)
    mean.add(-1.0)
    assert mean.interval(0.05).mean == 0.5


def test_streams_add_up() -> None:
    """Sums over two services are those of one that saw both, but for what each had predicted."""
    rng = Random(2)
    one, two = Mean(), Mean()
    for _ in range(400):
        one.add(float(rng.random() < 0.9))
        two.add(float(rng.random() < 0.9))
    both = Mean()
    both.count, both.total, both.spread = (
        one.count + two.count,
        one.total + two.total,
        one.spread + two.spread,
    )
    alone, merged = one.interval(0.05), both.interval(0.05)
    assert merged.high - merged.low < alone.high - alone.low
    assert merged.low <= 0.9 <= merged.high

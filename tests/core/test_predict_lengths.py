"""Lengths of answers: histograms by tenant, model and limit."""

from __future__ import annotations

from random import Random

import pytest

from extproc.core.predict.lengths import HELD_MAX, LEARNED_MIN, LENGTH_MAX, OutputLengths

LEARNED = int(LEARNED_MIN)


def taught(*tokens: int, limit: int | None = None, times: int = 1) -> OutputLengths:
    lengths = OutputLengths()
    for _ in range(times):
        for count in tokens:
            lengths.saw("t", "m", limit, count)
    return lengths


def test_starts_at_the_prior() -> None:
    """Before any answer the configured mean holds, capped by the limit, and nothing is certain."""
    fresh = OutputLengths(200.0)
    assert fresh.expected("t", "m", None) == 200.0
    assert fresh.expected("t", "m", 50) == 50.0
    assert fresh.expected("t", "m", 0) == 0.0
    assert fresh.residual("t", "m", None, 1_000) == 200.0
    assert fresh.residual("t", "m", 1_010, 1_000) == 10.0
    assert fresh.quantile("t", "m", None, 0.5) == pytest.approx(138.6, rel=0.01)
    assert fresh.confidence("t", "m", None) == 0.0


def test_few_answers_bend_the_prior_slowly() -> None:
    """Eight answers weigh as much as the prior."""
    lengths = OutputLengths(200.0)
    for _ in range(8):
        lengths.saw("t", "m", None, 100)
    assert lengths.expected("t", "m", None) == pytest.approx(150.0)


def test_keys_are_told_apart_once_learned() -> None:
    """Tenants, models and limits have their own means; a stranger gets the nearest rung's."""
    lengths = OutputLengths()
    for _ in range(LEARNED):
        lengths.saw("short", "m", 500, 20)
        lengths.saw("long", "m", 500, 400)
        lengths.saw("long", "m", 4_000, 3_000)
        lengths.saw("long", "other", 500, 100)
    assert lengths.expected("short", "m", 500) == 20.0
    assert lengths.expected("long", "m", 500) == 400.0
    assert lengths.expected("long", "m", 4_000) == 3_000.0
    assert lengths.expected("long", "other", 400) == 100.0
    assert lengths.expected("stranger", "m", 500) == 210.0
    assert lengths.expected("stranger", "unseen", None) == pytest.approx((20 + 400 + 3_000 + 100) / 4)


def test_under_twenty_a_key_does_not_speak_for_itself() -> None:
    """Nineteen answers of a tenant do not outvote its model's; the twentieth does."""
    lengths = OutputLengths()
    for _ in range(1_000):
        lengths.saw("many", "m", 500, 100)
    for _ in range(LEARNED - 1):
        lengths.saw("few", "m", 500, 400)
    assert lengths.expected("few", "m", 500) < 120.0
    lengths.saw("few", "m", 500, 400)
    assert lengths.expected("few", "m", 500) == 400.0


def test_quantiles_of_a_straight_distribution() -> None:
    """Lengths 1 to 1,000 once each have their quantiles within a bin of the truth."""
    lengths = taught(*range(1, 1_001))
    for q in (0.1, 0.25, 0.5, 0.9, 0.99):
        assert lengths.quantile("t", "m", None, q) == pytest.approx(1_000 * q, abs=16)
    assert lengths.quantile("t", "m", 300, 0.9) == 300.0


def test_quantiles_of_long_answers_are_within_their_bin() -> None:
    """Past 1,024 a bin is as wide as all before it: right within a factor of two."""
    lengths = taught(10_000, times=50)
    assert 8_192 <= lengths.quantile("t", "m", None, 0.5) <= 16_384
    assert lengths.expected("t", "m", None) == 10_000.0


def test_residual_life_of_a_straight_distribution() -> None:
    """After `made` of up to 1,000 equally likely tokens, half of the rest is to come."""
    lengths = taught(*range(1, 1_001))
    for made in (0, 100, 500, 800, 900):
        assert lengths.residual("t", "m", None, made) == pytest.approx((1_000 - made) / 2, rel=0.05, abs=8)


def test_residual_life_without_memory_stays() -> None:
    """Exponential lengths have the same mean ahead of them at any age."""
    rng, lengths = Random(1), OutputLengths()
    for _ in range(1_000):
        lengths.saw("t", "m", None, round(rng.expovariate(1 / 200)))
    for made in (0, 100, 200, 400):
        assert lengths.residual("t", "m", None, made) == pytest.approx(200, rel=0.25)


def test_residual_life_of_two_kinds() -> None:
    """An answer that outlived the short kind is of the long one."""
    lengths = taught(20, 20, 20, 820, times=50)
    assert lengths.expected("t", "m", None) == 220.0
    assert lengths.residual("t", "m", None, 0) == pytest.approx(220.0, rel=0.05)
    assert lengths.residual("t", "m", None, 100) == pytest.approx(720.0, rel=0.05)


def test_the_curve_of_residuals_agrees_with_each() -> None:
    """Many look-ups at once say what single ones say, at least 1, and nothing before enough is learned."""
    assert len(OutputLengths().residuals("t", "m", None)) == 0
    lengths = taught(*range(1, 1_001))
    curve = lengths.residuals("t", "m", None)
    assert len(curve) == 64
    for at, left in enumerate(curve):
        assert left == pytest.approx(lengths.residual("t", "m", None, 16 * at))
    for _ in range(int(4 * HELD_MAX)):
        lengths.saw("t", "m", None, 100)
    assert lengths.residuals("t", "m", None)[0] == pytest.approx(100.0, rel=0.1)


def test_an_answer_that_outlives_all_goes_on_for_about_a_mean() -> None:
    """Past everything seen there is no evidence but the mean; the limit still ends it."""
    lengths = taught(100, times=50)
    assert lengths.residual("t", "m", None, 5_000) == pytest.approx(100.0)
    assert lengths.residual("t", "m", None, 10**9) == pytest.approx(100.0)
    assert taught(100, limit=120, times=50).residual("t", "m", 120, 119) == 1.0
    assert lengths.residual("t", "m", None, -5) == lengths.residual("t", "m", None, 0)


def test_what_is_new_shows_soon() -> None:
    """A change of traffic is followed within the answers that are held, in mean, quantile and residual."""
    lengths = taught(1_000, times=3_000)
    for _ in range(int(4 * HELD_MAX)):
        lengths.saw("t", "m", None, 100)
    assert lengths.expected("t", "m", None) == pytest.approx(100.0, rel=0.1)
    assert lengths.quantile("t", "m", None, 0.9) == pytest.approx(100.0, abs=16)
    assert lengths.residual("t", "m", None, 0) == pytest.approx(100.0, rel=0.1)


def test_keys_are_bounded_and_the_stale_go_first() -> None:
    """At the bound the key that learned least recently is forgotten, and the pool still answers."""
    lengths = OutputLengths(keys_max=10)
    for _ in range(LEARNED):
        lengths.saw("old", "m", None, 50)
    for tenant in range(100):
        lengths.saw(f"t{tenant}", "m", None, 500)
        assert len(lengths) <= 10
    assert lengths.expected("old", "m", None) > 100.0
    for _ in range(LEARNED):
        lengths.saw("old", "m", None, 50)
    assert lengths.expected("old", "m", None) == 50.0
    without = OutputLengths(keys_max=0)
    for _ in range(LEARNED):
        without.saw("t", "m", None, 50)
    assert (len(without), without.expected("t", "m", None)) == (0, 50.0)


def test_absurd_lengths_are_bounded() -> None:
    """A negative length is left out and an endless one counts as the longest."""
    lengths = OutputLengths(256.0)
    lengths.saw("t", "m", None, -1)
    assert lengths.expected("t", "m", None) == 256.0
    for _ in range(LEARNED):
        lengths.saw("t", "m", 10**30, 10**30)
    assert lengths.expected("t", "m", 10**30) == LENGTH_MAX
    assert lengths.quantile("t", "m", None, 1.0) == LENGTH_MAX


def test_narrow_lengths_are_more_certain() -> None:
    """Answers that are all alike may be trusted more than scattered ones; both more than few."""
    narrow, scattered = taught(100, times=200), taught(*range(1, 1_000, 5))
    few = taught(100, times=LEARNED)
    assert 0.5 < few.confidence("t", "m", None) * 1.5 < 1.5 * narrow.confidence("t", "m", None)
    assert scattered.confidence("t", "m", None) < 0.6 * narrow.confidence("t", "m", None)


def test_errors_are_reported() -> None:
    """Lengths that hold still are predicted without error, and the record says so."""
    lengths = taught(100, times=200)
    assert lengths.errors.count == 200
    assert lengths.errors.median == pytest.approx(0.0)

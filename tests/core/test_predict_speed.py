"""Calibration: a model a pool, a factor an endpoint, learned without fighting each other.

The truths are published step times (splitwise-sim, vidur) with 5 % noise: simulated, never measured.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from random import Random
from statistics import median

import pytest

from extproc.core.predict import Prior, Speed, SpeedModel, Timing, prior
from extproc.core.predict.rls import MULTIPLE_MAX, MULTIPLE_MIN, Affine
from extproc.core.predict.speed import FACTOR_MAX, FACTOR_MIN
from extproc.sim.timing import HARDWARE, Hardware

A100_8B = prior("NVIDIA A100-SXM4-80GB", "llama-3-8b")
TRUTH = HARDWARE["a100-80g/llama-3-8b"]


def work(rng: Random, count: int) -> Iterator[tuple[int, int, int]]:
    """Prompt tokens, batch, context tokens of `count` requests."""
    for _ in range(count):
        batch = rng.randint(1, 48)
        yield (
            min(8_000, round(rng.lognormvariate(6.5, 1.0))),
            batch,
            batch * rng.randint(200, 2_500),
        )


def errors_of(timing: Timing, truth: Hardware, rng: Random) -> tuple[float, float]:
    """Median relative errors of prefill and step over fresh work."""
    fresh = list(work(rng, 300))
    return (
        median(abs(timing.prefill_ms(u) / truth.prefill_ms(u) - 1.0) for u, _, _ in fresh),
        median(abs(timing.step_ms(b, k) / truth.decode_ms(b, k) - 1.0) for _, b, k in fresh),
    )


def run(
    speeds: list[Speed], factors: list[float], *, rounds: int, seed: int = 1, truth: Hardware = TRUTH
) -> None:
    """Each endpoint serves a request a round, `factors` times slower than the truth."""
    rng = Random(seed)
    for requests in zip(*(work(Random(seed + at), rounds) for at in range(len(speeds))), strict=True):
        for speed, factor, (tokens, batch, context) in zip(speeds, factors, requests, strict=True):
            noisy = factor * rng.gauss(1.0, 0.05)
            speed.saw_first_token(speed.prefill_ms(tokens), noisy * truth.prefill_ms(tokens))
            speed.saw_decode(batch, context, noisy * truth.decode_ms(batch, context))


def pool(count: int) -> tuple[SpeedModel, list[Speed]]:
    model = SpeedModel(A100_8B)
    return model, [Speed(model) for _ in range(count)]


@pytest.mark.parametrize("row", sorted(HARDWARE))
def test_learns_other_hardware_from_a_wrong_prior(row: str) -> None:
    """From the A100's prior every published row is learned within 15 % in 500 requests."""
    rng, truth, model = Random(7), HARDWARE[row], SpeedModel(A100_8B)
    for tokens, batch, context in work(rng, 500):
        model.saw_prefill(tokens, 0.0, truth.prefill_ms(tokens) * rng.gauss(1.0, 0.05))
        model.saw_decode(batch, context, truth.decode_ms(batch, context) * rng.gauss(1.0, 0.05))
    prefill, step = errors_of(model.timing, truth, rng)
    assert prefill <= 0.15
    assert step <= 0.15
    assert model.samples == 1_000


@pytest.mark.parametrize("row", ["h100-80g/llama-3-8b", "h100-tp4/llama-2-70b", "a100-tp8/llama-2-70b"])
def test_ten_requests_beat_the_prior(row: str) -> None:
    """What a few requests teach is worth more than a wrong prior, in either direction."""
    rng, truth, model = Random(3), HARDWARE[row], SpeedModel(A100_8B)
    before = errors_of(model.timing, truth, Random(9))
    for tokens, batch, context in work(rng, 10):
        model.saw_prefill(tokens, 0.0, truth.prefill_ms(tokens) * rng.gauss(1.0, 0.05))
        model.saw_decode(batch, context, truth.decode_ms(batch, context) * rng.gauss(1.0, 0.05))
    after = errors_of(model.timing, truth, Random(9))
    assert after[0] < 0.5 * before[0]
    assert after[1] < 0.5 * before[1]


@pytest.mark.parametrize("seed", range(5))
def test_a_lone_straggler_keeps_its_factor(seed: int) -> None:
    """Of four endpoints the one three times slower is known as such, and the model stays true."""
    model, speeds = pool(4)
    run(speeds, [1.0, 1.0, 1.0, 3.0], rounds=50, seed=seed)
    assert [speed.factor for speed in speeds] == pytest.approx([1.0, 1.0, 1.0, 3.0], rel=0.15)
    assert model.timing.step_ms(16, 16_000) == pytest.approx(TRUTH.decode_ms(16, 16_000), rel=0.15)
    assert speeds[3].step_ms(16, 16_000) == pytest.approx(3 * TRUTH.decode_ms(16, 16_000), rel=0.15)


def test_a_straggler_is_known_after_a_few_requests() -> None:
    """Five requests each suffice to avoid the slow one."""
    _, speeds = pool(4)
    run(speeds, [1.0, 1.0, 1.0, 3.0], rounds=5)
    assert speeds[3].factor > 2.0 * max(speed.factor for speed in speeds[:3])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_slow_pool_moves_the_model(count: int) -> None:
    """Endpoints that are all three times slower than the prior are typical: factors near 1."""
    model, speeds = pool(count)
    run(speeds, [3.0] * count, rounds=200)
    assert [speed.factor for speed in speeds] == pytest.approx([1.0] * count, rel=0.15)
    assert model.timing.step_ms(16, 16_000) == pytest.approx(3 * TRUTH.decode_ms(16, 16_000), rel=0.15)
    assert model.timing.prefill_ms(1_000) == pytest.approx(3 * TRUTH.prefill_ms(1_000), rel=0.15)


def test_a_healthy_endpoint_that_turns_slow_is_followed() -> None:
    """After long health a threefold slowdown shows in the factor within a hundred requests."""
    model, speeds = pool(4)
    run(speeds, [1.0] * 4, rounds=100)
    run(speeds, [1.0, 1.0, 1.0, 3.0], rounds=100, seed=2)
    assert [speed.factor for speed in speeds] == pytest.approx([1.0, 1.0, 1.0, 3.0], rel=0.15)
    assert model.timing.step_ms(16, 16_000) == pytest.approx(TRUTH.decode_ms(16, 16_000), rel=0.15)


def test_an_endpoint_beyond_its_bound_does_not_bend_the_pool() -> None:
    """A hundred times slower is the bound's factor, and the others' predictions hold."""
    model, speeds = pool(4)
    run(speeds, [1.0, 1.0, 1.0, 100.0], rounds=100)
    assert speeds[3].factor == pytest.approx(FACTOR_MAX, rel=0.1)
    assert model.timing.step_ms(16, 16_000) == pytest.approx(TRUTH.decode_ms(16, 16_000), rel=0.2)


def test_a_newcomer_inherits_the_pool() -> None:
    """An endpoint that joins late starts from what its pool learned, with some confidence."""
    truth = HARDWARE["h100-80g/llama-3-8b"]
    model, speeds = pool(3)
    run(speeds, [1.0] * 3, rounds=100, truth=truth)
    newcomer = Speed(model)
    assert newcomer.prefill_ms(1_000) == pytest.approx(truth.prefill_ms(1_000), rel=0.15)
    assert 0.0 < newcomer.confidence < speeds[0].confidence


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_prefill_and_step_are_told_apart_where_nothing_is_prefilled_alone(seed: int) -> None:
    """A model in which the step has swallowed the prefill is set right by first tokens among streams."""
    model, (speed,) = pool(1)
    for learner, by in ((model._prefill, 0.1), (model._decode, 6.0)):
        learner.scale(by)
    model._publish_prefill()
    model._publish_decode()
    rng = Random(seed)
    for tokens, batch, context in work(rng, 400):
        step, predicted_step = TRUTH.decode_ms(batch, context), speed.step_ms(batch, context)
        beside = 0.5 * predicted_step
        noisy = rng.gauss(1.0, 0.05) * (TRUTH.prefill_ms(tokens) + rng.random() * step)
        speed.saw_first_token(speed.prefill_ms(tokens) + beside, noisy)
        speed.saw_prefill_among(tokens, 0, noisy, beside_ms=beside, batch=batch, context_tokens=context)
        # Between two tokens comes a tenth of somebody's prefill, taken off as it is predicted.
        others = 0.1 * (TRUTH.prefill_ms(1_000) - speed.prefill_ms(1_000))
        speed.saw_decode(batch, context, max(1.0, step + others) * rng.gauss(1.0, 0.05))
    fresh = list(work(rng, 300))
    prefill = median(abs(speed.prefill_ms(u) / TRUTH.prefill_ms(u) - 1.0) for u, _, _ in fresh)
    step = median(abs(speed.step_ms(b, k) / TRUTH.decode_ms(b, k) - 1.0) for _, b, k in fresh)
    assert prefill < 0.25
    assert step < 0.35


def test_who_has_shown_nothing_goes_by_the_others() -> None:
    """What the prior is wrong of it is wrong of all; what its agent said counts besides, and is its own."""
    model, (first, second, silent, told) = pool(4)
    told.saw_rates(prefill_tokens_per_s=None, decode_tokens_per_s=1.0, batch=1.0)
    ahead = told.factor
    assert ahead > 1.0
    for speed in (first, second):
        speed.saw_first_token(50.0, 150.0)
    typical = min(first.factor, second.factor)
    assert typical > 2.0
    assert silent.factor == typical
    assert told.factor == pytest.approx(ahead * typical)
    # Both go back with it: what it was taken for was not measured.
    for speed in (first, second):
        speed.takes_back(speed.factor)
    assert silent.factor == 1.0
    assert model.timing == A100_8B.timing


def test_a_short_prefill_among_streams_teaches_nothing() -> None:
    """Its first token's time is the step's, whatever was learnt of either."""
    model, (speed,) = pool(1)
    speed.saw_prefill_among(16, 0, 500.0, beside_ms=8.0, batch=8, context_tokens=8_000)
    assert model.samples == 0


def test_endpoints_that_leave_are_let_go() -> None:
    """The model does not keep endpoints alive, nor count the gone ones as typical."""
    model, speeds = pool(5)
    run(speeds, [3.0, 3.0, 3.0, 1.0, 1.0], rounds=50)
    del speeds[:3]
    gc.collect()
    run(speeds, [1.0, 1.0], rounds=50)
    assert len(model._speeds) == 2
    assert [speed.factor for speed in speeds] == pytest.approx([1.0, 1.0], rel=0.15)


@pytest.mark.parametrize("times", [1e-3, 1e3])
def test_one_outlier_bends_little(times: float) -> None:
    """One observation a thousand times off moves what was learned by less than 10 %."""
    _, speeds = pool(2)
    run(speeds, [1.0, 1.0], rounds=100)
    for speed in speeds:
        for tokens in (100, 1_000, 4_000) * 10:
            speed.saw_prefill(tokens, 0.0, TRUTH.prefill_ms(tokens))
    speed, other = speeds
    before = [(one.prefill_ms(1_000), one.step_ms(16, 16_000)) for one in speeds]
    speed.saw_decode(16, 16_000, times * before[0][1])
    assert (speed.prefill_ms(1_000), speed.step_ms(16, 16_000)) == pytest.approx(before[0], rel=0.1)
    assert (other.prefill_ms(1_000), other.step_ms(16, 16_000)) == pytest.approx(before[1], rel=0.05)
    speed.saw_first_token(100.0, times * 100.0)
    assert speed.step_ms(16, 16_000) == pytest.approx(before[0][1], rel=0.15)


@pytest.mark.parametrize("times", [1e-3, 1e3])
def test_a_first_outlier_is_soon_made_good(times: float) -> None:
    """Even as the very first thing seen, five good observations outweigh it."""
    model = SpeedModel(A100_8B)
    model.saw_decode(16, 16_000, times * 13.0)
    assert 13.0 / 2 < model.timing.step_ms(16, 16_000) < 13.0 * 2
    for _ in range(5):
        model.saw_decode(16, 16_000, 13.0)
    assert model.timing.step_ms(16, 16_000) == pytest.approx(13.0, rel=0.1)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 1e300])
def test_what_is_no_time_is_left_out(bad: float) -> None:
    """Times that cannot be change nothing at all."""
    model, (speed,) = pool(1)
    before = (speed.factor, *model._decode.coefficients, *model._prefill.coefficients)
    speed.saw_first_token(10.0, bad)
    speed.saw_first_token(bad, 10.0)
    speed.saw_decode(1, 100, bad)
    speed.saw_prefill(100, 0, bad)
    model.saw_decode(bad if math.isnan(bad) else -1, 100, 10.0)
    model.saw_prefill(100, math.nan, 10.0)
    speed.saw_rates(prefill_tokens_per_s=-1.0, decode_tokens_per_s=math.nan, batch=bad)
    assert (speed.factor, *model._decode.coefficients, *model._prefill.coefficients) == before
    assert model.samples == 0


def test_confidence_grows_with_evidence_and_falls_with_error() -> None:
    """Nothing seen is 0; steady truths raise it; predictions gone wrong take it down."""
    model, (speed,) = pool(1)
    assert speed.confidence == 0.0
    run([speed], [1.0], rounds=50)
    sure = speed.confidence
    assert 0.6 < sure < 1.0
    rng = Random(5)
    for _ in range(64):
        speed.saw_first_token(100.0, 100.0 * rng.choice((0.1, 10.0)))
    assert speed.confidence < 0.6 * sure
    stranger = Speed(SpeedModel(prior("no such device")))
    friend = Speed(SpeedModel(A100_8B))
    for one in (stranger, friend):
        one.model.saw_decode(1, 100, 12.0)
    assert stranger.confidence < friend.confidence
    assert model.samples > 0


def test_errors_are_reported() -> None:
    """The reported median of a calibrated endpoint is near the noise of its truths."""
    _, (speed,) = pool(1)
    run([speed], [1.0], rounds=200)
    assert speed.errors.median is not None
    assert speed.errors.p90 is not None
    assert speed.errors.median < 0.08
    assert speed.errors.p90 < 0.2
    assert speed.errors.count == 400


def test_rates_move_a_fresh_endpoint_within_a_factor_of_two() -> None:
    """Rates that tell of an engine ten times slower or faster are weak evidence, bounded, and its own."""
    for times in (0.1, 10.0):
        model = SpeedModel(A100_8B)
        speed, other = Speed(model), Speed(model)
        step = speed.step_ms(16, 16_000)
        for _ in range(1_000):
            speed.saw_rates(
                decode_tokens_per_s=16_000.0 / (step * times), prefill_tokens_per_s=None, batch=16
            )
        assert speed.step_ms(16, 16_000) / step == pytest.approx(0.5 if times < 1 else 2.0, rel=0.02)
        assert other.step_ms(16, 16_000) == step
        assert model.samples == speed.observations == 0


def test_a_prefill_rate_only_bounds() -> None:
    """A low one may be idleness and says nothing; a high one bounds the time from above."""
    for times, found in ((0.1, 0.5), (10.0, 1.0)):
        speed = Speed(SpeedModel(A100_8B))
        each = speed.model.timing.prefill_per_token_ms
        for _ in range(1_000):
            speed.saw_rates(prefill_tokens_per_s=1_000.0 / (each * times), decode_tokens_per_s=None, batch=16)
        assert speed.factor == pytest.approx(found, rel=0.02)


def test_rates_weigh_less_than_requests() -> None:
    """What requests have settled, contradicting rates hardly bend."""
    _, (speed,) = pool(1)
    run([speed], [1.0], rounds=200)
    before = speed.step_ms(16, 16_000)
    for _ in range(20):
        speed.saw_rates(prefill_tokens_per_s=None, decode_tokens_per_s=100.0, batch=16)
    assert speed.step_ms(16, 16_000) == pytest.approx(before, rel=0.05)
    speed.saw_rates(prefill_tokens_per_s=None, decode_tokens_per_s=None, batch=0)


@pytest.mark.parametrize("times", [0.4, 3.0])
def test_a_step_change_is_known_after_a_handful(times: float) -> None:
    """Errors all one way are a change: within 20 % after eight, where 5 % of each took forty."""
    _, speeds = pool(4)
    run(speeds, [1.0] * 4, rounds=100)
    changed, before = speeds[0], speeds[0].factor
    for _ in range(8):
        predicted = changed.prefill_ms(500)
        changed.saw_first_token(predicted, predicted * times * before / changed.factor)
    assert changed.factor == pytest.approx(times * before, rel=0.2)


def test_one_outlier_changes_little() -> None:
    """Nor do two: a stall is no change of speed."""
    _, (speed,) = pool(1)
    run([speed], [1.0], rounds=100)
    before = speed.factor
    for _ in range(2):
        speed.saw_first_token(100.0, 1_000.0)
    assert speed.factor == pytest.approx(before, rel=0.12)


def test_no_excitation_does_not_blow_the_covariance_up() -> None:
    """The same work a hundred thousand times leaves the variance bounded and the fit true."""
    fit, rng = Affine(10.0, 0.03, 1e-4), Random(1)
    trace = fit.trace
    for _ in range(20_000):
        fit.saw(8.0, 8_000.0, 22.0 * rng.gauss(1.0, 0.05))
        assert 0.0 < fit.trace <= trace
    base, first, second = fit.coefficients
    assert base + 8 * first + 8_000 * second == pytest.approx(22.0, rel=0.05)
    for _ in range(100):
        batch = rng.randint(1, 64)
        fit.saw(batch, 1_000.0 * batch, 20.0 + 0.06 * batch + 0.2 * batch)
    base, first, second = fit.coefficients
    assert base + 40 * (first + 1_000 * second) == pytest.approx(20.0 + 40 * 0.26, rel=0.1)


def test_coefficients_stay_within_their_bounds() -> None:
    """Truths beyond a twentieth or twenty times the prior stop at the bound."""
    for observed, bound in ((1e-3, MULTIPLE_MIN), (1e6, MULTIPLE_MAX)):
        fit = Affine(10.0, 0.03, 1e-4)
        for _ in range(2_000):
            fit.saw(1.0, 100.0, observed)
        base, first, second = fit.coefficients
        assert base / 10.0 == pytest.approx(bound)
        assert MULTIPLE_MIN * 0.999 <= first / 0.03 <= MULTIPLE_MAX * 1.001
        assert MULTIPLE_MIN * 0.999 <= second / 1e-4 <= MULTIPLE_MAX * 1.001


def test_a_pool_beyond_the_models_bound_keeps_the_rest_in_its_factors() -> None:
    """Fifty times slower than the prior: the model gives its twenty, the factor the rest."""
    _, (speed,) = pool(1)
    run([speed], [50.0], rounds=300)
    assert speed.step_ms(16, 16_000) == pytest.approx(50 * TRUTH.decode_ms(16, 16_000), rel=0.25)
    assert FACTOR_MIN <= speed.factor <= FACTOR_MAX


def test_a_prior_of_nothing_does_not_fail() -> None:
    """Coefficients of 0 predict 0 and learn nothing, without an exception."""
    model = SpeedModel(Prior(Timing(0.0, 0.0, 0.0, 0.0, 0.0, 0.0), 1, known=False))
    speed = Speed(model)
    speed.saw_decode(1, 1, 10.0)
    speed.saw_prefill(1, 1, 10.0)
    model.saw_decode(1, 1, 10.0)
    model.saw_prefill(1, 1, 10.0)
    assert speed.step_ms(1, 1) == speed.prefill_ms(1) == 0.0

"""Whatever is seen, predictions stay finite, non-negative, monotone and bounded."""

from __future__ import annotations

import math

from hypothesis import example, given
from hypothesis import strategies as st

from extproc.core.predict import OutputLengths, Speed, SpeedModel, prior
from extproc.core.predict.lengths import LENGTH_MAX
from extproc.core.predict.rls import MULTIPLE_MAX, MULTIPLE_MIN
from extproc.core.predict.speed import FACTOR_MAX, FACTOR_MIN

anything = st.floats(allow_nan=True, allow_infinity=True)
likely = st.floats(0.0, 1e5) | anything
work = st.floats(0.0, 1e6)
kinds = st.sampled_from(("first", "prefill", "decode", "rates"))
seen = st.lists(st.tuples(kinds, st.integers(0, 2), likely, likely, likely), max_size=60)
names = st.sampled_from(["", "NVIDIA L4", "NVIDIA H100 80GB HBM3", "AMD Instinct MI300X"]) | st.text(
    max_size=40
)
limits = st.none() | st.integers(0, 10**6)


@given(names, st.text(max_size=60), st.integers(-5, 10**6), st.none() | st.integers(-1, 10**40))
def test_any_name_gives_a_usable_prior(gpu: str, model: str, gpus: int, memory: int | None) -> None:
    """Every coefficient is finite and positive, and some cache exists, whatever the names say."""
    guess = prior(gpu, model, gpus=gpus, memory_bytes=memory)
    timing = guess.timing
    for value in (
        timing.decode_base_ms,
        timing.decode_per_sequence_ms,
        timing.decode_per_context_token_ms,
        timing.prefill_base_ms,
        timing.prefill_per_token_ms,
        timing.prefill_per_square_ms,
    ):
        assert 0.0 < value < 1e7
    assert 1 <= guess.kv_capacity_tokens < 10**13


# Who has shown nothing goes by the others times what its agent said, which may be past the bound.
@example(
    [("first", 0, 0.0, 0.0, 0.0)] * 3 + [("rates", 1, 14_571.0, 0.0, 0.0), ("prefill", 0, 0.0, 0.0, 1.0)],
    0.0,
    0.0,
    0.0,
    0.0,
)
@given(seen, work, work, work, work)
def test_predictions_survive_any_history(
    history: list[tuple[str, int, float, float, float]], u: float, more: float, off: float, k: float
) -> None:
    """No sequence of observations, real or absurd, makes a prediction negative, unreal or not monotone."""
    model = SpeedModel(prior("NVIDIA A100-SXM4-80GB", "llama-3-8b"))
    speeds = [Speed(model) for _ in range(3)]
    trace = model._decode.trace
    for kind, at, one, two, three in history:
        if kind == "first":
            speeds[at].saw_first_token(one, two)
        elif kind == "prefill":
            speeds[at].saw_prefill(one, two, three)
        elif kind == "decode":
            speeds[at].saw_decode(one, two, three)
        else:
            speeds[at].saw_rates(prefill_tokens_per_s=one, decode_tokens_per_s=two, batch=three)
        assert 0.0 < model._decode.trace <= trace * 1.000001
        assert 0.0 < model._prefill.trace <= trace * 1.000001
    before, now = model.prior.timing, model.timing
    for name in ("decode_base_ms", "decode_per_context_token_ms", "prefill_per_token_ms"):
        multiple = getattr(now, name) / getattr(before, name)
        assert MULTIPLE_MIN * 0.999 <= multiple <= MULTIPLE_MAX * 1.001
    for speed in speeds:
        assert FACTOR_MIN <= speed.factor <= FACTOR_MAX
        assert 0.0 <= speed.confidence <= 1.0
        assert math.isfinite(speed.prefill_ms(u, off))
        assert 0.0 < speed.prefill_ms(u, off) <= speed.prefill_ms(u + more, off)
        assert speed.prefill_ms(u, off) <= speed.prefill_ms(u, off + more)
        assert 0.0 < speed.step_ms(u, k) <= speed.step_ms(u + more, k)
        assert speed.step_ms(u, k) <= speed.step_ms(u, k + more) < math.inf


@given(
    st.lists(st.tuples(st.sampled_from("ab"), limits, st.integers(-3, 10**7)), max_size=200),
    limits,
    st.integers(0, 10**6),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
)
def test_lengths_survive_any_history(
    history: list[tuple[str, int | None, int]], limit: int | None, made: int, low: float, high: float
) -> None:
    """Means and quantiles stay within 0 and the limit, quantiles in order, residuals at least 1."""
    lengths = OutputLengths(keys_max=3)
    for tenant, its_limit, tokens in history:
        lengths.saw(tenant, "m", its_limit, tokens)
    most = LENGTH_MAX if limit is None else limit
    low, high = sorted((low, high))
    assert 0.0 <= lengths.expected("a", "m", limit) <= most
    one, two = lengths.quantile("a", "m", limit, low), lengths.quantile("a", "m", limit, high)
    assert 0.0 <= one <= two <= most
    left = lengths.residual("a", "m", limit, made)
    assert 1.0 <= left <= max(1.0, LENGTH_MAX if limit is None else limit - made)
    assert 0.0 <= lengths.confidence("a", "m", limit) <= 1.0
    assert len(lengths) <= 3

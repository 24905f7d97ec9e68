from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.calibrate import (
    BYTES_PER_TOKEN_MAX,
    BYTES_PER_TOKEN_MIN,
    MEMORY_REQUESTS,
    OUTPUT_TOKENS_MAX,
    Calibration,
)


def test_starts_at_the_prior() -> None:
    """Before any evidence the configured figures hold."""
    fresh = Calibration(bytes_per_token=4.0, output_tokens=256)
    assert (fresh.bytes_per_token, fresh.output_tokens) == (4.0, 256)
    assert fresh.predict_input(400) == 100
    assert fresh.predict_input(0) == 1


@pytest.mark.parametrize("truth", [0.5, 2.7, 4.0, 11.0])
def test_converges_to_the_truth(truth: float) -> None:
    """A few hundred prompts bring bytes per token within 1 %, from whatever prior."""
    rng = Random(1)
    learner = Calibration(bytes_per_token=30.0, output_tokens=256)
    for _ in range(500):
        size = rng.randrange(200, 20_000)
        learner.saw_prompt(size, round(size / truth))
    assert learner.bytes_per_token == pytest.approx(truth, rel=0.01)
    assert learner.predict_input(10_000) == pytest.approx(10_000 / truth, rel=0.01)


def test_follows_a_change() -> None:
    """Old evidence fades: a change of language shows within the memory."""
    learner = Calibration(bytes_per_token=4.0, output_tokens=256)
    for _ in range(2_000):
        learner.saw_prompt(4_000, 1_000)
        learner.saw_output(100)
    for _ in range(4_000):
        learner.saw_prompt(4_000, 2_000)
        learner.saw_output(300)
    assert learner.bytes_per_token == pytest.approx(2.0, rel=0.05)
    assert learner.output_tokens == pytest.approx(300, rel=0.01)


def test_one_lying_length_bends_little() -> None:
    """A count of a hundred million tokens weighs as one longest answer."""
    learner = Calibration(bytes_per_token=4.0, output_tokens=256)
    for _ in range(600):
        learner.saw_output(256)
    learner.saw_output(100_000_000)
    assert learner.output_tokens <= 256 + OUTPUT_TOKENS_MAX / MEMORY_REQUESTS


counts = st.integers(min_value=-(10**12), max_value=10**12)


@given(st.lists(st.tuples(counts, counts)), st.floats(0.26, 63), st.integers(1, 1_000_000))
def test_bounded_against_any_counts(seen: list[tuple[int, int]], prior: float, outputs: int) -> None:
    """No sequence of counts takes an estimate out of its bounds or makes it NaN."""
    learner = Calibration(bytes_per_token=prior, output_tokens=outputs)
    for size, tokens in seen:
        learner.saw_prompt(size, tokens)
        learner.saw_output(tokens)
    assert BYTES_PER_TOKEN_MIN * 0.999 <= learner.bytes_per_token <= BYTES_PER_TOKEN_MAX * 1.001
    assert 0 <= learner.output_tokens <= max(outputs, OUTPUT_TOKENS_MAX) * 1.001
    assert math.isfinite(learner.bytes_per_token)
    assert learner.predict_input(1_000) >= 1

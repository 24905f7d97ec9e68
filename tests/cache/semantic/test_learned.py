"""A threshold is learned by checks alone, starts at never, and keeps to its bound."""

from __future__ import annotations

from random import Random

import pytest

from extproc.cache.semantic.entries import WINDOW
from extproc.cache.semantic.errors import upper
from extproc.cache.semantic.learned import (
    OFF_MIN,
    OWN_MIN,
    EntryChecks,
    LikelyWrong,
    ThresholdLearner,
)

BOUND, CONFIDENCE = 0.005, 0.95


def judge(learner: ThresholdLearner, checks: EntryChecks | None, similarity: float = 0.9) -> LikelyWrong:
    return learner.judge(checks, similarity, bound=BOUND, confidence=CONFIDENCE)


def taught(
    learner: ThresholdLearner, count: int, similarity: float = 0.9, *, same: bool = True
) -> EntryChecks:
    checks = None
    for _ in range(count):
        checks = learner.observe(checks, similarity, same=True)
    assert checks is not None
    return checks


def well_taught() -> ThresholdLearner:
    """A scope of whose entries all checks agreed."""
    learner = ThresholdLearner()
    for _ in range(20):
        taught(learner, 20)
    return learner


def test_an_entry_starts_at_never() -> None:
    """Nothing is given before an entry has agreeing checks of its own, whatever its scope has seen."""
    learner = well_taught()
    assert not judge(learner, None).within
    assert not judge(learner, taught(learner, OWN_MIN - 1), 1.0).within
    assert not judge(ThresholdLearner(), taught(ThresholdLearner(), 5), 1.0).within


def test_agreeing_checks_open_it_from_their_similarity_on() -> None:
    """What is as alike as what was checked may be given; what is less alike may not."""
    learner = well_taught()
    checks = taught(learner, 10, 0.9)
    assert judge(learner, checks, 0.95).within
    assert judge(learner, checks, 0.95).wrong <= BOUND
    assert not judge(learner, checks, 0.55).within
    assert judge(learner, checks, 0.55).wrong > judge(learner, checks, 0.9).wrong


def test_a_disagreement_closes_it() -> None:
    """One other answer and the entry gives nothing at that similarity or below."""
    learner = well_taught()
    checks = taught(learner, 10, 0.9)
    learner.observe(checks, 0.93, same=False)
    assert not judge(learner, checks, 0.93).within
    assert not judge(learner, checks, 0.8).within


def test_answers_that_differ_now_and_then_are_never_given() -> None:
    """Where one answer in twenty differs whatever the similarity, no number of checks opens anything."""
    chance, learner = Random(3), ThresholdLearner()
    entries: dict[int, EntryChecks] = {}
    for _ in range(600):
        entry = chance.randrange(20)
        entries[entry] = learner.observe(
            entries.get(entry), chance.uniform(0.85, 1.0), same=chance.random() > 0.05
        )
    assert not any(judge(learner, checks, 0.99).within for checks in entries.values())


@pytest.mark.parametrize("wrong", [0.0, 0.002, 0.05])
def test_the_bound_holds_over_a_long_run(wrong: float) -> None:
    """With some bad entries, and checks as the cache makes them, at most the bound of all given is wrong."""
    given, bad = 0, 0
    for seed in range(3):
        chance, learner = Random(seed), ThresholdLearner()
        entries: dict[int, EntryChecks] = {}
        for _ in range(1_200):
            entry, similarity = int(30 * chance.random() ** 2), chance.uniform(0.85, 1.0)
            same = chance.random() >= (0.5 if entry % 10 == 3 else wrong)
            told = judge(learner, entries.get(entry), similarity)
            if told.within and not learner.off(BOUND) and chance.random() > 0.05:
                given += 1
                bad += not same
                continue
            if told.within:
                learner.checked(same=same)
            entries[entry] = learner.observe(entries.get(entry), similarity, same=same)
    assert bad <= BOUND * max(given, 200)
    assert wrong or given > 300


def test_too_many_wrong_ones_turn_it_off_until_they_are_outweighed() -> None:
    """The share of wrong ones among what would have been given decides, in both directions."""
    learner = ThresholdLearner()
    for _ in range(OFF_MIN):
        learner.checked(same=False)
    assert learner.off(BOUND)
    for _ in range(int(OFF_MIN / BOUND) - OFF_MIN):
        assert learner.off(BOUND)
        learner.checked(same=True)
    assert not learner.off(BOUND)
    for _ in range(2 * WINDOW):
        learner.checked(same=True)
    assert learner.sampled == (WINDOW, 0)


def test_an_entry_that_is_gone_leaves_no_threshold() -> None:
    """The spread of thresholds is that of the entries that are there."""
    learner = ThresholdLearner()
    before = judge(learner, taught(learner, 3), 0.95)
    for _ in range(5):
        learner.forget(taught(learner, 30))
    again = ThresholdLearner()
    assert judge(again, taught(again, 3), 0.95).wrong == pytest.approx(before.wrong)


def test_the_error_that_is_shown_is_an_upper_one() -> None:
    """Nothing checked is everything possible; a hundred right ones leave a few per cent."""
    assert upper(0, 0) == 1.0
    assert upper(0, 100) == pytest.approx(0.0263, abs=1e-3)
    assert upper(5, 100) > 0.05

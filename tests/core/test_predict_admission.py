"""How an engine admits, learnt from first tokens and from what prefills cost the streams beside them."""

from __future__ import annotations

from random import Random

import pytest

from extproc.core.predict.admission import (
    AHEAD_MAX,
    KNOWN_MIN,
    PRIOR_SHARE,
    SERIAL_SHARE,
    STALLS_KEPT,
    TRIAL_FIRST_NS,
    TRIAL_MAX_NS,
    Admission,
    AdmissionModel,
)

OPEN = pytest.approx(PRIOR_SHARE / SERIAL_SHARE)


def serves(admission: Admission, *, ahead: int = 1, waited: float = 1.0, times: int = 1) -> None:
    """So many first tokens, each of 100 ms, that came after that share of 200 ms ahead."""
    for _ in range(times):
        admission.saw(ahead, 200.0, 100.0, 200.0 * waited)


def test_nothing_known_is_open_and_no_evidence() -> None:
    """A bound that is never tried is never found wrong."""
    admission = Admission(AdmissionModel())
    assert admission.share(1) == admission.share(50) == OPEN
    assert not admission.known(1)


def test_two_first_tokens_close_an_engine_that_takes_one_at_a_time() -> None:
    """And what is closed with one ahead is closed with more."""
    admission = Admission(AdmissionModel())
    serves(admission, times=KNOWN_MIN)
    assert admission.shares[1:] == [1.0] * AHEAD_MAX
    assert admission.known(1)
    assert admission.known(7)


def test_side_by_side_is_open_as_far_as_it_was_seen() -> None:
    """Two at once and no third: free with one ahead, not with two; of more no better is thought."""
    admission = Admission(AdmissionModel())
    serves(admission, waited=0.0, times=3)
    assert admission.share(1) == admission.share(9) == 0.0
    serves(admission, ahead=2, waited=0.9, times=3)
    assert admission.share(1) == 0.0
    assert admission.share(2) == admission.share(9) == 1.0


def test_what_waits_in_the_engine_is_waited_for() -> None:
    """Whatever first tokens said: an engine that lets two wait starts neither them nor who comes after."""
    admission = Admission(AdmissionModel())
    for ahead in (1, 2, 3, 5, 9):
        serves(admission, ahead=ahead, waited=0.0, times=3)
    shares = admission.shares
    assert shares[1:] == [0.0] * AHEAD_MAX
    admission.told(2)
    assert shares[1:] == [min(1.0, 2 / ahead) for ahead in range(1, AHEAD_MAX + 1)]
    serves(admission, waited=1.0, times=6)
    assert shares[1:] == [1.0] * AHEAD_MAX, "what was learnt counts where it is more"
    serves(admission, waited=0.0, times=9)
    admission.told(0)
    assert shares[1:] == [0.0] * AHEAD_MAX


def test_between_the_share_is_in_proportion() -> None:
    """Half of what is ahead is waited for."""
    admission = Admission(AdmissionModel())
    serves(admission, waited=0.3, times=5)
    assert admission.share(1) == pytest.approx(0.5)


def test_what_was_no_more_cached_closes_nothing() -> None:
    """Late ones among those in time: a prompt is late for more reasons than waiting, early for none."""
    admission = Admission(AdmissionModel())
    rng = Random(1)
    for _ in range(40):
        serves(admission, waited=2.0 if rng.random() < 0.25 else 0.0)
    assert admission.share(1) < 0.2


def test_noise_opens_nothing() -> None:
    """One at a time with 30 % noise stays one at a time."""
    admission, rng = Admission(AdmissionModel()), Random(2)
    for _ in range(200):
        serves(admission, waited=rng.gauss(1.05, 0.3))
        if admission.known(1):
            assert admission.share(1) > 0.5
    assert admission.share(1) == 1.0


def test_an_engine_that_changes_is_found_out() -> None:
    """Both ways, within the few observations that are remembered."""
    admission = Admission(AdmissionModel())
    serves(admission, times=20)
    serves(admission, waited=0.0, times=8)
    assert admission.share(1) == 0.0
    serves(admission, times=8)
    assert admission.share(1) == 1.0


def test_the_pool_teaches_those_that_know_nothing_yet() -> None:
    """And an endpoint that differs goes by its own."""
    model = AdmissionModel()
    first, second, odd = Admission(model), Admission(model), Admission(model)
    for each in (first, second, odd):
        each.answers()
    serves(first, times=4)
    assert second.share(1) == 1.0
    serves(odd, waited=0.0, times=4)
    assert odd.share(1) == 0.0
    assert first.share(1) == 1.0


def test_who_has_not_answered_while_others_have_gets_one_at_a_time() -> None:
    """It may be ill, or slow."""
    model = AdmissionModel()
    quick, silent = Admission(model), Admission(model)
    assert silent.share(1) == OPEN
    quick.answers()
    assert quick.share(1) == OPEN
    assert silent.share(1) == 1.0
    silent.answers()
    assert silent.share(1) == OPEN


def test_little_ahead_tells_nothing() -> None:
    """A wait of a few milliseconds is noise."""
    admission = Admission(AdmissionModel())
    for _ in range(9):
        admission.saw(1, 3.0, 2.0, 3.0)
        admission.saw(1, 20.0, 100.0, 20.0)
        admission.saw(0, 200.0, 100.0, 200.0)
    assert admission.share(1) == OPEN


@pytest.mark.parametrize(("cost", "found"), [(1.0, 1.0), (0.0, 0.0), (0.3, 0.5)])
@pytest.mark.parametrize("step", [0.5, 1.0, 2.0])
def test_what_a_prefill_costs_a_stream_is_a_slope(cost: float, found: float, step: float) -> None:
    """Whatever the error of the predicted step."""
    admission = Admission(AdmissionModel())
    rng = Random(3)
    for _ in range(STALLS_KEPT):
        prefills_ms = rng.uniform(0.0, 2_000.0)
        admission.saw_decode(step * 500.0 + cost * prefills_ms, 500.0, prefills_ms)
    assert admission.stall == pytest.approx(found)


def test_streams_that_met_no_prefill_leave_the_usual_engine() -> None:
    """At first open; then as an engine that stops its streams, until something else is shown."""
    admission = Admission(AdmissionModel())
    assert admission.stall == OPEN
    for _ in range(STALLS_KEPT):
        admission.saw_decode(500.0, 500.0, 0.0)
    assert admission.stall == 1.0


def test_a_closed_queue_is_tried_ever_less_often() -> None:
    """After a second, two, four, to half a minute; from the beginning again once it was found open."""
    admission, now_ns, waits = Admission(AdmissionModel()), 0, []
    serves(admission, times=4)
    for _ in range(8):
        assert admission.trials.due(now_ns)
        admission.trials.tried(now_ns)
        assert not admission.trials.due(now_ns)
        began_ns = now_ns
        while not admission.trials.due(now_ns):
            now_ns += TRIAL_FIRST_NS // 2
        waits.append(now_ns - began_ns)
    assert waits == [min(TRIAL_FIRST_NS << i, TRIAL_MAX_NS) for i in range(8)]
    serves(admission, waited=0.0, times=8)
    admission.trials.tried(now_ns)
    assert admission.trials.due(now_ns + TRIAL_FIRST_NS)


def test_what_a_prefill_costs_a_stream_is_known_from_evidence_or_from_many() -> None:
    """Until then a prior stands there, and of the speed nothing may be learnt by it."""
    admission = Admission(AdmissionModel())
    assert not admission.stall_known
    for _ in range(STALLS_KEPT - 1):
        admission.saw_decode(500.0, 500.0, 0.0)
        assert not admission.stall_known
    admission.saw_decode(500.0, 500.0, 0.0)
    assert admission.stall_known

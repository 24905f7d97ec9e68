from __future__ import annotations

from collections.abc import Callable
from math import exp, log
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.tuning.online import GoalWindow, Knob, Move, Tuner, TuningGuard

KNOB = Knob(name="queue", value=1_000.0, low=250.0, high=4_000.0)


def window(
    attainment: float, *, requests: int = 1_000, failed: int = 0, p99: float | None = None
) -> GoalWindow:
    return GoalWindow(
        requests=requests, attained=round(attainment * requests), failed=failed, ttft_p99_ms=p99
    )


def tuner(*knobs: Knob, **facts: object) -> Tuner:
    return Tuner(knobs or (KNOB,), TuningGuard(**facts))  # type: ignore[arg-type]


def tried(one: Tuner, *, at: float = 0.9) -> Move:
    move = one.window(window(at), now_ns=0)
    assert move is not None
    assert move.kind == "try"
    return move


def test_one_change_at_a_time() -> None:
    """After a window that says enough, a step of the largest size; then a verdict before the next."""
    one = tuner(KNOB, Knob(name="other", value=1.0, low=0.1, high=2.0))
    assert one.window(window(0.9, requests=499), now_ns=0) is None
    move = tried(one)
    assert (move.name, move.before, move.after) == ("queue", 1_000.0, 1_250.0)
    assert one.values == {"queue": 1_250.0, "other": 1.0}
    kept = one.window(window(0.95), now_ns=0)
    assert kept is not None
    assert (kept.kind, kept.after, kept.why) == ("keep", 1_250.0, "attainment 0.9000 to 0.9500")
    again = tried(one, at=0.95)
    assert (again.name, again.after) == ("queue", 1_562.5)


def test_noise_is_no_gain() -> None:
    """What could be chance is taken back, and the other direction is next, then the other knob."""
    one = tuner(KNOB, Knob(name="other", value=1.0, low=0.1, high=2.0))
    tried(one)
    back = one.window(window(0.905), now_ns=0)
    assert back is not None
    assert (back.kind, back.before, back.after) == ("revert", 1_250.0, 1_000.0)
    assert "no gain" in back.why
    assert one.values["queue"] == 1_000.0
    assert tried(one).after == 750.0
    one.window(window(0.9), now_ns=0)
    assert tried(one).name == "other"


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (window(0.88), "attainment fell from 0.9000 to 0.8800"),
        (window(0.95, failed=10), "failures rose from 0.0000 to 0.0100"),
        (window(0.99, requests=1_500), "the load changed"),
        (window(0.99, requests=600), "the load changed"),
    ],
)
def test_a_guarded_figure_takes_it_back(seen: GoalWindow, why: str) -> None:
    """Worse than allowed, or not comparable: back to where it was, whatever the metric says."""
    one = tuner()
    tried(one)
    back = one.window(seen, now_ns=0)
    assert back is not None
    assert back.kind == "revert"
    assert why in back.why
    assert one.values == {"queue": 1_000.0}
    assert one.trying is None


def test_harm_is_not_waited_for() -> None:
    """In the middle of a window a clear breach ends the trial; a doubtful one does not."""
    one = tuner(requests_min=400)
    assert one.watch(window(0.1)) is None
    tried(one)
    assert one.watch(window(0.5, requests=99)) is None
    assert one.watch(window(0.87, requests=100)) is None
    back = one.watch(window(0.5, requests=100))
    assert back is not None
    assert back.kind == "revert"
    assert one.values == {"queue": 1_000.0}


def test_too_little_traffic_ends_a_trial() -> None:
    """After some windows."""
    one = tuner()
    tried(one)
    assert one.window(window(0.9, requests=10), now_ns=0) is None
    assert one.window(window(0.9, requests=10), now_ns=0) is None
    back = one.window(window(0.9, requests=10), now_ns=0)
    assert back is not None
    assert "too little traffic" in back.why


def test_the_pause_is_kept() -> None:
    """From one change to the next at least so long; measuring goes on."""
    one = tuner(every_ns=100)
    tried(one)
    one.window(window(0.9), now_ns=10)
    assert one.window(window(0.9), now_ns=99) is None
    assert one.window(window(0.9), now_ns=100) is not None


def test_the_first_tokens_percentile() -> None:
    """Must be better by more than a little, and must be there."""
    for p99, kind in ((960.0, "keep"), (980.0, "revert"), (None, "revert")):
        one = tuner(metric="ttft_p99")
        assert one.window(window(0.9, p99=1_000.0), now_ns=0) is not None
        move = one.window(window(0.9, p99=p99), now_ns=0)
        assert move is not None
        assert move.kind == kind


def test_a_move_that_could_not_be_made_is_forgotten() -> None:
    """Its record failed: nothing has changed."""
    one = tuner()
    tried(one)
    one.forget()
    assert one.trying is None
    assert one.values == {"queue": 1_000.0}


def test_no_way_to_go() -> None:
    """A knob whose range is its value is never turned."""
    one = tuner(Knob(name="fixed", value=1.0, low=1.0, high=1.0))
    assert one.window(window(0.9), now_ns=0) is None
    assert one.values == {"fixed": 1.0}


@given(
    st.integers(0, 2**32),
    st.floats(0.01, 1.0),
    st.booleans(),
    st.floats(0.5, 2_000.0),
    st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 3_000), st.floats(0, 0.2), st.booleans()), max_size=60
    ),
)
def test_never_out_of_range(
    seed: int, step: float, whole: bool, value: float, windows: list[tuple[float, int, float, bool]]
) -> None:
    """Whatever the windows show: within the bounds, one knob at a time, a step no larger than allowed, and
    everything that is tried is kept or taken back."""
    value = max(1, round(value)) if whole else value
    rng = Random(seed)
    knobs = [
        Knob(name="a", value=value, low=value / 2, high=value * 2, whole=whole),
        Knob(name="b", value=1.0, low=1.0, high=1.5),
    ]
    if whole:
        knobs[0] = Knob(name="a", value=value, low=-(-value // 2), high=value * 2, whole=True)
    one = Tuner(knobs, TuningGuard(step_max=step, requests_min=200))
    before = one.values
    for attainment, requests, failed, watched in windows:
        seen = window(attainment, requests=requests, failed=int(failed * requests), p99=rng.uniform(1, 99))
        trying = one.trying
        move = one.watch(seen) if watched else one.window(seen, now_ns=0)
        now = one.values
        for knob in knobs:
            assert knob.low <= now[knob.name] <= knob.high
            assert not (knob.whole and now[knob.name] != int(now[knob.name]))
        changed = [name for name in now if now[name] != before[name]]
        if move is None:
            assert not changed
        else:
            assert changed == ([] if move.kind == "keep" else [move.name])
            assert move.kind == ("try" if trying is None else move.kind)
            if move.kind == "try":
                most = max(step * move.before, 1.0 if move.name == "a" and whole else 0.0)
                assert abs(move.after - move.before) <= most + 1e-9
            if move.kind == "revert":
                assert trying is not None
                assert now[move.name] == trying.before
        before = now


def played(optimum: Callable[[int], float], *, windows: int, seed: int) -> list[float]:
    """A service whose attainment falls off with the distance from an optimum that moves; where it stood."""
    rng = Random(seed)
    one = tuner(Knob(name="queue", value=1_000.0, low=100.0, high=10_000.0), requests_min=500)
    stood = []
    for at in range(windows):
        far = log(one.values["queue"] / optimum(at))
        share = 0.35 + 0.6 * exp(-0.4 * far * far)
        hits = sum(rng.random() < share for _ in range(2_000))
        one.window(GoalWindow(requests=2_000, attained=hits, failed=0), now_ns=at)
        stood.append(one.values["queue"])
    return stood


@pytest.mark.parametrize("seed", range(5))
def test_it_goes_where_it_is_better(seed: int) -> None:
    """From far off it comes within half a step's reach of a flat top."""
    stood = played(lambda _: 4_000.0, windows=120, seed=seed)
    assert sorted(stood[-40:])[20] == pytest.approx(4_000.0, rel=0.5)


@pytest.mark.parametrize("seed", range(5))
def test_it_follows_what_drifts(seed: int) -> None:
    """An optimum that moves to another place is followed: nearer in the end than standing still would be."""
    stood = played(lambda at: 1_000.0 * 6.0 ** min(1.0, at / 150), windows=260, seed=seed)
    assert abs(log(sorted(stood[-40:])[20] / 6_000.0)) < 0.5 * abs(log(1_000.0 / 6_000.0))


@pytest.mark.parametrize("seed", range(5))
def test_where_nothing_is_to_gain_it_stays(seed: int) -> None:
    """On a flat objective chance is seldom taken for a gain."""
    rng = Random(seed)
    one = tuner(requests_min=500)
    kept = 0
    for at in range(200):
        hits = sum(rng.random() < 0.9 for _ in range(1_000))
        move = one.window(GoalWindow(requests=1_000, attained=hits, failed=0), now_ns=at)
        kept += move is not None and move.kind == "keep"
    assert kept <= 12

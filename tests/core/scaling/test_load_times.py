"""Load times: who tells of them, and how few of them count."""

from __future__ import annotations

from extproc.core.scaling.load_times import KEPT_MAX, LoadTimes
from extproc.core.scaling.values import LoadTime

S = 1_000_000_000


def test_the_file_stands_in_until_loads_were_measured() -> None:
    """Nothing measured: what the file says, and that it is no measurement."""
    assert LoadTimes().of("llama", prior_s=60.0) == LoadTime(p50_s=60.0, p90_s=60.0, measured=0)


def test_a_load_is_from_the_first_look_that_finds_it_loading_to_the_first_that_finds_it_ready() -> None:
    """Looks in between change nothing; a replica that was ready at first sight shows no load."""
    loads = LoadTimes()
    for at in (10, 20, 50):
        loads.saw("llama", "a", "loading", "A100", now_ns=at * S)
    loads.saw("llama", "a", "ready", "A100", now_ns=90 * S)
    loads.saw("llama", "b", "ready", "A100", now_ns=90 * S)
    loads.saw("llama", "a", "ready", "A100", now_ns=95 * S)
    (row,) = loads.rows()
    assert row == (("llama", "A100", None), LoadTime(p50_s=80.0, p90_s=80.0, measured=1))
    assert loads.of("llama", prior_s=60.0).p90_s == 80.0
    assert loads.of("other", prior_s=60.0).measured == 0


def test_who_starts_a_replica_itself_is_believed_alone() -> None:
    """A launcher's own time counts, cold and warm apart, and looks at its replicas add nothing."""
    loads = LoadTimes()
    loads.launched("llama", "a")
    loads.saw("llama", "a", "loading", "", now_ns=0)
    loads.saw("llama", "a", "ready", "", now_ns=7 * S)
    assert loads.rows() == []
    loads.loaded("llama", "", 30.0, cold=True)
    loads.loaded("llama", "", 4.0, cold=False)
    assert [(key.cold, each.p50_s) for key, each in loads.rows()] == [(False, 4.0), (True, 30.0)]


def test_what_is_no_load_is_left_out_and_the_newest_are_kept() -> None:
    """NaN, a moment and a week are no loads; of many the last few say what holds now."""
    loads = LoadTimes()
    for bad in (float("nan"), float("inf"), 0.0, -5.0, 604_800.0):
        loads.loaded("llama", "", bad)
    assert loads.rows() == []
    for seconds in [300.0] * 50 + [20.0] * KEPT_MAX:
        loads.loaded("llama", "", seconds)
    assert loads.of("llama", prior_s=60.0) == LoadTime(p50_s=20.0, p90_s=20.0, measured=KEPT_MAX)


def test_replicas_that_left_are_forgotten() -> None:
    """A replica that vanished while it loaded does not end as a load of its successor."""
    loads = LoadTimes()
    loads.saw("llama", "a", "loading", "", now_ns=0)
    loads.only([("llama", "b")])
    loads.saw("llama", "a", "ready", "", now_ns=900 * S)
    assert loads.rows() == []

from __future__ import annotations

from dataclasses import replace

import pytest
from recorded_traffic import record

from extproc.lab.replay.log import LogError, read
from extproc.lab.replay.rebuild import Scene, scene
from extproc.lab.search import UNANSWERED_MS, gain, tune, worth


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A minute of traffic or so that two strategies may be asked about."""
    path = tmp_path_factory.mktemp("record") / "record.jsonl"
    record(path, requests=360, per_s=30.0, strategy="least_work")
    return scene(read(path))


def test_objectives() -> None:
    """Shares, seconds between first and last, and a percentile that is better when it is less negative."""
    blocks = [[(0, True, 100.0), (10**9, False, UNANSWERED_MS)], [(0, True, 50.0), (2 * 10**9, True, 70.0)]]
    assert worth("attainment", blocks) == 0.75
    assert worth("goodput", blocks) == 1.0
    assert worth("ttft_p99", blocks) == -UNANSWERED_MS
    assert worth("ttft_p99", [[], []]) == 0.0


def test_who_sheds_does_not_look_fast(there: Scene) -> None:
    """The gain of doing the same is nothing, surely; that of a useless setting is a loss, surely."""
    same = gain(there, "steer", {}, {}, objective="ttft_p99", seeds=(1, 2))
    assert (same.value, same.low, same.high, same.shown) == (0.0, 0.0, 0.0, False)
    worse = gain(there, "steer", {}, {"kv_share": 0.001}, objective="ttft_p99", seeds=(1,))
    assert worse.high <= 0.0
    assert worse.before > 0


def test_a_search_finds_its_way_out(there: Scene) -> None:
    """From a setting that lets hardly anything run, judged on what it has not seen; equal for equal seeds."""
    bad = replace(there, parameters={"steer": {"kv_share": 0.01, "queue_tokens": 128}})
    told: list[int] = []
    found = tune(
        bad,
        strategy="steer",
        trials=6,
        seed=4,
        seeds_held_out=1,
        told=lambda trial: told.append(trial.number),
    )
    assert told == list(range(6))
    assert found.before["kv_share"] == 0.01
    assert found.train + found.held_out == len(bad.rows)
    assert float(found.parameters["kv_share"]) >= 0.6
    assert found.gain.low <= found.gain.value <= found.gain.high
    again = tune(bad, strategy="steer", trials=6, seed=4, seeds_held_out=1)
    assert again == found


def test_what_cannot_be_searched(there: Scene) -> None:
    """Too little traffic to judge by, and a strategy without parameters."""
    with pytest.raises(LogError, match="100 requests are too few to search on"):
        tune(there.part(0, 100), strategy="steer")
    with pytest.raises(ValueError, match="'round_robin' has no parameter to tune"):
        tune(there, strategy="round_robin")

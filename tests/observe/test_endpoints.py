"""An endpoint in plain values: what is told of its prefix cache."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.core.endpoint import Endpoint
from extproc.core.reports import KvReport, ReplicaReport
from extproc.observe.endpoints import view

HERE = "10.0.0.1:80"


def shown(**told: Any) -> dict[str, Any]:
    endpoint = Endpoint(address=HERE, pool="p", max_concurrent=8)
    if told:
        endpoint.heard(ReplicaReport(address=HERE, pool="p", **told), now_ns=0)
    return view(endpoint, now_ns=0)


@pytest.mark.parametrize(
    ("told", "ratio"),
    [
        ({}, None),
        ({"running": 1}, None),
        ({"prefix_queried_tokens": 0, "prefix_hit_tokens": 0}, None),
        ({"prefix_queried_tokens": 2_000, "prefix_hit_tokens": None}, None),
        ({"prefix_queried_tokens": 2_000, "prefix_hit_tokens": 0}, 0.0),
        ({"prefix_queried_tokens": 3_000, "prefix_hit_tokens": 2_000}, 0.667),
        ({"prefix_queried_tokens": 10, "prefix_hit_tokens": 2**53}, 1.0),
    ],
)
def test_the_engines_own_hits_are_a_share_or_unknown(told: dict[str, Any], ratio: float | None) -> None:
    """Nothing looked up is no nought, and an engine that says too much found all of it."""
    assert shown(**told)["prefix_hit_ratio"] == ratio


def test_what_kv_events_told_is_counted() -> None:
    """Guessed where nobody speaks; else events, losses and replays as the agent counts them."""
    assert (shown()["cache_source"], shown()["kv_events"]) == ("guessed", None)
    found = shown(kv=KvReport(cached_tokens=64, complete=True, events=9, gaps=1, replays=2))
    assert found["kv_events"] == {
        "cached_tokens": 64,
        "complete": True,
        "events": 9,
        "unreadable": 0,
        "gaps": 1,
        "replays": 2,
        "clears": 0,
    }

"""A replica that takes few requests at once: what has no place cannot stay, however long it may wait."""

from __future__ import annotations

import pytest

from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.scaling.capacity import Capacity, need, rate_max, shape
from extproc.core.scaling.values import ReplicaKind, WorkSample
from extproc.core.slo import ClassSpec

A100 = "NVIDIA A100-SXM4-80GB"
FLEET = Fleet([PoolSpec(name="p", models=("llama-3-8b",), strategy="steer", endpoints=())])
#: A hundred tokens of about 12 ms: 1.2 s, so that one place bears no more than 0.8 a second.
SAMPLES = (WorkSample("standard", 30, 0, 100),) * 100


def capacity(permits: int, *, ttft_s: float = 5.0) -> Capacity:
    timing = FLEET.pools["p"].speed_of(A100, 1).timing
    kind = ReplicaKind(name="a", timing=timing, permits=permits)
    spec = ClassSpec(ttft_ns=int(ttft_s * 1e9), tpot_ns=1_000_000_000)
    return Capacity(shape(SAMPLES, kind, {"standard": spec}), kind)


@pytest.mark.parametrize("permits", [1, 2, 4])
def test_no_more_than_the_places_give_back(permits: int) -> None:
    """However patient the class is, requests end no faster than replicas work."""
    for replicas in (1, 2, 4):
        ends_per_s = permits * replicas / 1.2
        assert rate_max(capacity(permits, ttft_s=60.0), replicas, 0.95) < ends_per_s
        assert rate_max(capacity(permits), replicas, 0.95) > 0.1 * ends_per_s


def test_a_higher_rate_needs_no_fewer() -> None:
    """And says that permits bind."""
    found = [need(capacity(1), rate, 0.99) for rate in (0.2, 0.5, 1.0, 2.0, 4.0)]
    assert [each.replicas for each in found] == sorted(each.replicas for each in found)
    assert found[0].replicas < found[-1].replicas
    assert {each.binding for each in found[1:]} == {"permits"}


def test_patience_helps_within_that() -> None:
    """Who may wait longer finds a place."""
    assert rate_max(capacity(2, ttft_s=5.0), 2, 0.99) > 1.5 * rate_max(capacity(2, ttft_s=0.2), 2, 0.99)

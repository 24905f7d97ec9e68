"""What binds a pool, what is worth a try, and what is recommended."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.core.endpoint import Endpoint
from extproc.core.predict.hardware import find_gpu
from extproc.core.predict.timing import Timing
from extproc.core.reports import ReplicaReport
from extproc.core.scaling.advice import (
    LARGER,
    ChangeGain,
    PoolBound,
    VerticalChange,
    advise,
    changes_for,
    diagnose,
    gpu_resource,
    larger_cards,
    recommendation,
    smaller_cards,
)
from extproc.core.scaling.use import ResourceUse, UseMeter, kv_share, look_at
from extproc.core.scaling.values import ReplicaKind

KIND = ReplicaKind(
    name="a100",
    timing=Timing(11.8, 0.029, 9.2e-5, 8.9, 0.0669, 1.7e-6),
    permits=64,
    kv_capacity_tokens=450_000,
    hardware="NVIDIA A100-SXM4-80GB",
)


def use(**given: Any) -> ResourceUse:
    return ResourceUse(
        **{"kv_p50": 0.3, "kv_p99": 0.5, "permits_p99": 0.5, "busy": 0.6, "looks": 1e4, **given}
    )


@pytest.mark.parametrize(
    ("given", "attainment", "bound"),
    [
        (use(kv_p99=0.95), None, "memory"),
        (use(kv_p99=0.95, permits_p99=1.0), 1.0, "memory"),
        (use(permits_p99=0.99), None, "permits"),
        (use(kv_p99=None, permits_p99=0.99), None, "permits"),
        (use(), 0.9, "compute"),
        (use(waiting=0.5), None, "compute"),
        (use(kv_p99=0.1, permits_p99=0.1), 1.0, "idle"),
        (use(kv_p99=0.1, permits_p99=0.1), 0.5, "compute"),
        (use(), 1.0, "balanced"),
        (use(looks=3, kv_p99=1.0), None, "unknown"),
    ],
)
def test_what_binds_is_named(given: ResourceUse, attainment: float | None, bound: PoolBound) -> None:
    """Memory before permits, both before compute; idle only where targets hold; nothing of few looks."""
    found = diagnose(given, attainment=attainment)
    assert found.bound == bound
    assert found.why


def test_changes_fit_what_binds() -> None:
    """Memory: fewer permits or more memory; permits: more; compute: prefill; idle: slices."""

    def names(bound: PoolBound) -> list[str]:
        return [each.name for each in changes_for(bound, KIND)]

    assert names("memory") == [
        "max_concurrent 48",
        "max_concurrent 32",
        "KV cache in 8 bits",
        "5 % more memory for KV",
        "on H200",
        "on B200",
    ]
    assert names("permits") == ["max_concurrent 96", "max_concurrent 128"]
    assert {"prefill 2048", "prefill 8192", "on H100"} <= set(names("compute"))
    assert names("idle") == [
        "on NVIDIA A100-SXM4-80GB MIG 3g.40gb",
        "on NVIDIA A100-SXM4-80GB MIG 2g.20gb",
    ]
    assert names("unknown") == []
    assert [each.hardware for each in changes_for("idle", KIND, ["T4"])] == ["T4"]


def test_cards_are_larger_and_smaller_in_what_is_short() -> None:
    """By the data sheets; of a card that nobody knows none are named."""
    own = find_gpu(KIND.hardware)
    assert own is not None
    for name in larger_cards(KIND, "memory"):
        card = find_gpu(name)
        assert card is not None
        assert card.memory_gib > own.memory_gib
    l40s = ReplicaKind(name="l40s", timing=KIND.timing, hardware="NVIDIA L40S")
    for name in smaller_cards(l40s):
        card = find_gpu(name)
        assert card is not None
        assert card.memory_gib < 45
    nobody = ReplicaKind(name="x", timing=KIND.timing, hardware="Abacus 2000")
    assert larger_cards(nobody, "memory") == smaller_cards(nobody) == []
    assert all(find_gpu(name) is not None for name in LARGER)


def gain(change: VerticalChange, by: float, *, low: float | None, cost: float | None = None) -> ChangeGain:
    return ChangeGain(change=change, attainment=0.9 + by, gain=by, low=low, high=by * 2, cost_per_hour=cost)


def test_the_best_is_surely_better() -> None:
    """The largest gain whose interval is above zero; none where none is, or with a single seed."""
    more, less = VerticalChange(name="more", how="more"), VerticalChange(name="less", how="less")
    found = advise(
        "chat", use(kv_p99=1.0), [gain(less, 0.02, low=0.01), gain(more, 0.09, low=-0.01)], attainment=0.9
    )
    assert found.best is not None
    assert found.best.change is less
    assert [each.change.name for each in found.gains] == ["more", "less"]
    assert advise("chat", use(kv_p99=1.0), [gain(more, 0.09, low=None)], attainment=0.9).best is None


def test_an_idle_pool_takes_the_cheapest_that_keeps_its_targets() -> None:
    """A slice that loses requests is not it, nor one that costs more; with no price the smallest."""
    idle = use(kv_p99=0.1, permits_p99=0.1)
    half, third = (VerticalChange(name=name, how=name, hardware=name) for name in ("half", "third"))
    gains = [gain(half, 0.1, low=0.0, cost=3.0), gain(third, 0.05, low=-0.1, cost=1.0)]
    found = advise("chat", idle, gains, attainment=0.995, cost_per_hour=6.0)
    assert found.best is not None
    assert found.best.change is half
    assert advise("chat", idle, gains, attainment=0.995, cost_per_hour=2.0).best is None
    free = [gain(half, 0.1, low=0.0), gain(third, 0.1, low=0.0)]
    smallest = advise("chat", idle, free, attainment=0.995).best
    assert smallest is not None
    assert smallest.change is third


def test_a_recommendation_has_the_vertical_pod_autoscalers_shape() -> None:
    """Which GPU resource as target, today's as upper bound, limits as annotations; nothing acts on it."""
    slice_ = VerticalChange(name="s", how="replicas on a slice", hardware="H100 MIG 3g.40gb")
    idle = use(kv_p99=0.1, permits_p99=0.1)
    advice = advise("chat", idle, [gain(slice_, 0.1, low=0.0)], attainment=0.99)
    found = recommendation(advice, KIND, container="vllm", namespace="llm")
    assert (found["apiVersion"], found["kind"]) == ("autoscaling.k8s.io/v1", "VerticalPodAutoscaler")
    assert found["spec"]["updatePolicy"] == {"updateMode": "Off"}
    assert found["status"]["recommendation"]["containerRecommendations"] == [
        {
            "containerName": "vllm",
            "lowerBound": {"nvidia.com/mig-3g.40gb": "1"},
            "target": {"nvidia.com/mig-3g.40gb": "1"},
            "uncappedTarget": {"nvidia.com/mig-3g.40gb": "1"},
            "upperBound": {"nvidia.com/gpu": "1"},
        }
    ]
    assert found["metadata"]["namespace"] == "llm"
    limits = VerticalChange(name="m", how="max_concurrent: 32", max_concurrent=32, prefill_budget_tokens=512)
    advice = advise("chat", use(kv_p99=1.0), [gain(limits, 0.1, low=0.05)], attainment=0.9)
    found = recommendation(advice, KIND, container="vllm")
    notes = found["metadata"]["annotations"]
    assert notes["steersman.io/max-concurrent"] == "32"
    assert notes["steersman.io/max-batch-prefill-tokens"] == "512"
    assert notes["steersman.io/bound"] == "memory"


def test_gpu_resources_are_those_of_the_device_plugins() -> None:
    """NVIDIA's cards and slices, AMD's cards."""
    assert gpu_resource("NVIDIA H100 80GB HBM3") == "nvidia.com/gpu"
    assert gpu_resource("NVIDIA A100-SXM4-80GB MIG 2g.20gb") == "nvidia.com/mig-2g.20gb"
    assert gpu_resource("AMD Instinct MI300X") == "amd.com/gpu"


def test_a_meter_tells_quantiles_and_forgets() -> None:
    """The 99th percentile is of what was seen, and what is aged counts less than what comes."""
    meter = UseMeter()
    for i in range(1_000):
        meter.look(i / 1_000, 0.25, waiting=i % 2 == 0, busy=True)
    found = meter.use()
    assert found.kv_p99 == pytest.approx(0.99, abs=0.011)
    assert found.kv_p50 == pytest.approx(0.5, abs=0.011)
    assert (found.permits_p99, found.waiting, found.busy, found.looks) == (0.25, 0.5, 1.0, 1_000.0)
    meter.age(0.001)
    for _ in range(1_000):
        meter.look(None, 7.0, waiting=False, busy=False)
    found = meter.use()
    assert found.permits_p99 == 1.0
    assert found.busy < 0.01
    assert UseMeter().use() == ResourceUse()


def test_an_endpoints_kv_is_the_engines_word_else_ours() -> None:
    """And unknown where nobody says what it holds."""
    endpoint = Endpoint(address="10.0.0.1:80", pool="chat")
    assert kv_share(endpoint) is None
    endpoint.kv_capacity_tokens = 1_000
    assert kv_share(endpoint) == 0.0
    report = ReplicaReport(
        address="10.0.0.1:80", pool="chat", running=3, waiting=2, kv_used_tokens=900, kv_capacity_tokens=1_000
    )
    endpoint.heard(report, now_ns=0)
    assert kv_share(endpoint) == 0.9
    meter = UseMeter()
    look_at(meter, endpoint)
    assert meter.use().waiting == 1.0
    assert meter.use().busy == 1.0

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from steersman_agent.figures import GpuFigures, KvView, MigDevice, NodeView, ProcessUse, ReplicaView, XidEvent
from steersman_agent.report import Pacer, changed, describe, encode, resolve_gpus
from steersman_agent.state import ReplicaState

REPLICA = ReplicaView(
    address="10.0.0.5:8080",
    pool="llama",
    zone="a",
    region="eu",
    engine="tgi",
    state=ReplicaState.READY,
    detail="",
    models=("m",),
    adapters=(),
    waiting=0,
    running=4,
    kv_used_tokens=10_000,
    kv_capacity_tokens=100_000,
    max_concurrent=128,
    scraped_s=99.9,
)
GPU = GpuFigures(uuid="GPU-1", index=0, utilization_percent=10, throttle_reasons=0x1)


def node(**changes: Any) -> NodeView:
    gpu = {key: changes.pop(key) for key in list(changes) if key in GpuFigures.__dataclass_fields__}
    return NodeView(node="n", replicas=(replace(REPLICA, **changes),), gpus=(replace(GPU, **gpu),))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"detail": "other words"}, False),
        ({"scraped_s": 100.0}, False),
        ({"waiting": 1}, True),
        ({"running": 5}, False),  # 2 % of 128 permits is 2.56 requests
        ({"running": 7}, True),
        ({"running": 0}, True),
        ({"running": None}, True),
        ({"kv_used_tokens": 10_999}, False),  # 1 % of the capacity
        ({"kv_used_tokens": 11_000}, True),
        ({"state": ReplicaState.HUNG}, True),
        ({"models": ("other",)}, True),
        ({"loaded_adapters": ()}, True),
        ({"served_adapters": ("a",)}, True),
        ({"probe_failures": 1}, True),
        ({"utilization_percent": 90}, False),
        ({"temperature_c": 90}, False),
        ({"throttle_reasons": 0x2}, False),  # from idle to set by the user
        ({"throttle_reasons": 0x40}, True),
        ({"xids": (XidEvent(code=79, unix_ms=1),)}, True),
        ({"ecc_uncorrected": 1}, True),
        ({"lost": True}, True),
    ],
)
def test_what_is_worth_telling_at_once(changes: dict[str, Any], expected: bool) -> None:
    """State, health and faults always; figures beyond the threshold; the rest waits for the heartbeat."""
    assert changed(node(), node(**changes)) is expected


def test_the_spacing_holds_back_and_the_heartbeat_pushes() -> None:
    """A virtual second at 1 ms: queue changes each millisecond make 20 reports, none make one."""
    for step, expected in ((1, 20), (0, 1)):
        pacer, sent = Pacer(spacing_s=0.05, heartbeat_s=1.0), 0
        for millisecond in range(1000):
            view, now_s = node(waiting=millisecond * step), millisecond / 1000
            if pacer.due_s(view, now_s) <= now_s:
                pacer.sent(view, now_s)
                sent += 1
        assert sent == expected


def test_a_change_is_told_as_soon_as_the_spacing_allows() -> None:
    """Late after the last report: at once; right after it: 50 ms later."""
    pacer = Pacer(spacing_s=0.05, heartbeat_s=1.0)
    assert pacer.due_s(node(), 7.0) == 7.0
    pacer.sent(node(), 7.0)
    assert pacer.due_s(node(), 7.01) == 8.0
    assert pacer.due_s(node(waiting=9), 7.01) == pytest.approx(7.05)
    assert pacer.due_s(node(waiting=9), 7.5) <= 7.5


def test_unknown_is_absent_on_the_wire_and_zero_is_zero() -> None:
    """An engine that does not say is no idle engine."""
    view = node(
        waiting=0,
        running=None,
        kv_used_tokens=None,
        ecc_corrected=0,
        prefix_queried_tokens=9,
        prefix_hit_tokens=0,
    )
    report = encode(view, boot_id=2**64 - 1, sequence=7, unix_ms=5)
    replica, gpu = report.replicas[0], report.gpus[0]
    assert replica.HasField("waiting")
    assert not replica.HasField("running")
    assert (replica.prefix_queried_tokens, replica.prefix_hit_tokens) == (9, 0)
    assert replica.HasField("prefix_hit_tokens")
    assert not replica.HasField("kv_used_tokens")
    assert not replica.HasField("probe_ttft_ms")
    assert replica.state == ReplicaState.READY
    assert gpu.HasField("ecc_corrected")
    assert not gpu.HasField("ecc_uncorrected")
    assert not gpu.HasField("power_w")
    assert (report.boot_id, report.sequence, report.leaving) == (2**64 - 1, 7, False)


def test_every_field_of_a_gpu_reaches_the_wire() -> None:
    """A name that the contract has and `GpuFigures` has not, or the reverse, fails here.

    The service asks for no pages and slices: those are for who reads `agent --once`.
    """
    full = GpuFigures(
        **{
            name: {"str": "x", "int": 3, "bool": True, "float": 2.5}[field.type.split(" ")[0]]
            for name, field in GpuFigures.__dataclass_fields__.items()
            if not field.type.startswith("tuple")
        },
        xids=(XidEvent(code=79, unix_ms=5),),
        processes=(ProcessUse(pid=1, memory_bytes=2), ProcessUse(pid=3)),
        mig_devices=(MigDevice(uuid="MIG-1", memory_used_bytes=1),),
    )
    wire = encode(NodeView(node="n", gpus=(full,)), boot_id=1, sequence=1, unix_ms=0).gpus[0]
    told = set(GpuFigures.__dataclass_fields__) - {"retired_pages", "mig_devices"}
    assert {field.name for field, _ in wire.ListFields()} == told
    assert {field.name for field in wire.DESCRIPTOR.fields} == told


def test_every_field_of_a_replica_reaches_the_wire() -> None:
    """As for GPUs."""
    counts = {name: 1 for name, field in KvView.__dataclass_fields__.items() if field.type == "int"}
    full = replace(
        REPLICA,
        detail="d",
        adapters=("lora",),
        prefill_tokens_per_s=1.0,
        decode_tokens_per_s=1.0,
        probe_ttft_ms=3.0,
        probed_s=1.0,
        probe_failures=1,
        gpu_uuids=("GPU-1",),
        prefix_queried_tokens=5,
        prefix_hit_tokens=4,
        revision="m@1",
        loaded_adapters=("lora",),
        served_adapters=("lora",),
        kv=KvView(**counts, complete=True, stored=(2,), removed=(2**64 - 1,)),
    )
    wire = encode(NodeView(node="n", replicas=(full,)), boot_id=1, sequence=1, unix_ms=0).replicas[0]
    for message in (wire, wire.kv):
        told = {field.name for field, _ in message.ListFields()}
        assert told == {field.name for field in message.DESCRIPTOR.fields}


def test_describing_names_the_state_and_turns_moments_into_ages() -> None:
    """Plain JSON values for people."""
    told = describe(node(), 100.0)["replicas"][0]
    assert told["state"] == "READY"
    assert told["metrics_age_ms"] == 100
    assert told["probe_age_ms"] is None
    assert "scraped_s" not in told


def test_gpus_are_named_by_index_uuid_or_slice() -> None:
    """Unknown ones name none."""
    cards = [GPU, GpuFigures(uuid="GPU-2", index=1, mig_devices=(MigDevice(uuid="MIG-9"),))]
    assert resolve_gpus([0, "GPU-2"], cards) == ("GPU-1", "GPU-2")
    assert resolve_gpus(["MIG-9"], cards) == ("GPU-2",)
    assert resolve_gpus([7, "GPU-x"], cards) == ()

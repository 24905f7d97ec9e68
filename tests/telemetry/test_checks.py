from __future__ import annotations

import math
from typing import Any

import pytest

from extproc._pb import telemetry_pb2 as pb
from extproc.core.reports import ReportedState
from extproc.telemetry.checks import (
    GPUS_MAX,
    NAMES_MAX,
    REPLICAS_MAX,
    TEXT_BYTES_MAX,
    XIDS_MAX,
    ImplausibleError,
    replicas,
)


def replica(**fields: Any) -> pb.Report:
    return pb.Report(node="n", replicas=[pb.Replica(**{"address": "10.0.0.1:80", "pool": "p", **fields})])


def gpu(**fields: Any) -> pb.Report:
    report = replica(gpu_uuids=["g"])
    report.gpus.add(**{"uuid": "g", **fields})
    return report


def test_a_whole_report() -> None:
    """Every field arrives in its place; what is absent is None, never zero."""
    message = gpu(
        name="H100",
        utilization_percent=100,
        power_w=690.5,
        sm_clock_mhz=1980,
        remap_pending=False,
        xids=[pb.Xid(code=79, unix_ms=-5)],
    )
    message.boot_id, message.sent_unix_ms = 9, 1234
    first = message.replicas[0]
    first.state, first.running, first.probe_ttft_ms, first.probe_failures = pb.DRAINING, 0, 12.5, 3
    first.prefix_queried_tokens, first.prefix_hit_tokens = 2_000_000_000, 0
    first.revision = "m@1"
    first.models.append("m")
    [report] = replicas(message)
    assert (report.address, report.pool, report.node) == ("10.0.0.1:80", "p", "n")
    assert (report.boot_id, report.sent_unix_ms, report.state) == (9, 1234, ReportedState.DRAINING)
    assert (report.running, report.waiting, report.kv_used_tokens) == (0, None, None)
    assert (report.probe_ttft_ms, report.probe_failures, report.models) == (12.5, 3, ("m",))
    assert (report.prefix_queried_tokens, report.prefix_hit_tokens) == (2_000_000_000, 0)
    assert report.revision == "m@1"
    [card] = report.gpus
    assert (card.name, card.utilization_percent, card.power_w, card.sm_clock_mhz) == (
        "H100",
        100,
        690.5,
        1980,
    )
    assert (card.remap_pending, card.remap_failed, card.xids) == (False, None, ((79, -5),))


def test_a_state_that_nobody_knows_yet_is_in_doubt() -> None:
    """An agent that has just started says so: neither ready nor dead."""
    [report] = replicas(replica())
    assert report.state is ReportedState.DEGRADED


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"prefill_tokens_per_s": math.nan}, "prefill_tokens_per_s_out_of_range"),
        ({"decode_tokens_per_s": -1.0}, "decode_tokens_per_s_out_of_range"),
        ({"decode_tokens_per_s": 1e308}, "decode_tokens_per_s_out_of_range"),
        ({"probe_ttft_ms": math.inf}, "probe_ttft_ms_out_of_range"),
        ({"probe_ttft_ms": -math.inf}, "probe_ttft_ms_out_of_range"),
        ({"waiting": 2**32 - 1}, "waiting_out_of_range"),
        ({"running": 1_000_001}, "running_out_of_range"),
        ({"max_concurrent": 2**32 - 1}, "max_concurrent_out_of_range"),
        ({"prefix_hit_tokens": 2**63}, "prefix_hit_tokens_out_of_range"),
        ({"kv_used_tokens": 2**63}, "kv_used_tokens_out_of_range"),
        ({"kv_used_tokens": 126, "kv_capacity_tokens": 100}, "kv_over_capacity"),
        ({"kv_used_tokens": 1, "kv_capacity_tokens": 0}, "kv_over_capacity"),
        ({"state": 99}, "unknown_state"),
        ({"pool": "x" * (TEXT_BYTES_MAX + 1)}, "text_too_long"),
        ({"detail": "€" * (TEXT_BYTES_MAX // 3 + 1)}, "text_too_long"),
        ({"models": ["x" * (TEXT_BYTES_MAX + 1)]}, "text_too_long"),
        ({"models": ["x"] * (NAMES_MAX + 1)}, "too_many"),
        ({"adapters": ["x"] * (NAMES_MAX + 1)}, "too_many"),
        ({"loaded_adapters": pb.AdapterNames(names=["x"] * (NAMES_MAX + 1))}, "too_many"),
        ({"served_adapters": pb.AdapterNames(names=["x" * (TEXT_BYTES_MAX + 1)])}, "text_too_long"),
        ({"gpu_uuids": ["x"] * (GPUS_MAX + 1)}, "too_many"),
    ],
)
def test_what_no_replica_can_be(fields: dict[str, Any], code: str) -> None:
    """One implausible field and the report is not believed; the code names it."""
    with pytest.raises(ImplausibleError, match=f"^{code}$"):
        replicas(replica(**fields))


def test_no_adapter_and_no_word_of_adapters_are_two_things() -> None:
    """An empty list says that there is none; a field that is not there says nothing."""
    [report] = replicas(
        replica(loaded_adapters=pb.AdapterNames(), served_adapters=pb.AdapterNames(names=["a"]))
    )
    assert (report.loaded_adapters, report.served_adapters) == ((), ("a",))
    [report] = replicas(replica())
    assert (report.loaded_adapters, report.served_adapters) == (None, None)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"utilization_percent": 101}, "utilization_percent_out_of_range"),
        ({"power_w": math.nan}, "power_w_out_of_range"),
        ({"power_limit_w": -0.5}, "power_limit_w_out_of_range"),
        ({"temperature_c": 2**32 - 1}, "temperature_c_out_of_range"),
        ({"sm_clock_mhz": 2**32 - 1}, "sm_clock_mhz_out_of_range"),
        ({"memory_used_bytes": 2**64 - 1}, "memory_used_bytes_out_of_range"),
        ({"memory_used_bytes": 2, "memory_total_bytes": 1}, "memory_over_total"),
        ({"name": "x" * (TEXT_BYTES_MAX + 1)}, "text_too_long"),
        ({"xids": [pb.Xid(code=1)] * (XIDS_MAX + 1)}, "too_many"),
    ],
)
def test_what_no_gpu_can_be(fields: dict[str, Any], code: str) -> None:
    """The same for the cards."""
    with pytest.raises(ImplausibleError, match=f"^{code}$"):
        replicas(gpu(**fields))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("10.0.0.1:00080", "10.0.0.1:80"),
        ("[FE80:0::1]:8080", "[fe80::1]:8080"),
        ("fe80::1:8080", "[fe80::1]:8080"),
    ],
)
def test_addresses_are_made_canonical(text: str, canonical: str) -> None:
    """One replica, one spelling."""
    [report] = replicas(replica(address=text))
    assert report.address == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":80",
        "10.0.0.1",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:-1",
        "10.0.0.1:8٠",
        "10.0.0.1:" + "0" * 5000 + "80",  # int() refuses so many digits with an error of its own
        "[fe80::1%eth0]:80",
        "host:80",
        "010.0.0.1:80",
    ],
)
def test_addresses_that_are_none(text: str) -> None:
    """Names, scopes, ports out of range and tricks with digits."""
    with pytest.raises(ImplausibleError, match=r"^bad_address$"):
        replicas(replica(address=text))


def test_an_address_stands_once_in_a_report() -> None:
    """In whatever spelling."""
    message = replica()
    message.replicas.add(address="10.0.0.1:080")
    with pytest.raises(ImplausibleError, match=r"^address_twice$"):
        replicas(message)


def test_numbers_of_replicas_and_cards_are_bounded() -> None:
    """A node is a machine."""
    many = pb.Report(replicas=[pb.Replica(address=f"10.0.0.1:{i + 1}") for i in range(REPLICAS_MAX)])
    assert len(replicas(many)) == REPLICAS_MAX
    many.replicas.add(address="10.0.0.2:80")
    with pytest.raises(ImplausibleError, match=r"^too_many$"):
        replicas(many)
    with pytest.raises(ImplausibleError, match=r"^too_many$"):
        replicas(pb.Report(gpus=[pb.Gpu()] * (GPUS_MAX + 1)))


def test_a_card_counts_once_for_a_replica() -> None:
    """Named twice it is one, and a card that the report does not have is none."""
    message = gpu()
    message.replicas[0].gpu_uuids.extend(["g", "g", "unknown"])
    [report] = replicas(message)
    assert [card.uuid for card in report.gpus] == ["g"]

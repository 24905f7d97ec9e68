from __future__ import annotations

from typing import Any

import pytest

from extproc.core.faults import XIDS, Recovery, findings, others, throttle
from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.reports import GpuReport, ReplicaReport


def card(**fields: object) -> GpuReport:
    return GpuReport(uuid="GPU-1", **fields)  # type: ignore[arg-type]


def seen(**fields: object) -> dict[str, float]:
    return {finding.key: finding.fault.factor for finding in findings(card(**fields))}


#: NVIDIA's catalogue: what resets the GPU or restarts the machine drains, what restarts the application
#: reduces, what it ignores and what is the application's own is noise.
DRAINS = (46, 48, 62, 64, 79, 95, 109, 110, 119, 120, 140, 143, 151, 158)
REDUCES = (61, 74, 94, 136, 144, 145, 146, 147, 148, 149, 150, 154, 155, 156)
NOISE = (0, 13, 31, 32, 37, 43, 44, 45, 63, 66, 68, 69, 92, 106, 121, 137, 141, 157, 160, 4_000_000_000)


@pytest.mark.parametrize("code", DRAINS)
def test_what_drains(code: int) -> None:
    """It keeps no traffic, until the GPU was reset."""
    assert seen(xids=((code, 1),)) == {f"xid {code}": 0.0}
    assert XIDS[code].recovery is Recovery.RESET


@pytest.mark.parametrize("code", REDUCES)
def test_what_reduces(code: int) -> None:
    """It keeps a part."""
    [factor] = seen(xids=((code, 1),)).values()
    assert 0.0 < factor < 1.0


@pytest.mark.parametrize("code", NOISE)
def test_what_is_noise(code: int) -> None:
    """No finding at all."""
    assert seen(xids=((code, 1),)) == {}


def test_the_table_is_named_here_in_full() -> None:
    """A row that is added is decided here as well."""
    assert set(XIDS) == {*DRAINS, *REDUCES}


def test_every_row_has_an_end() -> None:
    """An XID never clears by itself: a rule that waits for quiet says how long; none is a state's."""
    for code, fault in XIDS.items():
        assert fault.recovery is not Recovery.SHOWN, code
        if fault.recovery in (Recovery.TIME, Recovery.RESTART):
            assert fault.quiet_s > 0, code
        assert 0.0 <= fault.factor < 1.0


def test_the_newest_of_each_code_counts() -> None:
    """The last in the list, whatever its time says: a clock may have been set back."""
    found = list(findings(card(xids=((94, 900), (74, 5), (94, 100)))))
    assert [(finding.key, finding.since_unix_ms) for finding in found] == [("xid 94", 100), ("xid 74", 5)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"lost": True}, {"lost": 0.0}),
        ({"remap_failed": True}, {"remap failed": 0.0}),
        ({"remap_pending": True}, {"remap pending": 0.9}),
        ({"retirement_pending": True}, {"remap pending": 0.9}),
        ({"ecc_uncorrected": 1}, {"ecc": 0.5}),
        ({"ecc_uncorrected": 0, "ecc_corrected": 10_000, "nvlink_errors": 5}, {}),
    ],
)
def test_states(fields: dict[str, object], expected: dict[str, float]) -> None:
    """What the card shows counts while it shows it; corrected errors are noise."""
    assert seen(**fields) == expected
    assert all(finding.since_unix_ms is None for finding in findings(card(**fields)))


@pytest.mark.parametrize(
    ("reasons", "clock", "factor"),
    [
        (None, 500, None),
        (0x0, 500, None),
        (0x1, 200, None),  # idle
        (0x4, 1200, None),  # the power cap is a card's normal life
        (0x2 | 0x10 | 0x100, 500, None),
        (0x40, 990, 0.5),  # 990 of 1980 MHz
        (0x20, 1485, 0.75),
        (0x08 | 0x4, 1980, 1.0),
        (0x80, 45, 0.1),  # slow is not dead
        (0x80, 2500, 1.0),
        (0x40, None, None),
        (0x40, 0, None),
        (0x1 | 0x40, 210, 0.5),  # an idle card's clock says nothing; NVML: halved or worse
        (0x1 | 0x08, 210, None),  # a change of clocks on an idle card
    ],
)
def test_throttling_is_in_proportion(reasons: int | None, clock: int | None, factor: float | None) -> None:
    """The share of its clock that a slowed card still has."""
    fault = throttle(card(throttle_reasons=reasons, sm_clock_mhz=clock, sm_clock_max_mhz=1980))
    assert (fault.factor if fault else None) == (pytest.approx(factor) if factor else None)


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({}, 1.0),
        ({"utilization_percent": 100, "memory_used_bytes": 80, "memory_total_bytes": 80}, 1.0),
        ({"utilization_others_percent": 9}, 1.0),
        ({"utilization_others_percent": 100}, 0.5),
        ({"utilization_others_percent": 25}, 0.8),
        ({"memory_others_bytes": 59, "memory_used_bytes": 79, "memory_total_bytes": 80}, 0.8),
        ({"memory_others_bytes": 59, "memory_used_bytes": 70, "memory_total_bytes": 80}, 1.0),
        ({"memory_others_bytes": 1, "memory_used_bytes": 80, "memory_total_bytes": 80}, 1.0),
        (
            {
                "utilization_others_percent": 100,
                "memory_others_bytes": 59,
                "memory_used_bytes": 79,
                "memory_total_bytes": 80,
            },
            0.4,
        ),
    ],
)
def test_what_others_use_of_a_card_leaves(fields: dict[str, Any], left: float) -> None:
    """The engine's own use, however much, takes nothing; a stranger's full use half, a full card a fifth."""
    factor, why = others(card(**fields))
    assert factor == pytest.approx(left)
    assert bool(why) is (left < 1.0)


def test_a_foreign_process_takes_weight_and_is_named() -> None:
    """A stranger at 100 % with 79 of 79.6 GiB taken: less of the traffic, and a cause that says why."""
    fleet = Fleet([PoolSpec(name="p", models=("m",), strategy="steer", endpoints=(("10.0.0.1:80", "", 8),))])
    (endpoint,) = fleet.endpoints
    gib = 2**30
    shared = card(
        utilization_percent=100,
        memory_used_bytes=79 * gib,
        memory_total_bytes=int(79.6 * gib),
        memory_others_bytes=59 * gib,
        utilization_others_percent=100,
    )
    for quarter in range(40):
        now_ns = quarter * 250_000_000
        fleet.heard(ReplicaReport(address="10.0.0.1:80", pool="p", gpus=(shared,)), now_ns=now_ns)
        fleet.step(now_ns=now_ns)
    assert endpoint.weight == pytest.approx(0.4)
    detail = endpoint.health.causes["others"].detail
    assert detail == "GPU-1: others compute 100 % of it, others hold 59.0 of 79.6 GiB, and it is full"
    for quarter in range(40, 80):
        now_ns = quarter * 250_000_000
        fleet.heard(ReplicaReport(address="10.0.0.1:80", pool="p", gpus=(card(),)), now_ns=now_ns)
        fleet.step(now_ns=now_ns)
    assert (endpoint.weight, endpoint.health.causes) == (1.0, {})

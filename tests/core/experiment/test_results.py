from __future__ import annotations

from random import Random
from typing import Any

import pytest

from extproc.core.experiment.results import ArmResults, LatencySeries
from extproc.core.experiment.units import Units
from extproc.core.outcome import End, Outcome
from extproc.core.slo import ClassSpec, Sample, sample_of
from tests.stand.schedulers import make_reservation

MS = 1_000_000
#: 1 s to the first token, 100 ms for each further one.
CLASS = ClassSpec()


def outcome(**facts: Any) -> Outcome:
    reservation = make_reservation(
        address="a",
        output_tokens=50,
        permits=facts.pop("permits", 1),
        stream=True,
        held_ms=facts.pop("held_ms", 0.0),
    )
    return Outcome(reservation=reservation, final=True, **facts)


@pytest.mark.parametrize(
    ("facts", "attained", "error"),
    [
        # 11 tokens: the first at 500 ms, ten more within 1,000 ms.
        ({"ttft_ns": 500 * MS, "duration_ns": 1_400 * MS, "output_tokens": 11}, True, False),
        ({"ttft_ns": 1_100 * MS, "duration_ns": 1_400 * MS, "output_tokens": 11}, False, False),
        ({"ttft_ns": 500 * MS, "duration_ns": 1_600 * MS, "output_tokens": 11}, False, False),
        # One token has no further one; two sequences share the count.
        ({"ttft_ns": 500 * MS, "duration_ns": 502 * MS, "output_tokens": 1}, True, False),
        ({"ttft_ns": 500 * MS, "duration_ns": 1_400 * MS, "output_tokens": 22, "permits": 2}, True, False),
        # Nobody counted its tokens.
        ({"ttft_ns": 500 * MS, "duration_ns": 60_000 * MS}, True, False),
        # Not streamed: the whole within the sum of both, 1,000 + 10 × 100 ms.
        ({"duration_ns": 1_900 * MS, "output_tokens": 11}, True, False),
        ({"duration_ns": 2_100 * MS, "output_tokens": 11}, False, False),
        ({"end": End.ERROR, "duration_ns": MS}, False, True),
        ({"end": End.REFUSED, "duration_ns": MS}, False, False),
        ({"end": End.REFUSED, "refused": True}, False, True),
        # A client that left: judged by its first token, or by the lack of one that was due.
        ({"end": End.CLIENT_GONE, "ttft_ns": 900 * MS, "duration_ns": 9_000 * MS}, True, False),
        ({"end": End.CLIENT_GONE, "duration_ns": 900 * MS}, None, None),
        ({"end": End.CLIENT_GONE, "duration_ns": 1_100 * MS}, False, None),
    ],
)
def test_what_attains(facts: dict[str, Any], attained: bool | None, error: bool | None) -> None:
    """By both targets of the class; what fails is missed, who left early says nothing."""
    sample = sample_of(outcome(**facts), CLASS)
    assert (sample.attained, sample.error) == (attained, error)


def test_an_arm_counts_its_ends() -> None:
    """Every end in one count; tokens and times as they come; a refusal of ours is a request too."""
    arm = ArmResults()
    arm.ended(outcome(ttft_ns=100 * MS, duration_ns=1_100 * MS, output_tokens=11, prompt_tokens=90))
    arm.ended(outcome(end=End.ERROR))
    arm.ended(outcome(end=End.REFUSED))
    arm.ended(outcome(end=End.CLIENT_GONE, held_ms=30.0))
    arm.turned_away(5_000.0)
    view = arm.view(0.05)
    counts = [view[name] for name in ("requests", "ok", "errors", "refused", "client_gone", "shed")]
    assert counts == [5, 1, 1, 1, 1, 1]
    assert (view["prompt_tokens"], view["output_tokens"]) == (90, 11)
    assert view["tpot_ms"]["mean"] == 100.0
    assert view["ttft_ms"]["mean"] == 100.0
    assert view["held_ms"]["mean"] == pytest.approx(1_006.0)


def test_quantiles_are_near() -> None:
    """Within the buckets' 2.5 %, from a microsecond up; nothing seen is None."""
    times, rng = LatencySeries(), Random(1)
    values = sorted(rng.lognormvariate(5.0, 1.0) for _ in range(2_000))
    for value in values:
        times.add(value)
    for share in (0.5, 0.9, 0.99):
        assert times.quantile(share) == pytest.approx(values[int(share * 2_000) - 1], rel=0.03)
    times.add(0.0)
    assert times.quantile(1e-9) is not None
    assert LatencySeries().quantile(0.5) is None


def test_a_unit_counts_once() -> None:
    """With its mean when it has enough requests, or was quiet; what comes after changes no interval."""
    arm, units = ArmResults(), Units(4)
    for i in range(9):
        units.add(1, arm, Sample(i < 3, False, 100.0), now_ns=i)
    assert (arm.attainment.count, arm.attainment.total) == (1, 0.75)
    units.add(2, arm, Sample(False, True), now_ns=10)
    units.step(now_ns=600 * 1_000_000_000)
    assert arm.attainment.count == 1
    units.step(now_ns=600 * 1_000_000_000 + 10)
    assert (arm.attainment.count, arm.errors.total, len(units)) == (2, 1.0, 0)
    # Who said nothing that is tested is in no mean.
    units.add(3, arm, Sample(None, None), now_ns=20)
    units.step(now_ns=1 << 60)
    assert (arm.attainment.count, arm.units) == (2, 3)


def test_clusters_do_not_pass_for_requests() -> None:
    """Ten tenants, each all good or all bad: by requests one would be sure of nonsense, by tenants not."""
    by_request, by_tenant, units = ArmResults(), ArmResults(), Units(500)
    other_by_request, other_by_tenant = ArmResults(), ArmResults()
    for tenant in range(10):
        # Chance gave arm one 4 good tenants of 5, arm two 3 of 5.
        in_one, good = tenant < 5, tenant in (0, 1, 2, 3, 5, 6, 7)
        for _ in range(500):
            (by_request if in_one else other_by_request).test(float(good), 0.0, None)
            units.add(
                tenant + 1, by_tenant if in_one else other_by_tenant, Sample(good, False), now_ns=tenant
            )
    low, mean, _ = by_request.attainment.interval(0.01).minus(other_by_request.attainment.interval(0.01))
    assert mean == pytest.approx(0.2)
    assert low > 0
    low, mean, high = by_tenant.attainment.interval(0.01).minus(other_by_tenant.attainment.interval(0.01))
    assert mean == pytest.approx(0.2)
    assert low < 0 < high

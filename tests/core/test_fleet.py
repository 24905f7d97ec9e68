from __future__ import annotations

from typing import Any

import pytest

from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.reports import ReplicaReport, ReportedState


def spec(name: str, *addresses: str, models: tuple[str, ...] = ("m",), **changes: float) -> PoolSpec:
    return PoolSpec(
        name=name,
        models=models,
        strategy="least_work",
        endpoints=tuple((address, "a", 8) for address in addresses),
        **changes,  # type: ignore[arg-type]
    )


def test_lookups() -> None:
    """Pools by model and alias, endpoints by pool and address, models sorted."""
    fleet = Fleet([spec("p", "1:1", "2:2", models=("m", "alias")), spec("q", "3:3", models=("b",))])
    assert fleet.models_for("t") == ["alias", "b", "m"]
    assert fleet.pool_for("m", "t") is fleet.pool_for("alias", "t") is fleet.pools["p"]
    assert fleet.pool_for("M", "t") is None
    assert [endpoint.address for endpoint in fleet.endpoints] == ["1:1", "2:2", "3:3"]
    found = fleet.endpoint("q", "3:3")
    assert found is not None
    assert (found.pool, found.zone, found.max_concurrent) == ("q", "a", 8)
    assert fleet.endpoint("p", "3:3") is None
    assert fleet.endpoint("p", "") is None


def test_a_reload_keeps_books_and_lessons() -> None:
    """An endpoint that stays is the same object; so is the calibration of a pool that stays."""
    fleet = Fleet([spec("p", "1:1", "2:2")])
    stays, leaves = fleet.endpoints
    lessons = fleet.pools["p"].calibration
    fleet.apply([spec("p", "1:1", "3:3", models=("new",))])
    assert fleet.endpoints[0] is stays
    assert leaves not in fleet.endpoints
    assert fleet.pools["p"].calibration is lessons
    assert fleet.models_for("t") == ["new"]


def test_an_endpoint_keeps_its_books_when_its_pool_changes() -> None:
    """What runs on a replica runs there though its pool was renamed or it moved to another."""
    fleet = Fleet([spec("p", "1:1", "2:2"), spec("q", "3:3", models=("b",))])
    first, second, third = fleet.endpoints
    first.permits = second.permits = 5
    fleet.apply([spec("renamed", "1:1"), spec("q", "3:3", "2:2", models=("b",))])
    assert fleet.endpoint("renamed", "1:1") is first
    assert fleet.endpoint("q", "2:2") is second
    assert fleet.endpoint("p", "1:1") is None
    assert [endpoint.pool for endpoint in (first, second, third)] == ["renamed", "q", "q"]


def test_a_new_prior_begins_again() -> None:
    """Who writes another prior means it: the old lessons go."""
    fleet = Fleet([spec("p", "1:1")])
    fleet.pools["p"].calibration.saw_prompt(100_000, 50_000)
    fleet.apply([spec("p", "1:1", bytes_per_token=3.0)])
    assert fleet.pools["p"].calibration.bytes_per_token == 3.0


def test_an_address_stands_once() -> None:
    """Two sets of books on one replica are a programmer's mistake, and leave the old fleet as it was."""
    fleet = Fleet([spec("p", "1:1")])
    for wrong in ([spec("p", "1:1", "1:1")], [spec("p", "1:1"), spec("q", "1:1", models=("b",))]):
        with pytest.raises(AssertionError, match="twice"):
            fleet.apply(wrong)
    assert list(fleet.pools) == ["p"]
    assert fleet.pool_for("m", "t") is fleet.pools["p"]


@pytest.mark.parametrize(
    ("before", "after", "cold"),
    [
        ({"engine_starts": 1}, {"engine_starts": 2}, True),
        ({"engine_starts": 1}, {"engine_starts": 1}, False),
        # The agent began anew, and counts from nought.
        ({"engine_starts": 3, "boot_id": 1}, {"engine_starts": 0, "boot_id": 2}, False),
        ({"engine_starts": 3, "boot_id": 1}, {"engine_starts": 4, "boot_id": 2}, False),
        ({"state": ReportedState.GONE}, {"state": ReportedState.READY}, True),
        ({"state": ReportedState.LOADING}, {"state": ReportedState.DEGRADED}, True),
        ({"state": ReportedState.HUNG}, {"state": ReportedState.READY}, False),
        ({}, {}, False),
    ],
)
def test_an_engine_that_began_anew_has_nothing_cached(
    before: dict[str, Any], after: dict[str, Any], cold: bool
) -> None:
    """What was believed of the process before says nothing of the one after it."""
    fleet = Fleet([spec("p", "10.0.0.1:80")])
    pool = fleet.pools["p"]
    pool.prefixes.insert("10.0.0.1:80", (1, 2, 3), capacity_blocks=10)
    for at, said in enumerate((before, after)):
        fleet.heard(ReplicaReport(address="10.0.0.1:80", pool="p", **said), now_ns=at)
    assert pool.prefixes.blocks("10.0.0.1:80") == (0 if cold else 3)

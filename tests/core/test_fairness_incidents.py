"""Fairness over services while something is wrong between them: it is less, and it comes back."""

from __future__ import annotations

import pytest

from tests.stand.service_incidents import Incident, ServicesInTrouble
from tests.stand.services import Client, Figures, Services

FLOOD, CALM = "flood", "calm"
CLIENTS = [Client(FLOOD, 40), Client(CALM, 8)]
SECONDS = 15.0


@pytest.fixture(scope="module")
def alone() -> Figures:
    """One service."""
    return Services(1, CLIENTS).run(SECONDS)


def played(count: int, incident: Incident) -> Figures:
    return ServicesInTrouble(count, CLIENTS, incident).run(SECONDS)


@pytest.mark.parametrize(
    "at", [{CALM: 0}, {FLOOD: 0}, {FLOOD: 0, CALM: 1}], ids=["calm at one", "flood at one", "apart"]
)
def test_it_does_not_matter_which_service_a_tenant_reaches(alone: Figures, at: dict[str, int]) -> None:
    """All connections of one tenant, or of each, are at one of four services."""
    found = played(4, Incident(at=at))
    assert found.jain(FLOOD, CALM) >= 0.98
    assert found.p99(CALM) <= 1.25 * alone.p99(CALM)
    assert found.busy >= 0.98 * alone.busy


@pytest.mark.parametrize(("count", "back_s"), [(2, None), (4, 8.0)], ids=["for good", "and comes back"])
def test_a_service_dies(alone: Figures, count: int, back_s: float | None) -> None:
    """Who waited there waits on elsewhere; nobody is refused, nobody keeps its places."""
    found = played(count, Incident(dies_s=5.0, back_s=back_s))
    assert found.jain(FLOOD, CALM) >= 0.98
    assert found.p99(CALM) <= 1.5 * alone.p99(CALM)
    assert found.busy >= 0.94 * alone.busy
    assert found.rejected == 0


@pytest.mark.parametrize("count", [2, 4])
def test_each_call_to_redis_takes_200_ms(alone: Figures, count: int) -> None:
    """Tokens are shared out evenly all the same; over three seeds the calm one's p99 is 1.2 to 1.7 times."""
    found = played(count, Incident(redis_ms=200))
    assert found.jain(FLOOD, CALM) >= 0.95
    assert found.p99(CALM) <= 2.0 * alone.p99(CALM)


def test_redis_away_is_as_without_sharing_and_once_back_as_with_it(alone: Figures) -> None:
    """Without it each service is fair by itself; 4 s after its return nothing is left of that."""
    apart = Services(4, CLIENTS, shared=False).run(SECONDS)
    during = played(4, Incident(away_s=(-5.0, SECONDS)))
    after = played(4, Incident(away_s=(-9.0, -4.0)))
    assert during.jain(FLOOD, CALM) >= apart.jain(FLOOD, CALM) - 0.02
    assert during.p99(CALM) <= 1.5 * apart.p99(CALM)
    assert after.jain(FLOOD, CALM) >= 0.98
    assert after.p99(CALM) <= 1.25 * alone.p99(CALM)

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from extproc.core.fleet import Member, PoolSpec
from extproc.core.outcome import Reject, Routed
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import Scheduler
from extproc.core.tenant import ANONYMOUS
from tests.stand.schedulers import make_scheduler

CHAT = Request(
    kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=400, prompt_tokens=100, max_new_tokens=100
)
#: What such a request costs, in tokens.
EACH = 200


def scheduler(strategy: str = "least_work", *, zone: str = "a", penalty: int = 10 * EACH) -> Scheduler:
    """Two replicas here in the region eu, two in the next zone of it, one far away."""
    places = [("a", "eu"), ("a", "eu"), ("b", "eu"), ("b", "eu"), ("c", "us")]
    members = tuple(Member(f"10.0.0.{i}:80", z, 60_000, r) for i, (z, r) in enumerate(places))
    spec = PoolSpec(
        name="p",
        models=("m",),
        strategy=strategy,
        endpoints=members,
        output_tokens=100,
        zone_penalty_tokens=penalty,
    )
    return make_scheduler(spec, zone=zone)


def placed(scheduler: Scheduler, count: int) -> Counter[str]:
    """The zones of so many requests that pile up."""
    zones: Counter[str] = Counter()
    for _ in range(count):
        decision = scheduler.admit(CHAT, ANONYMOUS, now_ns=0)
        assert isinstance(decision, Routed)
        found = scheduler.fleet.endpoint("p", decision.addresses[0])
        assert found is not None
        zones[found.zone] += 1
    return zones


@pytest.mark.parametrize("strategy", ["least_work", "least_request"])
def test_home_first_then_over_the_border(strategy: str) -> None:
    """While home is worse by no more than the penalty everything stays; then the zones fill together."""
    here = scheduler(strategy)
    assert placed(here, 20) == {"a": 20}  # 2 replicas × 10 requests of the penalty
    assert placed(here, 50) == {"a": 20, "b": 20, "c": 10}


@pytest.mark.parametrize(("zone", "penalty"), [("", 2000), ("a", 0)])
def test_no_zone_or_no_penalty_is_no_preference(zone: str, penalty: int) -> None:
    """Who does not know where it is, or does not mind, spreads over all."""
    assert placed(scheduler(zone=zone, penalty=penalty), 50) == {"a": 20, "b": 20, "c": 10}


def test_a_zone_without_replicas_is_served_from_elsewhere() -> None:
    """Everybody carries the same handicap then."""
    assert placed(scheduler(zone="nowhere"), 50) == {"a": 20, "b": 20, "c": 10}


def test_a_dead_zone_spills_over() -> None:
    """The penalty prefers; it does not forbid."""
    here = scheduler()
    for endpoint in here.fleet.endpoints[:2]:
        endpoint.ready = False
    assert placed(here, 30) == {"b": 20, "c": 10}


@pytest.mark.parametrize("strategy", ["least_work", "least_request", "power_of_two", "random", "round_robin"])
@pytest.mark.parametrize("degraded", ["", "store"])
def test_regions_are_strict(strategy: str, degraded: str) -> None:
    """No policy, no retry and no fallback leaves a tenant's regions."""
    here = scheduler(strategy, penalty=0)
    tenant = replace(ANONYMOUS, regions=frozenset({"eu"}))
    for _ in range(60):
        decision = here.admit(CHAT, tenant, now_ns=0, degraded=degraded)
        assert isinstance(decision, Routed)
        assert "10.0.0.4:80" not in decision.addresses


def test_no_region_left_is_a_refusal_and_not_a_spill() -> None:
    """403 where no replica may serve; 503 where one may and is not ready."""
    here = scheduler()
    nowhere = here.admit(CHAT, replace(ANONYMOUS, regions=frozenset({"mars"})), now_ns=0)
    assert isinstance(nowhere, Reject)
    assert (nowhere.status, nowhere.code) == (403, "region_not_allowed")
    here.fleet.endpoints[4].ready = False
    down = here.admit(CHAT, replace(ANONYMOUS, regions=frozenset({"us"})), now_ns=0)
    assert isinstance(down, Reject)
    assert (down.status, down.code) == (503, "no_ready_endpoint")


WEIGHTS = (1.0, 0.5, 0.25)


@pytest.mark.parametrize(
    ("strategy", "piling"), [("least_work", True), ("round_robin", False), ("random", False)]
)
def test_shares_follow_weights(strategy: str, piling: bool) -> None:
    """Over many requests each gets its part within a tenth: least_work by load, the others by turn."""
    here = scheduler(strategy, zone="")
    here.fleet.set_members({"p": [Member(f"10.0.0.{i}:80", "", 60_000) for i in range(3)]})
    for endpoint, weight in zip(here.fleet.endpoints, WEIGHTS, strict=True):
        endpoint.weight = weight
    taken: Counter[str] = Counter()
    for _ in range(3500):
        decision = here.admit(CHAT, ANONYMOUS, now_ns=0)
        assert isinstance(decision, Routed)
        taken[decision.addresses[0]] += 1
        if not piling:
            here.cancel(decision.reservation.id, now_ns=0)
    for endpoint, weight in zip(here.fleet.endpoints, WEIGHTS, strict=True):
        assert taken[endpoint.address] / 3500 == pytest.approx(weight / sum(WEIGHTS), rel=0.1)


def test_all_stale_is_least_in_flight_and_says_so() -> None:
    """Blind, a pool's own policy gives way; the reason tells."""
    here = scheduler()
    here.fleet.pools["p"].blind = True
    decision = here.admit(CHAT, ANONYMOUS, now_ns=0)
    assert isinstance(decision, Routed)
    assert decision.reason.strategy == "least_request"
    assert "stale" in decision.reason.text()

"""The choice of a family's model: level, floor, what the tenant may use, load and lost pools."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.core.families import Family, FamilyChoice, Weights, floor_of, pick, thresholds_for
from extproc.core.families.difficulty import NAMES
from extproc.core.fleet import Fleet
from extproc.core.outcome import Hold, Reject, Routed
from extproc.core.policy import ClassSpec
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import Policy, Scheduler
from extproc.core.tenant import Tenant
from tests.stand.schedulers import make_pool, make_scheduler

MODELS = ("small", "medium", "large")
#: Scores by the tools that a request offers: 0 simple, 2 medium, 4 complex.
BY_TOOLS = Weights(-4.0, tuple(8.0 if name == "tools" else 0.0 for name in NAMES))
FAMILY = Family(name="auto", models=MODELS, thresholds=thresholds_for(3), weights=BY_TOOLS)
SIMPLE, MEDIUM, COMPLEX = 0, 2, 4


def request_of(tools: int, **more: Any) -> Request:
    return Request(
        kind=RouteKind.CHAT, dialect=Dialect.OPENAI, model="auto", tools=tools, prompt_bytes=40, **more
    )


def fleet_of(permits: int = 2, region: str = "") -> Fleet:
    return Fleet(
        make_pool(f"10.0.0.{i}:80", permits=permits, name=f"pool-{model}", models=(model,))
        for i, model in enumerate(MODELS)
    )


def picked(
    tools: int, fleet: Fleet | None = None, waiting: dict[str, int] | None = None, **tenant: Any
) -> Any:
    return pick(
        request_of(tools),
        Tenant(name="t", **tenant),
        fleet or fleet_of(),
        FAMILY,
        waiting=lambda pool: (waiting or {}).get(pool, 0),
    )


@pytest.mark.parametrize(
    ("tools", "tenant", "model"),
    [
        (SIMPLE, {}, "small"),
        (MEDIUM, {}, "medium"),
        (COMPLEX, {}, "large"),
        (SIMPLE, {"quality_floor": "medium"}, "medium"),
        (COMPLEX, {"quality_floor": "medium"}, "large"),
        (SIMPLE, {"quality_floor": 3}, "large"),
        (SIMPLE, {"quality_floor": "elsewhere"}, "small"),
        (COMPLEX, {"models": frozenset({"small", "medium"})}, "medium"),
        (MEDIUM, {"models": frozenset({"small", "large"})}, "large"),
        (COMPLEX, {"models": frozenset({"small"})}, "small"),
        (SIMPLE, {"models": frozenset({"small", "large"}), "quality_floor": 2}, "large"),
    ],
)
def test_the_smallest_that_is_good_enough(tools: int, tenant: dict[str, Any], model: str) -> None:
    """Within the floor and what the tenant may use; the largest of those where none is good enough."""
    choice = picked(tools, **tenant)
    assert (choice.model, choice.wished, choice.shifted) == (model, model, "")
    assert choice.headers() == (("x-steersman-model", model),)


def test_none_is_a_404() -> None:
    """To a tenant without any model at or above its floor the family is not there."""
    for tenant in ({"models": frozenset({"other"})}, {"models": frozenset({"small"}), "quality_floor": 2}):
        answer = picked(COMPLEX, **tenant)
        assert isinstance(answer, Reject)
        assert (answer.status, answer.code) == (404, "model_not_found")


def fill(fleet: Fleet, model: str) -> None:
    """Take every permit of a model's pool."""
    pool = fleet.pool_for(model, "t")
    assert pool is not None
    for endpoint in pool.endpoints:
        endpoint.permits = endpoint.max_concurrent


def test_under_load_one_smaller_with_room() -> None:
    """Full, or with requests waiting, or with a start too far away; said as load."""
    fleet = fleet_of()
    fill(fleet, "large")
    choice = picked(COMPLEX, fleet)
    assert (choice.model, choice.wished, choice.shifted) == ("medium", "large", "load")
    assert choice.headers()[1] == ("x-steersman-model-shifted", "load")
    assert "load: large → medium" in choice.text()
    assert picked(COMPLEX, waiting={"pool-large": 1}).model == "medium"
    slow = fleet_of()
    slow.pools["pool-large"].endpoints[0].load.queued_ms = 501.0
    assert picked(COMPLEX, slow).model == "medium"
    slow.pools["pool-large"].endpoints[0].load.queued_ms = 499.0
    assert picked(COMPLEX, slow).model == "large"


def test_the_next_but_one_where_that_is_loaded_too() -> None:
    """And none where all are: then it waits for the model that it should have."""
    fleet = fleet_of()
    fill(fleet, "large")
    fill(fleet, "medium")
    assert picked(COMPLEX, fleet).model == "small"
    fill(fleet, "small")
    choice = picked(COMPLEX, fleet)
    assert (choice.model, choice.shifted) == ("large", "")


def test_never_below_the_floor_and_never_where_it_is_off() -> None:
    """Load does not undo what the tenant was promised."""
    fleet = fleet_of()
    fill(fleet, "large")
    assert picked(COMPLEX, fleet, quality_floor="large").model == "large"
    fill(fleet, "medium")
    assert picked(COMPLEX, fleet, quality_floor="medium").model == "large"
    still = Family(name="auto", models=MODELS, thresholds=(0.3, 0.6), weights=BY_TOOLS, wait_ms=None)
    choice = pick(request_of(COMPLEX), Tenant(name="t"), fleet, still, waiting=lambda _: 9)
    assert isinstance(choice, FamilyChoice)
    assert (choice.model, choice.shifted) == ("large", "")


def test_a_pool_without_a_ready_replica() -> None:
    """Down if there is room, else up: nobody gets a 503 while a larger model idles."""
    fleet = fleet_of()
    (lost,) = fleet.pools["pool-medium"].endpoints
    lost.ready = False
    assert (picked(MEDIUM, fleet).model, picked(MEDIUM, fleet).shifted) == ("small", "unavailable")
    up = picked(MEDIUM, fleet, quality_floor=2)
    assert (up.model, up.shifted) == ("large", "unavailable")


def test_regions_count() -> None:
    """A pool with no replica where the tenant may be served is as good as lost."""
    fleet = fleet_of()
    for model, region in zip(MODELS, ("eu", "eu", "us"), strict=True):
        pool = fleet.pool_for(model, "t")
        assert pool is not None
        pool.endpoints[0].region = region
    choice = picked(COMPLEX, fleet, regions=frozenset({"eu"}))
    assert (choice.model, choice.shifted) == ("medium", "unavailable")


def test_floors() -> None:
    """A model's place, a rank from 1, and no floor for families that lack the model."""
    assert [floor_of(MODELS, floor) for floor in (None, "small", "large", "x", 1, 2, 9)] == [
        0,
        0,
        2,
        0,
        0,
        1,
        2,
    ]


def scheduler_of(fleet: Fleet, hold_ns: int = 0) -> Scheduler:
    scheduler = make_scheduler(
        fleet, default_model="small", policy=Policy(classes=(ClassSpec(hold_ns=hold_ns),))
    )
    scheduler.settings.families = {"auto": FAMILY}
    return scheduler


def test_the_scheduler_books_the_chosen_model() -> None:
    """Reservation, pool and headers are the chosen model's; a model's own name chooses nothing."""
    scheduler = scheduler_of(fleet_of())
    routed = scheduler.admit(request_of(COMPLEX), Tenant(name="t"), now_ns=0)
    assert isinstance(routed, Routed)
    assert (routed.reservation.model, routed.reservation.pool) == ("large", "pool-large")
    assert routed.headers == (("x-steersman-model", "large"),)
    named = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, model="small", tools=COMPLEX)
    plain = scheduler.admit(named, Tenant(name="t"), now_ns=0)
    assert isinstance(plain, Routed)
    assert (plain.reservation.model, plain.headers) == ("small", ())


def test_what_waits_shifts_those_that_come_after() -> None:
    """The queue of the wished pool alone counts; the held one keeps its choice and says so when released."""
    scheduler = scheduler_of(fleet_of(permits=1), hold_ns=10**10)
    released: list[tuple[str, Any]] = []
    scheduler.dispatcher.on_release = lambda name, decision: released.append((name, decision))
    floored = Tenant(name="floored", quality_floor="large")
    first = scheduler.admit(request_of(COMPLEX), floored, now_ns=0)
    assert isinstance(first, Routed)
    assert isinstance(scheduler.admit(request_of(SIMPLE), floored, now_ns=1), Hold)
    after = scheduler.admit(request_of(COMPLEX), Tenant(name="t"), now_ns=2)
    assert isinstance(after, Routed)
    assert (after.reservation.model, dict(after.headers)["x-steersman-model-shifted"]) == ("medium", "load")
    scheduler.cancel(first.reservation.id, now_ns=3)
    ((name, decision),) = released
    assert (name, decision.reservation.model, decision.headers) == (
        "i-2",
        "large",
        (("x-steersman-model", "large"),),
    )

"""Pools that are reserved for tenants are nobody else's."""

from __future__ import annotations

from random import Random

from extproc.core.families import Family
from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.outcome import Reject, Routed
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import Scheduler, SchedulerLimits
from extproc.core.tenant import Tenant

ACME, GLOBEX = Tenant(name="acme"), Tenant(name="globex")


def scheduler_of() -> Scheduler:
    own = PoolSpec(
        name="own",
        models=("m", "secret"),
        strategy="steer",
        endpoints=(("10.0.0.1:80", "", 8),),
        tenants=frozenset({"acme"}),
    )
    everybodys = PoolSpec(name="all", models=("m",), strategy="steer", endpoints=(("10.0.0.2:80", "", 8),))
    scheduler = Scheduler(
        Fleet([everybodys, own]), instance="i", default_model="m", limits=SchedulerLimits(), rng=Random(1)
    )
    scheduler.settings.families = {"auto": Family(name="auto", models=("secret", "m"), thresholds=(0.99,))}
    return scheduler


def pool_of(scheduler: Scheduler, model: str | None, tenant: Tenant) -> str | int:
    ask = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, model=model, prompt_bytes=40, max_new_tokens=5)
    answer = scheduler.admit(ask, tenant, now_ns=0)
    assert isinstance(answer, Routed | Reject)
    return answer.reservation.pool if isinstance(answer, Routed) else answer.status


def test_the_same_model_is_served_apart() -> None:
    """Its tenant gets the reserved one, everybody else the other; by default, by name and by a family."""
    scheduler = scheduler_of()
    for model in (None, "m", "auto"):
        assert pool_of(scheduler, model, ACME) == "own"
        assert pool_of(scheduler, model, GLOBEX) == "all"


def test_to_others_a_reserved_model_is_not_there() -> None:
    """As one that nobody serves: 404, and in no list."""
    scheduler = scheduler_of()
    assert (pool_of(scheduler, "secret", ACME), pool_of(scheduler, "secret", GLOBEX)) == ("own", 404)
    assert scheduler.fleet.models_for("globex") == ["m"]
    assert scheduler.fleet.models_for("acme") == ["m", "secret"]


def test_a_pool_that_is_empty_lends_from_nobody() -> None:
    """Without a ready replica its tenant is refused, not served among the others; nor the other way round."""
    scheduler = scheduler_of()
    for address, tenant in (("10.0.0.1:80", ACME), ("10.0.0.2:80", GLOBEX)):
        scheduler.fleet.drain(address, draining=True)
        assert pool_of(scheduler, "m", tenant) == 503
        scheduler.fleet.drain(address, draining=False)


def test_what_a_tenant_sent_is_in_no_cache_of_others() -> None:
    """A prefix of acme's is known at acme's replica alone, also of the same model."""
    scheduler = scheduler_of()
    text = ("a system prompt of acme's own, long enough for blocks " * 40,)
    ask = Request(
        kind=RouteKind.CHAT,
        dialect=Dialect.OPENAI,
        model="m",
        prompt_bytes=len(text[0]),
        segments=text,
        max_new_tokens=5,
    )
    routed = scheduler.admit(ask, ACME, now_ns=0)
    assert isinstance(routed, Routed)
    scheduler.settlement.first_token(routed.reservation.id, now_ns=1)
    assert scheduler.fleet.pools["all"].coming.blocks("10.0.0.2:80") == 0
    assert scheduler.fleet.pools["all"].prefixes.blocks("10.0.0.2:80") == 0

"""Pools that are reserved for tenants are nobody else's."""

from __future__ import annotations

from random import Random

from extproc.core.desk import Desk, DeskLimits
from extproc.core.families import Family
from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.outcome import Reject, Routed
from extproc.core.request import Dialect, Kind, Request
from extproc.core.tenant import Tenant

ACME, GLOBEX = Tenant(name="acme"), Tenant(name="globex")


def desk_of() -> Desk:
    own = PoolSpec(
        name="own",
        models=("m", "secret"),
        strategy="steer",
        endpoints=(("10.0.0.1:80", "", 8),),
        tenants=frozenset({"acme"}),
    )
    everybodys = PoolSpec(name="all", models=("m",), strategy="steer", endpoints=(("10.0.0.2:80", "", 8),))
    desk = Desk(Fleet([everybodys, own]), instance="i", default_model="m", limits=DeskLimits(), rng=Random(1))
    desk.families = {"auto": Family(name="auto", models=("secret", "m"), thresholds=(0.99,))}
    return desk


def pool_of(desk: Desk, model: str | None, tenant: Tenant) -> str | int:
    ask = Request(kind=Kind.CHAT, dialect=Dialect.OPENAI, model=model, prompt_bytes=40, max_new_tokens=5)
    answer = desk.admit(ask, tenant, now_ns=0)
    assert isinstance(answer, Routed | Reject)
    return answer.reservation.pool if isinstance(answer, Routed) else answer.status


def test_the_same_model_is_served_apart() -> None:
    """Its tenant gets the reserved one, everybody else the other; by default, by name and by a family."""
    desk = desk_of()
    for model in (None, "m", "auto"):
        assert pool_of(desk, model, ACME) == "own"
        assert pool_of(desk, model, GLOBEX) == "all"


def test_to_others_a_reserved_model_is_not_there() -> None:
    """As one that nobody serves: 404, and in no list."""
    desk = desk_of()
    assert (pool_of(desk, "secret", ACME), pool_of(desk, "secret", GLOBEX)) == ("own", 404)
    assert desk.fleet.models_for("globex") == ["m"]
    assert desk.fleet.models_for("acme") == ["m", "secret"]


def test_a_pool_that_is_empty_lends_from_nobody() -> None:
    """Without a ready replica its tenant is refused, not served among the others; nor the other way round."""
    desk = desk_of()
    for address, tenant in (("10.0.0.1:80", ACME), ("10.0.0.2:80", GLOBEX)):
        desk.fleet.drain(address, draining=True)
        assert pool_of(desk, "m", tenant) == 503
        desk.fleet.drain(address, draining=False)


def test_what_a_tenant_sent_is_in_no_cache_of_others() -> None:
    """A prefix of acme's is known at acme's replica alone, also of the same model."""
    desk = desk_of()
    text = ("a system prompt of acme's own, long enough for blocks " * 40,)
    ask = Request(
        kind=Kind.CHAT,
        dialect=Dialect.OPENAI,
        model="m",
        prompt_bytes=len(text[0]),
        segments=text,
        max_new_tokens=5,
    )
    routed = desk.admit(ask, ACME, now_ns=0)
    assert isinstance(routed, Routed)
    desk.first_token(routed.reservation.id, now_ns=1)
    assert desk.fleet.pools["all"].coming.blocks("10.0.0.2:80") == 0
    assert desk.fleet.pools["all"].prefixes.blocks("10.0.0.2:80") == 0

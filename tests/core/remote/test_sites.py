"""Requests between two sites: who goes, who stays, who comes back, and what is charged where."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.core.accounts import Accounts, Price
from extproc.core.contract import returning_cluster_name
from extproc.core.fleet import Fleet
from extproc.core.outcome import End, Hold, Outcome, Reject, Routed
from extproc.core.policy import ClassSpec, Policy
from extproc.core.quota import limits
from extproc.core.remote.digest import SIZES, PoolWord
from extproc.core.remote.links import AWAY_AFTER, FRESH_NS, WAYS_KEPT
from extproc.core.request import Dialect, Request, RouteKind, prefix_of
from extproc.core.scheduler import Scheduler
from extproc.core.spill.values import SpillRule
from extproc.core.tenant import Tenant
from extproc.core.tiers import TierRule
from tests.core.remote.stand import HUB, word
from tests.stand.changed import replace
from tests.stand.schedulers import make_pool, make_scheduler

S = 1_000_000_000
OWN, SECOND, SITE = "10.0.0.1:80", "10.0.0.2:80", "10.9.0.1:443"
ACME, CAREFUL = Tenant(name="acme"), Tenant(name="careful", away_model="m")
RULE = SpillRule(pool="p", to="hub", tiers=TierRule(), returns=True)
SHORT = Request(
    kind=RouteKind.CHAT,
    dialect=Dialect.OPENAI,
    model="m",
    stream=True,
    max_new_tokens=50,
    prompt_bytes=36,
    segments=("hello",),
)
LONG = replace(SHORT, prompt_bytes=80_000)


class Edge:
    """A scheduler of a pool of two places here, and a site."""

    def __init__(self, rule: SpillRule = RULE, *, permits: int = 4, **facts: Any) -> None:
        here = make_pool(OWN, SECOND, permits=permits)
        hub = make_pool(SITE, permits=100, name="hub", models=("m", "big"), site="hub")
        policy = Policy(classes=(ClassSpec(hold_ns=5 * S),), **facts)
        self.scheduler: Scheduler = make_scheduler(here, hub, policy=policy)
        settings = self.scheduler.settings
        settings.spills = {"p": rule}
        self.scheduler.apply(settings, now_ns=0)
        self.link = self.scheduler.sites.links.by_pool["hub"]
        self.hears()

    def hears(self, *pools: PoolWord, now_ns: int = 0, way_ns: int = 5_000_000) -> None:
        said = replace(HUB, pools=pools or (word(),))
        self.link.heard(said, asked_ns=now_ns, way_ns=way_ns, offset_s=0.0)

    def asked(
        self, request: Request = SHORT, tenant: Tenant = ACME, *, now_ns: int = 0
    ) -> Routed | Reject | Hold:
        answer = self.scheduler.admit(request, tenant, now_ns=now_ns)
        assert isinstance(answer, Routed | Reject | Hold)
        return answer

    def routed(self, *args: Any, **kwargs: Any) -> Routed:
        answer = self.asked(*args, **kwargs)
        assert isinstance(answer, Routed), answer
        return answer


def told(routed: Routed) -> str:
    return dict(routed.headers).get("x-steersman-spilled", "")


def test_short_stays_and_long_goes() -> None:
    """With room on both sides the size of the prompt decides."""
    edge = Edge()
    assert edge.routed().reservation.pool == "p"
    gone = edge.routed(LONG)
    assert (gone.reservation.pool, told(gone)) == ("hub", "complex")
    assert gone.reservation.spilled_from == "p"


def test_a_prompt_that_goes_there_is_known_by_its_beginning() -> None:
    """The next one with that beginning finds the site, as it would find a replica here."""
    edge, prompt = Edge(), replace(LONG, segments=("words " * 2_000,))
    assert edge.routed(prompt).reservation.pool == "hub"
    blocks = prefix_of(prompt)
    assert edge.scheduler.fleet.pools["hub"].coming.match(blocks) == {SITE: len(blocks)}


def test_what_fails_there_is_tried_at_home() -> None:
    """The list names the site and then the replicas here, in the cluster whose second try is here."""
    edge = Edge()
    gone = edge.routed(LONG)
    assert gone.addresses == (SITE, OWN, SECOND)
    assert gone.cluster == returning_cluster_name("hub", "p", "standard")
    # Where both are not reached alike it is not.
    other = Edge(replace(RULE, returns=False)).routed(LONG)
    assert (other.addresses, other.cluster) == ((SITE,), "pool.hub/standard")


def test_its_load_comes_home_with_it() -> None:
    """Envoy says who answers: the place there is free again, and the one here is taken."""
    edge = Edge()
    gone = edge.routed(LONG)
    fleet = edge.scheduler.fleet
    there, here = fleet.endpoint("hub", SITE), fleet.endpoint("p", OWN)
    assert there is not None
    assert here is not None
    assert (there.permits, here.permits) == (1, 0)
    edge.scheduler.settlement.first_token(gone.reservation.id, now_ns=S, served_by=OWN)
    assert (there.permits, here.permits) == (0, 1)
    end = Outcome(
        reservation=gone.reservation,
        final=True,
        status=200,
        end=End.OK,
        served_by=OWN,
        attempts=2,
        duration_ns=2 * S,
        ttft_ns=S,
        prompt_tokens=20_000,
        output_tokens=5,
    )
    edge.scheduler.settlement.settle(end, now_ns=2 * S)
    assert (there.permits, here.permits) == (0, 0)
    assert there.failures > 0


def test_a_site_that_is_away_gets_nothing() -> None:
    """What would go stays; what is only there goes to a smaller model here, where the tenant says so."""
    edge = Edge()
    for _ in range(AWAY_AFTER):
        edge.link.missed("refused")
    assert edge.routed(LONG).reservation.pool == "p"
    big = replace(SHORT, model="big")
    kept = edge.routed(big, CAREFUL)
    assert (kept.reservation.pool, kept.reservation.model, told(kept)) == ("p", "m", "centre_away")
    # Who says nothing goes where the model is, and fails there if it must.
    assert edge.routed(big).reservation.pool == "hub"
    assert edge.scheduler.may_rename("big", CAREFUL)
    assert not edge.scheduler.may_rename("big", ACME)
    edge.hears(now_ns=S)
    assert edge.routed(big, CAREFUL, now_ns=S).reservation.pool == "hub"


def test_nobody_here_is_ready() -> None:
    """All goes there, however simple."""
    edge = Edge()
    for endpoint in edge.scheduler.fleet.pools["p"].endpoints:
        endpoint.ready = False
    gone = edge.routed()
    assert (gone.reservation.pool, told(gone), gone.addresses) == ("hub", "broken", (SITE,))


def test_a_full_site_gets_nothing_that_can_be_served_here() -> None:
    """No room there, and a wait that nobody knows: what is complex stays."""
    edge = Edge()
    edge.hears(word(room=0))
    assert edge.routed(LONG).reservation.pool == "p"


def test_a_full_site_whose_places_are_soon_free_is_not_avoided() -> None:
    """No room there this moment, but one begins each 20 ms: what is complex goes, and waits for a place."""
    edge = Edge()
    edge.hears(word(room=0, turn_ms=20.0))
    assert edge.routed(LONG).reservation.pool == "hub"
    edge.hears(word(room=0, turn_ms=20_000.0), now_ns=S)
    assert edge.routed(LONG, now_ns=S).reservation.pool == "p"


def test_what_went_there_since_its_word_waits_there() -> None:
    """Of many at one moment some stay: each that goes makes the queue longer that the next would find."""
    edge = Edge(permits=1_000)
    idle = word(room=1_000, ready=1, first_ms=(400.0,) * len(SIZES))
    edge.hears(idle)
    went = [edge.routed(LONG).reservation.pool for _ in range(60)]
    first = went.index("p")
    assert 0 < first < 30
    # Its next word says what has become of them.
    edge.hears(idle, now_ns=S)
    assert edge.routed(LONG, now_ns=S).reservation.pool == "hub"


def test_no_more_is_sent_at_once_than_the_file_says() -> None:
    """With all places of the site's gateway taken from here, what can be served here is, and not held."""
    edge = Edge()
    edge.scheduler.fleet.pools["hub"].endpoints[0].max_concurrent = 1
    assert edge.routed(LONG).reservation.pool == "hub"
    assert edge.routed(LONG).reservation.pool == "p"


def test_what_has_ended_since_its_word_takes_no_place_there() -> None:
    """Five one after the other, with room for two: each finds the place that the one before it has left."""
    edge = Edge()
    edge.hears(word(room=2))
    for step in range(1, 6):
        gone = edge.routed(LONG, now_ns=step * S // 100)
        assert gone.reservation.pool == "hub"
        ended = Outcome(reservation=gone.reservation, final=True, status=200, served_by=SITE)
        edge.scheduler.settlement.settle(ended, now_ns=step * S // 100)
    for _ in range(2):
        assert edge.routed(LONG, now_ns=S // 10).reservation.pool == "hub"
    assert edge.routed(LONG, now_ns=S // 10).reservation.pool == "p"


def test_what_has_ended_since_its_word_takes_no_time_there() -> None:
    """A long prompt that is answered makes nobody wait; one that is not does."""
    edge = Edge(permits=1_000)
    edge.hears(word(room=1_000, ready=1, first_ms=(60_000.0,) * len(SIZES)))
    gone = edge.routed(LONG)
    assert gone.reservation.pool == "hub"
    assert edge.routed(LONG).reservation.pool == "p"
    ended = Outcome(reservation=gone.reservation, final=True, status=200, served_by=SITE)
    edge.scheduler.settlement.settle(ended, now_ns=S // 100)
    assert edge.routed(LONG, now_ns=S // 100).reservation.pool == "hub"


def test_without_a_fresh_word_it_is_said_that_it_was_missing() -> None:
    """The choice is by what ends have taught, and the explanation says so."""
    edge = Edge()
    late_ns = FRESH_NS + 1
    gone = edge.scheduler.resolve(LONG, ACME, "i-1", now_ns=late_ns)
    assert not isinstance(gone, Reject)
    assert gone.tier is not None
    assert gone.tier.choice.unsure
    assert "no fresh word" in str(edge.scheduler.explain(LONG, ACME, now_ns=late_ns).plain()["site"])
    fresh = edge.scheduler.explain(LONG, ACME, now_ns=0).plain()["site"]
    assert fresh is not None
    assert "no fresh word" not in str(fresh)


def test_a_long_way_keeps_it_here() -> None:
    """In between simple and complex, times decide, and the way there and back is in them."""
    between = replace(SHORT, prompt_bytes=12_000)
    rule = replace(RULE, tiers=TierRule(sooner_ns=0, sooner_share=0.0))
    edge = Edge(rule)
    edge.hears(word(first_ms=(0.0,) * len(SIZES), token_ms=0.0), way_ns=0)
    assert told(edge.routed(between)) == "sooner"
    other = Edge(rule)
    for _ in range(WAYS_KEPT):
        other.hears(word(first_ms=(0.0,) * len(SIZES), token_ms=0.0), way_ns=3_600 * S)
    assert other.routed(between).reservation.pool == "p"


def test_a_long_way_alone_does_not_make_a_site_full() -> None:
    """150 ms each way: what is complex goes, and goes again after a time in which the site was full."""
    edge = Edge()
    for room in (4, 0, 4):
        for _ in range(WAYS_KEPT):
            edge.hears(word(room=room, first_ms=(90_000.0,) * len(SIZES)), way_ns=300_000_000)
        assert edge.routed(LONG).reservation.pool == ("hub" if room else "p")


def test_regions_hold_at_the_other_site() -> None:
    """A tenant's regions are not left for a site that is in none of them."""
    edge = Edge()
    for endpoint in edge.scheduler.fleet.pools["p"].endpoints:
        endpoint.region = "eu"
    european = replace(ACME, regions=frozenset({"eu"}))
    assert edge.routed(LONG, european).reservation.pool == "p"


def test_hops_are_bounded() -> None:
    """What another gateway has sent on is served here; of a model that is only there it is 508."""
    edge = Edge()
    sent = replace(LONG, site="stall", hops=1)
    assert edge.routed(sent).reservation.pool == "p"
    refused = edge.asked(replace(sent, model="big"))
    assert isinstance(refused, Reject)
    assert (refused.status, refused.code) == (508, "loop_detected")


@pytest.mark.parametrize("site", ["", "stall"])
def test_a_quota_is_charged_where_the_client_came_in(site: str) -> None:
    """A client's second request is over its quota; what a site sends on is charged there."""
    accounts = Accounts(tenants={"acme": limits(requests_per_minute=1)})
    edge = Edge(accounts=accounts)
    request = replace(SHORT, site=site, hops=1 if site else 0)
    assert edge.routed(request).reservation.site == site
    second = edge.asked(request)
    assert isinstance(second, Reject if not site else Routed)


def test_another_sites_pool_serves_what_is_not_here() -> None:
    """A model of both is served by the pool here, in whichever order the file has them."""
    hub = make_pool(SITE, name="hub", models=("m", "big"), site="hub")
    here = make_pool(OWN)
    for pools in ([hub, here], [here, hub]):
        fleet = Fleet(pools)
        found = [fleet.pool_for(model, "acme") for model in ("m", "big")]
        assert [pool.name for pool in found if pool is not None] == ["p", "hub"]


def test_what_is_signed_goes_to_one_address() -> None:
    """A token is taken once, so that no second gateway is tried with it."""
    edge = Edge()
    hub = edge.scheduler.fleet.pools["hub"]
    assert edge.routed(replace(SHORT, model="big")).addresses == (SITE,)
    assert hub.site == "hub"


def test_what_a_budget_keeps_is_told_so() -> None:
    """It stays, is explained and counted by that, and nothing is reckoned to be on its way there."""
    edge = Edge(
        replace(RULE, budget_per_hour=1e-9),
        prices={"hub": Price(input_per_million=1.0, output_per_million=1.0)},
    )
    for _ in range(3):
        assert edge.routed(LONG).reservation.pool == "p"
    assert edge.scheduler.sites.counts == {"budget": 3}
    assert edge.link.since(now_ns=0)[0] == 0


@pytest.mark.parametrize(("side", "pool", "why"), [("here", "p", ""), ("there", "hub", "place")])
def test_a_place_is_served_on_its_side(side: str, pool: str, why: str) -> None:
    """Whatever the size of the request."""
    tenant = replace(ACME, place="branch", side=side)
    for request in (SHORT, LONG):
        routed = Edge().routed(request, tenant)
        assert (routed.reservation.pool, told(routed), routed.reservation.place) == (pool, why, "branch")


@pytest.mark.parametrize("tried_at_home", [False, True])
def test_a_word_that_is_not_taken_is_not_held_against_the_site(tried_at_home: bool) -> None:
    """It is about a tenant or keys, of which the link tells; a 502 of that site's is held against it."""
    edge = Edge()
    there = edge.scheduler.fleet.endpoint("hub", SITE)
    assert there is not None

    def ended(**facts: Any) -> None:
        gone = edge.routed(LONG)
        facts |= {"attempts": 2, "served_by": OWN} if tried_at_home else {"end": End.ERROR, "served_by": SITE}
        end = Outcome(**{"reservation": gone.reservation, "final": True, "status": 200, **facts})
        edge.scheduler.settlement.settle(end, now_ns=S)

    ended(**({"failed_there": "401"} if tried_at_home else {"status": 502, "key_refused": True}))
    assert (there.failures, there.health.causes) == (0, {})
    ended(**({"failed_there": "502"} if tried_at_home else {"status": 502}))
    assert there.failures > 0

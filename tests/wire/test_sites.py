"""The door between sites: as whom another site's request is served, and what it is told."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.core.attempts import AttemptLimiter
from extproc.core.outcome import LocalAnswer, Reject
from extproc.core.policy import ClassSpec, Policy
from extproc.core.remote.digest import read_digest
from extproc.core.remote.identity import issue
from extproc.core.remote.signing import SiteKey, by_id
from extproc.core.tenant import Credentials, Directory, Identity, Tenant
from extproc.wire.sites import SiteDoor, SitePolicy
from tests.stand.schedulers import make_pool, make_processor, make_reservation, make_scheduler

KEY = SiteKey("k1", b"a" * 64)
SHOP = by_id({"shop": (KEY,)})
HUB = by_id({"hub": (KEY,)})
CLASSES = Policy(classes=(ClassSpec(name="gold"), ClassSpec(name="standard")))
ACME, GUESTS = Tenant(name="acme"), Tenant(name="guests")
KNOWN = Directory([(ACME, []), (GUESTS, [])], required=True)
NOW_S = 1_000_000.0


def centre(**facts: Any) -> SiteDoor:
    scheduler = make_scheduler(make_pool("10.0.0.1:80"), policy=CLASSES)
    policy = SitePolicy(
        **{"own": "hub", "forwards": {"shop": None}, "known": SHOP, "signing": {"shop": KEY}, **facts}
    )
    return SiteDoor(scheduler, policy, wall=lambda: NOW_S, clock=lambda: 0)


def edge() -> SiteDoor:
    scheduler = make_scheduler(
        make_pool("10.0.0.1:80"), make_pool("10.9.0.1:80", name="far", models=("big",), site="hub")
    )
    policy = SitePolicy(own="shop", known=HUB, signing={"hub": KEY})
    return SiteDoor(scheduler, policy, wall=lambda: NOW_S, clock=lambda: 0)


def word(**given: Any) -> str:
    return issue("shop", "hub", KEY, **{"name": "n", "now_s": NOW_S, "tenant": "acme", **given})


def test_it_is_served_as_the_tenant_of_that_name() -> None:
    """In the class that the other site says, where there is such a one; without a key of its own."""
    found = centre().identify(word(service_class="gold", hops=2), KNOWN)
    assert isinstance(found, Identity)
    assert (found.tenant.name, found.tenant.service_class, found.key) == ("acme", "gold", None)
    assert (found.site, found.hops, found.methods) == ("shop", 2, ("site",))
    other = centre().identify(word(service_class="platinum"), KNOWN)
    assert isinstance(other, Identity)
    assert other.tenant is ACME


def test_a_tenant_that_is_not_known_here() -> None:
    """401, or the tenant that the file names for such; where nobody is asked who they are, anonymous."""
    unknown = word(tenant="stranger")
    refused = centre().identify(unknown, KNOWN)
    assert isinstance(refused, Reject)
    assert (refused.status, "'stranger'" in refused.message) == (401, True)
    found = centre(forwards={"shop": "guests"}).identify(unknown, KNOWN)
    assert isinstance(found, Identity)
    assert found.tenant is GUESTS
    anybody = centre().identify(unknown, Directory([], required=False))
    assert isinstance(anybody, Identity)
    assert anybody.tenant.name == "anonymous"


def test_a_site_that_may_not_forward() -> None:
    """It has the key, and is not heard."""
    refused = centre(forwards={}).identify(word(), KNOWN)
    assert isinstance(refused, Reject)
    assert "forwards" in refused.message


def test_a_look_before_the_body_takes_nothing() -> None:
    """A large body is asked about before it comes; the request itself comes once."""
    door = centre()
    assert isinstance(door.identify(word(), KNOWN, alone=True), Identity)
    assert isinstance(door.identify(word(), KNOWN), Identity)
    assert isinstance(door.identify(word(), KNOWN), Reject)
    assert isinstance(door.identify(word(), KNOWN, alone=True), Identity)


def test_what_the_edge_signs_the_centre_takes() -> None:
    """For requests that go to a site alone, with one hop more than they came with."""
    sender, door = edge(), centre()
    assert sender.token(make_reservation(stream=True)) == ""
    token = sender.token(
        make_reservation(stream=True, pool="far", tenant="acme", service_class="gold", hops=1)
    )
    found = door.identify(token, KNOWN)
    assert isinstance(found, Identity)
    assert (found.tenant.name, found.tenant.service_class, found.hops) == ("acme", "gold", 2)


def test_a_question_and_its_answer() -> None:
    """The answer names the question; a question is no request, and is answered once."""
    sender, door = edge(), centre()
    question, name = sender.question("hub")
    assert isinstance(door.identify(question, KNOWN), Reject)
    answer = door.answer(question)
    assert isinstance(answer, LocalAnswer)
    digest = read_digest(answer.body.decode(), HUB, own="shop", of="hub", nonce=name)
    assert [pool.models for pool in digest.pools] == [("m",)]
    assert isinstance(door.answer(question), Reject)
    assert sender.question("hub")[1] != name


@pytest.mark.parametrize("token", ["", "x", word()])
def test_nobody_else_is_answered(token: str) -> None:
    """Neither without a word nor with a request's."""
    refused = centre().answer(token)
    assert isinstance(refused, Reject)
    assert refused.status == 401


def test_words_that_are_guessed_are_told_to_wait() -> None:
    """As wrong keys are, so that none of them costs more than a look; a right one is taken all the while."""
    door = centre()
    limiter = AttemptLimiter(per_minute=1, burst=2, sources_max=10)
    processor = make_processor(make_scheduler(make_pool("10.0.0.1:80")), KNOWN, attempts=limiter)
    processor.sites = door
    stranger = Credentials(source="192.0.2.7")
    said = [processor.identify(stranger, site="x.y.z") for _ in range(4)]
    assert [each.status for each in said if isinstance(each, Reject)] == [401, 401, 429, 429]
    assert isinstance(processor.identify(stranger, site=word()), Identity)

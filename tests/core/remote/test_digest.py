"""What a site tells another of itself: what stands in it, what is believed of it, and when it counts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.fairqueue import FairQueue, QueueBounds
from extproc.core.fleet import Fleet
from extproc.core.outcome import Hold, Outcome, Reject, Routed
from extproc.core.policy import FREE, ClassSpec, Policy
from extproc.core.remote.digest import (
    DIGEST_BYTES_MAX,
    MODELS_MAX,
    SIZES,
    Digest,
    digest,
    read_digest,
    told,
)
from extproc.core.remote.links import AWAY_AFTER, FRESH_NS, SENT_MAX, SiteLink, SiteLinks
from extproc.core.remote.signing import SiteKey, Untrusted, by_id, sign
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.tenant import Tenant
from tests.core.remote.stand import HUB, WORD, word
from tests.stand.changed import replace
from tests.stand.schedulers import make_pool, make_scheduler

S = 1_000_000_000
KEY = SiteKey("k1", b"a" * 64)
KNOWN = by_id({"hub": (KEY,)})


def read(text: str, **given: Any) -> Digest:
    return read_digest(text, KNOWN, **{"own": "shop", "of": "hub", "nonce": "q1", **given})


def test_what_a_fleet_offers() -> None:
    """Its pools with their room and times; the pools of other sites and reserved ones are not told of."""
    fleet = Fleet(
        [
            make_pool("10.0.0.1:80", "10.0.0.2:80", permits=3),
            make_pool("10.0.0.3:80", name="site", models=("far",)),
            make_pool("10.0.0.4:80", name="own", models=("mine",), tenants=frozenset({"acme"})),
        ]
    )
    found = told(fleet, FairQueue(QueueBounds()), lambda _: FREE, but={"site": ""}, now_ns=0)
    assert [each.models for each in found] == [("m",)]
    assert (found[0].ready, found[0].room) == (2, 6)
    assert list(found[0].first_ms) == sorted(found[0].first_ms)
    assert 0 < found[0].first_ms[0] < found[0].first_ms[-1]


def test_how_soon_a_place_is_free() -> None:
    """Three wait, and ten a second have been dispatched: four tenths for one more, a tenth for each place."""
    scheduler = make_scheduler(
        make_pool("10.0.0.1:80", permits=1), policy=Policy(classes=(ClassSpec(hold_ns=60 * S),))
    )
    asked = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, model="m", stream=True, prompt_tokens=8)
    running: list[Routed] = []

    def released(_: str, decision: Routed | Reject) -> None:
        assert isinstance(decision, Routed)
        running.append(decision)

    scheduler.dispatcher.on_release = released
    first = scheduler.admit(asked, Tenant(name="t"), now_ns=0)
    assert isinstance(first, Routed)
    running.append(first)
    for _ in range(8):
        assert isinstance(scheduler.admit(asked, Tenant(name="t"), now_ns=0), Hold)
    for step in range(1, 6):
        ended = Outcome(
            reservation=running.pop().reservation, final=True, status=200, served_by="10.0.0.1:80"
        )
        scheduler.settlement.settle(ended, now_ns=step * S // 10)
    (found,) = told(scheduler.fleet, scheduler.dispatcher.queue, lambda _: FREE, but={}, now_ns=S // 2)
    assert found.room == 0
    assert found.turn_ms == pytest.approx(100.0)
    assert found.begins_ms >= 400.0


def test_it_is_bounded() -> None:
    """However many models there are, a digest is one that a reader takes."""
    models = tuple(f"{i:03}" + "m" * 120 for i in range(4 * MODELS_MAX))
    pools = [make_pool(f"10.0.0.{i}:80", name=f"p{i}", models=models[i::100]) for i in range(100)]
    found = told(Fleet(pools), FairQueue(QueueBounds()), lambda _: FREE, but={}, now_ns=0)
    text = digest(found, KEY, own="hub", to="shop", nonce="q1", now_s=1.0)
    assert len(text) <= DIGEST_BYTES_MAX
    assert sum(len(each.models) for each in read(text).pools) <= MODELS_MAX


def test_an_answer_to_another_question_is_none() -> None:
    """An old one that is sent again, one for another site, one of another site, and one of another kind."""
    text = digest((WORD,), KEY, own="hub", to="shop", nonce="q1", now_s=1.0)
    assert read(text).pools == (WORD,)
    for facts in ({"nonce": "q2"}, {"own": "stall"}, {"of": "other"}):
        with pytest.raises(Untrusted):
            read(text, **facts)
    with pytest.raises(Untrusted):
        read(sign(HUB, KEY, kind="steersman-request"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"first_ms": (1.0,)},
        {"first_ms": (-1.0,) * len(SIZES)},
        {"begins_ms": 1e12},
        {"token_ms": -1.0},
        {"room": -1},
        {"turn_ms": -1.0},
        {"ready": -1},
        {"models": ()},
        {"input_per_million": -1.0},
    ],
)
def test_figures_that_cannot_be_are_not_believed(wrong: dict[str, Any]) -> None:
    """Signed or not: a site's mistake is not this one's."""
    bad = replace(WORD, **wrong)
    with pytest.raises(Untrusted, match="cannot be"):
        read(digest((bad,), KEY, own="hub", to="shop", nonce="q1", now_s=1.0))


@given(st.integers(0, 300_000), st.integers(0, 300_000))
def test_longer_prompts_take_no_less(one: int, other: int) -> None:
    """Between the sizes that are told lines are drawn, and beyond the last one the line goes on."""
    said = word(first_ms=(10.0, 20.0, 100.0, 500.0, 3_000.0))
    assert said.first_of(min(one, other)) <= said.first_of(max(one, other))
    for size, ms in zip(SIZES, said.first_ms, strict=True):
        assert said.first_of(size) == pytest.approx(ms)


def test_a_word_counts_while_it_is_fresh() -> None:
    """Its age is that of the question."""
    link = SiteLink("hub")
    link.heard(HUB, asked_ns=100, way_ns=7, offset_s=0.0)
    assert link.fresh(now_ns=100 + FRESH_NS) is HUB
    assert link.fresh(now_ns=101 + FRESH_NS) is None


def test_what_went_there_since_is_known_until_the_next_word() -> None:
    """What went before a question had come before it; what went after it counts, and is bounded."""
    link = SiteLink("hub")
    link.sent(1, 10.0, now_ns=5)
    link.sent(2, 20.0, now_ns=15)
    link.heard(HUB, asked_ns=10, way_ns=7, offset_s=0.0)
    assert link.since(now_ns=10 + 3_000_000) == (2, 20.0, 3.0)
    link.heard(HUB, asked_ns=20, way_ns=7, offset_s=0.0)
    assert link.since(now_ns=20) == (0, 0.0, 0.0)
    for _ in range(2 * SENT_MAX):
        link.sent(1, 1.0, now_ns=30)
    assert link.since(now_ns=30) == (SENT_MAX, float(SENT_MAX), 1e-05)


def test_away_is_who_is_not_reached_and_not_who_refuses() -> None:
    """A refusal has reached somebody; an answer ends it."""
    link = SiteLink("hub")
    for _ in range(AWAY_AFTER):
        assert not link.away
        link.missed("refused")
    assert link.away
    link.refused("401")
    assert not link.away
    assert link.trouble == "401"


def test_the_way_is_the_shortest_of_the_last_few() -> None:
    """What a busy site adds to an answer is not the way; a longer way is seen after a while."""
    link = SiteLink("hub")
    for way_ns in (50, 10, 30):
        link.heard(HUB, asked_ns=0, way_ns=way_ns, offset_s=0.0)
    assert link.way_ns == 10
    for _ in range(8):
        link.heard(HUB, asked_ns=0, way_ns=80, offset_s=0.0)
    assert link.way_ns == 80


def test_links_that_stay_keep_what_they_know() -> None:
    """A reload forgets only what is no more, or is another site now."""
    links = SiteLinks()
    links.put({"hub": "hub", "old": "old"})
    known = links.by_pool["hub"]
    links.put({"hub": "hub", "new": "new"})
    assert links.by_pool["hub"] is known
    links.put({"hub": "other"})
    assert links.by_pool["hub"] is not known


def test_a_word_of_a_model() -> None:
    """The pool that serves it; none for a model that is not there."""
    assert HUB.of("m") == WORD
    assert HUB.of("nothing") is None

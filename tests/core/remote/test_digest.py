"""What a site tells another of itself: what stands in it, what is believed of it, and when it counts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.fairqueue import FairQueue, QueueBounds
from extproc.core.fleet import Fleet
from extproc.core.policy import FREE
from extproc.core.remote.digest import (
    DIGEST_BYTES_MAX,
    MODELS_MAX,
    SIZES,
    Digest,
    digest,
    read_digest,
    told,
)
from extproc.core.remote.links import AWAY_AFTER, FRESH_NS, SiteLink, SiteLinks
from extproc.core.remote.signing import SiteKey, Untrusted, by_id, sign
from tests.core.remote.stand import HUB, WORD, word
from tests.stand.changed import replace
from tests.stand.schedulers import make_pool

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

"""What a pool offers, what a digest of it says, and what the edge makes of an old one."""

from __future__ import annotations

from dataclasses import replace as replaced
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.fleet import Fleet, Pool
from extproc.core.health import Cause, CauseKind
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.tenant import Tenant
from extproc.core.tiers import SIZES, CentreView, SiteDigest, SiteOffer, digest_of, offer_of
from extproc.core.tiers.view import FRESH_NS, PAUSE_FIRST_NS, PAUSE_MAX_NS, SENT_MAX
from extproc.core.work import Work
from tests.stand.changed import replace
from tests.stand.schedulers import make_pool, make_scheduler

MS, S = 1_000_000, 1_000_000_000
WORK = Work(1_000, 100)
ONE, TWO = "10.0.0.1:80", "10.0.0.2:80"
OWN = tuple(size * MS // 10 for size in SIZES)
DIGEST = SiteDigest(ready=True, begins_ns=100 * MS, own_ns=OWN, token_ns=20 * MS, replicas=2, room=100)
TAUGHT = SiteOffer(ready=True, begins_ns=0, first_ns=700 * MS, token_ns=30 * MS)


def pool_of(*addresses: str, **facts: Any) -> Pool:
    return Fleet([make_pool(*addresses, **facts)]).pools["p"]


def test_an_idle_pool_begins_at_once_and_a_busy_one_later() -> None:
    """What is prefilled there comes first, and the offer is the best replica's."""
    scheduler = make_scheduler(make_pool(ONE, TWO))
    pool = scheduler.fleet.pools["p"]
    idle = offer_of(pool, WORK, now_ns=0)
    assert (idle.ready, idle.begins_ns, idle.hot) == (True, 0, False)
    assert idle.first_ns > 0
    asked = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, model="m", stream=True, prompt_tokens=8_000)
    scheduler.admit(asked, Tenant(name="t"), now_ns=0)
    assert offer_of(pool, WORK, now_ns=0).begins_ns == 0, "the other replica is idle"
    scheduler.admit(asked, Tenant(name="t"), now_ns=0)
    busy = offer_of(pool, WORK, now_ns=0)
    assert busy.begins_ns > 0
    assert busy.first_ns > idle.first_ns


def test_who_waits_here_waits_before_it() -> None:
    """The fair queue's wait is added; where it is not known it counts as seconds."""
    pool = pool_of(ONE)
    idle = offer_of(pool, WORK, now_ns=0)
    known = offer_of(pool, WORK, waiting=1, wait_s=0.3, now_ns=0)
    assert (known.begins_ns, known.first_ns - idle.first_ns) == (300 * MS, 300 * MS)
    assert offer_of(pool, WORK, waiting=1, now_ns=0).begins_ns == 2 * S
    assert offer_of(pool, WORK, permits=5, wait_s=1.0, now_ns=0).begins_ns == S, "five permits of four"
    digest = digest_of(pool, waiting=1, wait_s=0.3, now_ns=0)
    assert (digest.begins_ns, digest.turn_ns) == (300 * MS, 150 * MS)


def test_who_is_not_ready_suspect_or_elsewhere_offers_nothing() -> None:
    """Only replicas that are trusted, in regions that the tenant allows."""
    pool = pool_of(ONE)
    assert not offer_of(pool, WORK, regions=frozenset({"eu"}), now_ns=0).ready
    pool.endpoints[0].failed(0)
    assert not offer_of(pool, WORK, now_ns=0).ready
    assert digest_of(pool, now_ns=0) == SiteDigest(ready=False)
    assert offer_of(pool, WORK, now_ns=S).ready


def test_hot_is_where_every_replica_is_throttled() -> None:
    """One cool replica is enough."""
    pool = pool_of(ONE, TWO)
    throttled = Cause(CauseKind.EVIDENCE, 0.5)
    pool.endpoints[0].health.set("gpu throttle", throttled)
    assert not offer_of(pool, WORK, now_ns=0).hot
    pool.endpoints[1].health.set("gpu throttle", throttled)
    assert offer_of(pool, WORK, now_ns=0).hot
    assert digest_of(pool, now_ns=0).hot


@given(st.integers(1, 200_000))
def test_a_digest_says_what_an_offer_would(tokens: int) -> None:
    """Of an idle pool, between its sizes within a fifth of the forecast: prefill is not quite linear."""
    pool = pool_of(ONE)
    digest = digest_of(pool, now_ns=0)
    exact = offer_of(pool, Work(tokens, 100), now_ns=0).first_ns
    if tokens in SIZES:
        assert digest.own_of(tokens) == exact
    if SIZES[0] <= tokens <= SIZES[-1]:
        assert 0.8 * exact <= digest.own_of(tokens) <= 1.25 * exact
    assert digest.problems() == []


def test_own_times_grow_with_the_prompt() -> None:
    """Straight between two sizes, and on beyond the last."""
    assert [DIGEST.own_of(n) for n in (1, 64, 640, 65_536, 131_072)] == [
        each * MS // 10 for each in (64, 64, 640, 65_536, 131_072)
    ]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"own_ns": (1, 2)}, "own_ns must have 6 values, not 2"),
        ({"begins_ns": -1}, "no time and no count may be negative"),
        ({"replicas": 0}, "a pool without replicas cannot be ready"),
    ],
)
def test_a_digest_that_cannot_be(change: dict[str, Any], problem: str) -> None:
    """It comes from outside, so it is judged before it is used."""
    assert replace(DIGEST, **change).problems() == [problem]


# -- the edge's view -----------------------------------------------------------------------------------------


def view_of(*, way_ms: int = 40, made_ms: int = 0) -> CentreView:
    view = CentreView()
    assert view.heard(DIGEST, made_ns=made_ms * MS, way_ns=way_ms * MS)
    return view


def offered(view: CentreView, *, at_ms: float, taught: SiteOffer | None = TAUGHT) -> SiteOffer:
    found = view.offer(1_000, taught, now_ns=round(at_ms * MS))
    assert found is not None
    return found


def test_the_way_is_in_the_offer() -> None:
    """There and back to the first token, there alone to the beginning: 100 ms of queue, 20 or 40 of way."""
    found = offered(view_of(), at_ms=0)
    assert (found.begins_ns, found.first_ns, found.token_ns) == (120 * MS, 240 * MS, 20 * MS)
    assert found.confident


def test_a_queue_drains_and_grows_with_what_was_sent() -> None:
    """After 60 ms 40 are left; two prompts of 100 ms each on two replicas are 100 more."""
    view = view_of()
    assert offered(view, at_ms=60).begins_ns == 60 * MS
    view.sent(1_000, now_ns=60 * MS)
    view.sent(1_000, now_ns=60 * MS)
    assert offered(view, at_ms=60).begins_ns == 160 * MS
    # The next digest was made when the first had arrived there, not those of the last moment.
    view.sent(1_000, now_ns=990 * MS)
    view.heard(DIGEST, made_ns=S, way_ns=40 * MS)
    assert offered(view, at_ms=1_000).begins_ns == 170 * MS


def test_as_many_as_had_room_have_gone() -> None:
    """Each further one waits for the end of another, however short the queue was."""
    view = CentreView()
    view.heard(replace(DIGEST, room=1, turn_ns=300 * MS), made_ns=0, way_ns=0)
    view.sent(1, now_ns=0)
    assert offered(view, at_ms=0).begins_ns == 100 * MS + 64 * MS // 10 // 2
    view.sent(1, now_ns=0)
    assert offered(view, at_ms=0).begins_ns == 400 * MS


def test_an_old_digest_is_no_word() -> None:
    """Then the times are those that requests took; with none of them its last word, and no confidence."""
    view = view_of()
    late_ms = FRESH_NS / MS + 1
    assert offered(view, at_ms=late_ms - 1).confident
    assert offered(view, at_ms=late_ms) == replaced(TAUGHT, confident=False)
    assert not offered(view, at_ms=late_ms, taught=None).confident
    assert CentreView().offer(1_000, None, now_ns=0) is None
    assert CentreView().offer(1_000, TAUGHT, now_ns=0) == replaced(TAUGHT, confident=False)


def test_an_older_digest_does_not_replace_a_newer() -> None:
    """Two that overtake each other on the way count once, in the order in which they were made."""
    view = view_of(made_ms=100)
    assert not view.heard(SiteDigest(ready=False), made_ns=100 * MS, way_ns=0)
    assert offered(view, at_ms=100).ready


def test_a_failure_closes_the_way_until_a_digest_or_its_time() -> None:
    """Nothing goes for half a second, then twice as long, up to a bound; many failures at once count once."""
    view = view_of()
    first_ms = PAUSE_FIRST_NS / MS
    for _ in range(20):
        view.failed(now_ns=MS)
    assert not offered(view, at_ms=2).ready
    assert offered(view, at_ms=first_ms + 1).ready
    view.failed(now_ns=S)
    assert not offered(view, at_ms=1_000 + first_ms + 1).ready
    assert offered(view, at_ms=1_000 + 2 * first_ms).ready
    view.failed(now_ns=3 * S)
    view.heard(DIGEST, made_ns=3 * S + MS, way_ns=0)
    assert offered(view, at_ms=3_002).ready
    for at_s in range(100, 10_000, 100):
        view.failed(now_ns=at_s * S)
    assert offered(view, at_ms=9_900_000 + PAUSE_MAX_NS / MS).ready


def test_what_is_remembered_of_the_way_is_bounded() -> None:
    """A link that carries anything between two digests is no leak."""
    view = CentreView()
    view.heard(replace(DIGEST, room=10**9), made_ns=0, way_ns=0)
    for _ in range(2 * SENT_MAX):
        view.sent(64, now_ns=0)
    # 6.4 ms each on two replicas.
    assert offered(view, at_ms=0).begins_ns == 100 * MS + SENT_MAX * 64 * MS // 10 // 2

"""A link that has stopped and has not broken: what is not answered in time says so before the way is lost."""

from __future__ import annotations

import pytest

from extproc.core.remote.links import AWAY_AFTER, OVERDUE_SLACK_NS, WAYS_KEPT, SiteLink
from extproc.core.request import Request
from extproc.core.tiers import TierRule
from tests.core.remote.stand import HUB
from tests.core.remote.test_sites import RULE, SHORT, Edge
from tests.stand.changed import replace

MS = 1_000_000
#: Complex by the rule, and soon done at both sites.
COMPLEX, ONLY_THERE = SHORT, replace(SHORT, model="big")
GOES = replace(RULE, tiers=TierRule(prompt_tokens_simple=2, prompt_tokens_complex=4))


def went(edge: Edge, request: Request, *, now_ns: int) -> str:
    """Where a request goes at a time, if it came then."""
    return edge.routed(request, now_ns=now_ns).reservation.pool


@pytest.mark.parametrize("way_ms", [5, 40, 150])
def test_what_would_go_stays_while_an_answer_is_overdue(way_ms: int) -> None:
    """From the rule's wait on, long before two questions are lost; it goes again with the first answer."""
    edge = Edge(GOES)
    for _ in range(WAYS_KEPT):
        edge.hears(now_ns=0, way_ns=way_ms * MS)
    edge.link.asks(now_ns=1_000 * MS)
    on_time_ns = (1_000 + way_ms) * MS + OVERDUE_SLACK_NS
    assert went(edge, COMPLEX, now_ns=on_time_ns) == "hub"
    assert went(edge, COMPLEX, now_ns=on_time_ns + 1_000 * MS) == "p"
    assert not edge.link.away
    # What has no other place goes all the same.
    assert went(edge, ONLY_THERE, now_ns=on_time_ns + 1_000 * MS) == "hub"
    # The answer itself comes late, and is no measure of the way: the shortest is.
    edge.hears(now_ns=1_000 * MS, way_ns=1_400 * MS)
    assert went(edge, COMPLEX, now_ns=2_400 * MS) == "hub"
    assert edge.link.way_ns == way_ms * MS


def test_an_answer_is_overdue_since_the_first_that_is_missing() -> None:
    """What is asked meanwhile changes nothing, nor does a question that is given up; any answer ends it."""
    link = SiteLink("hub")
    assert link.overdue_ns(now_ns=10**12) == 0
    link.asks(now_ns=0)
    link.heard(HUB, asked_ns=0, way_ns=40 * MS, offset_s=0.0)
    assert link.overdue_ns(now_ns=10**12) == 0
    link.asks(now_ns=1_000 * MS)
    link.missed("no answer")
    link.asks(now_ns=2_500 * MS)
    assert link.lost < AWAY_AFTER
    assert link.overdue_ns(now_ns=3_000 * MS) == 2_000 * MS - 40 * MS - OVERDUE_SLACK_NS
    assert link.plain(now_ns=3_000 * MS)["overdue_ms"] == 1_860.0
    link.refused("it answers 503")
    assert link.overdue_ns(now_ns=3_000 * MS) == 0


def test_without_a_fresh_word_a_late_answer_counts_as_well() -> None:
    """What requests have taught there does not know of the stall either."""
    edge = Edge(GOES)
    edge.link.asks(now_ns=1_000 * MS)
    edge.link.refused("its digest cannot be read")
    assert went(edge, COMPLEX, now_ns=60_000 * MS) == "hub"
    edge.link.asks(now_ns=60_000 * MS)
    assert went(edge, COMPLEX, now_ns=62_000 * MS) == "p"

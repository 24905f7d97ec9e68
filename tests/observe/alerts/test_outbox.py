"""What waits for a receiver."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.observe.alerts.outbox import AlertOutbox, Patience

S = 1_000_000_000


def box(**patience: int) -> AlertOutbox:
    return AlertOutbox(Patience(**{"retry_min_ns": S, "retry_max_ns": 8 * S, **patience}), rng=Random(1))


def test_messages_go_in_order_one_at_a_time() -> None:
    """The second waits for the first's answer."""
    waiting = box()
    waiting.add({"n": 1}, now_ns=0)
    waiting.add({"n": 2}, now_ns=0)
    first = waiting.due(now_ns=0)
    assert first is not None
    assert first.message == {"n": 1}
    assert waiting.due(now_ns=0) is None
    assert waiting.sent(204, "", now_ns=0)
    second = waiting.due(now_ns=0)
    assert second is not None
    assert second.message == {"n": 2}


@pytest.mark.parametrize("status", [None, 500, 503, 429, 408])
def test_a_failure_is_retried_first_and_later_each_time(status: int | None) -> None:
    """Waits double with a jitter of a half, up to the longest."""
    waiting, now_ns = box(), 0
    waiting.add({"n": 1}, now_ns=0)
    waiting.add({"n": 2}, now_ns=0)
    for attempt in range(7):
        parcel = waiting.due(now_ns=now_ns)
        assert parcel is not None
        assert parcel.message == {"n": 1}
        assert not waiting.sent(status, "", now_ns=now_ns)
        base_ns = min(8 * S, S << attempt)
        assert waiting.due(now_ns=now_ns + base_ns // 2 - 1) is None
        now_ns += base_ns * 3 // 2
    assert waiting.status()["waiting"] == 2
    assert waiting.trouble


@pytest.mark.parametrize("status", [301, 400, 401, 404])
def test_what_will_never_be_taken_is_dropped(status: int) -> None:
    """A receiver that says no gets the next message at once."""
    waiting = box()
    waiting.add({"n": 1}, now_ns=0)
    waiting.add({"n": 2}, now_ns=0)
    assert waiting.due(now_ns=0) is not None
    assert not waiting.sent(status, "", now_ns=0)
    following = waiting.due(now_ns=0)
    assert following is not None
    assert following.message == {"n": 2}
    assert waiting.counts["refused"] == 1


def test_it_gives_up_in_the_end() -> None:
    """After give_up_ns of trying."""
    waiting = box(give_up_ns=10 * S)
    waiting.add({"n": 1}, now_ns=0)
    waiting.due(now_ns=0)
    waiting.sent(500, "", now_ns=9 * S)
    assert len(waiting) == 1
    assert waiting.due(now_ns=20 * S) is not None
    waiting.sent(500, "", now_ns=20 * S)
    assert len(waiting) == 0
    assert waiting.counts["given_up"] == 1


@given(st.lists(st.tuples(st.sampled_from(["add", "due", "sent"]), st.sampled_from([200, 500, 404, None]))))
def test_nothing_is_lost_uncounted_and_memory_is_bounded(does: list[tuple[str, Any]]) -> None:
    """Every message waits, was delivered, refused, given up or dropped."""
    waiting, under_way, now_ns, added = box(queue_max=3, give_up_ns=50 * S), False, 0, 0
    for action, status in does:
        now_ns += 5 * S
        if action == "add":
            waiting.add({}, now_ns=now_ns)
            added += 1
        elif action == "due" and not under_way:
            under_way = waiting.due(now_ns=now_ns) is not None
        elif action == "sent" and under_way:
            waiting.sent(status, "trouble", now_ns=now_ns)
            under_way = False
        assert len(waiting) <= 5
    gone = sum(waiting.counts[each] for each in ("delivered", "refused", "given_up", "dropped"))
    assert added == len(waiting) + gone

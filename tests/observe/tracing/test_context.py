from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.observe.tracing.context import STATE_CHARACTERS_MAX, Parent, parent_of, parse, write

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"


def test_a_parent() -> None:
    """Ids, the sampled flag, the vendors' state."""
    assert parse(GOOD, "a=b") == Parent(int(TRACE, 16), int(SPAN, 16), True, "a=b")
    unsampled = parse(f"00-{TRACE}-{SPAN}-00")
    assert unsampled is not None
    assert not unsampled.sampled
    # Other flags say nothing of sampling; a later version may hold more.
    assert parse(f"00-{TRACE}-{SPAN}-03") == parse(GOOD)
    assert parse(f"cc-{TRACE}-{SPAN}-01-more") == parse(GOOD)


@pytest.mark.parametrize(
    "header",
    [
        "",
        GOOD[:-1],
        GOOD + "-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        GOOD.upper(),
        GOOD.replace("-", "_"),
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01more",
    ],
)
def test_what_is_no_parent(header: str) -> None:
    """Malformed, all zeros, or of the forbidden version: as good as absent."""
    assert parse(header) is None


def test_a_long_state_is_dropped() -> None:
    """The trace goes on without it; so it does without one that is not ASCII."""
    for state in ("a=" + "b" * STATE_CHARACTERS_MAX, "a=é"):
        parent = parse(GOOD, state)
        assert parent is not None
        assert parent.state == ""


def test_of_a_call_s_metadata() -> None:
    """Among other names; several states are one list; binary values are none."""
    metadata = [("user-agent", "envoy"), ("tracestate", "a=b"), ("traceparent", GOOD), ("tracestate", "c=d")]
    assert parent_of(metadata) == Parent(int(TRACE, 16), int(SPAN, 16), True, "a=b,c=d")
    assert parent_of([("traceparent", GOOD.encode())]) is None
    assert parent_of([]) is None


@given(
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.booleans(),
    st.text(string.printable, max_size=60),
)
def test_what_is_written_is_read(trace_id: int, span_id: int, sampled: bool, rubbish: str) -> None:
    """The round trip; and rubbish raises nothing."""
    assert parse(write(trace_id, span_id, sampled=sampled)) == Parent(trace_id, span_id, sampled)
    parse(rubbish)
    parse(rubbish + GOOD[len(rubbish) :], rubbish)

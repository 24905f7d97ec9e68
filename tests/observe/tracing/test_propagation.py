from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from extproc.core.request import RouteKind
from extproc.observe.tracing import propagation
from extproc.observe.tracing.context import STATE_CHARACTERS_MAX

IDS = st.integers(1, 2**64 - 1)


@given(
    st.integers(1, 2**128 - 1),
    st.integers(0, 2**64 - 1),
    IDS,
    st.sampled_from([None, *RouteKind]),
    st.text(),
    st.text(),
)
def test_what_is_written_is_read(
    trace: int, parent: int, span: int, kind: RouteKind | None, asked: str, user: str
) -> None:
    """The round trip, whatever the names hold; a name is bounded."""
    text = propagation.write(trace, parent, span, kind=kind, asked=asked, user=user, state="a=b")
    carried = propagation.read(text)
    assert carried is not None
    assert (carried.trace_id, carried.parent_id, carried.span_id) == (trace, parent, span)
    assert (carried.route_kind, carried.asked, carried.state) == (kind, asked, "a=b")
    assert carried.user == user[: propagation.USER_CHARACTERS_MAX]
    assert carried.prompt == ()


def test_its_size() -> None:
    """A kibibyte and what the model is called, at the most."""
    text = propagation.write(
        2**128 - 1,
        1,
        1,
        kind=RouteKind.GENERATE_STREAM,
        asked="",
        user="u" * 1024,
        state="s" * STATE_CHARACTERS_MAX,
    )
    assert len(text) < 1024


@given(st.text())
def test_what_is_none_of_ours(text: str) -> None:
    """Anything else is None, and so are ids that are none."""
    assert propagation.read(text) is None
    assert propagation.read('["x","y","z"]') is None
    assert propagation.read(f'["{"0" * 32}","{"1" * 16}","{"1" * 16}"]') is None
    assert propagation.read(f'["{"1" * 32}","{"1" * 16}","{"0" * 16}"]') is None
    # A kind of a later version is one that is not known here.
    later = propagation.read(f'["{"1" * 32}","{"1" * 16}","{"1" * 16}","telepathy","m","","",42]')
    assert later is not None
    assert later.route_kind is None

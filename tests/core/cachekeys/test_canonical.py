"""One spelling for all bodies that say the same, and none for those that say two things."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.cachekeys import Uncanonical, canonical

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",)), max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
BODIES = st.dictionaries(st.text(st.characters(exclude_categories=("Cs",)), max_size=6), VALUES, max_size=6)


def shuffled(value: Any) -> Any:
    """The same value with every object's members the other way round."""
    if isinstance(value, dict):
        return {name: shuffled(value[name]) for name in reversed(value)}
    return [shuffled(each) for each in value] if isinstance(value, list) else value


@given(BODIES)
def test_spelling_does_not_matter(body: dict[str, Any]) -> None:
    """The order of members, blanks and escapes change nothing, at any depth."""
    plain = canonical(json.dumps(body).encode())[1]
    assert canonical(json.dumps(shuffled(body), indent=3, ensure_ascii=False).encode())[1] == plain


@given(BODIES, BODIES)
def test_what_says_something_else_is_spelt_otherwise(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two bodies have one spelling only where they are equal; 1, 1.0 and true are three things."""
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    spelt = [canonical(json.dumps(each).encode())[1] for each in (one, other)]
    assert (spelt[0] == spelt[1]) == same


def test_unknown_fields_and_their_order_in_lists_count() -> None:
    """Nothing is left out: a field that nobody knows, and the order of a list, are part of the question."""
    texts = [
        b'{"a":1}',
        b'{"a":1,"x_unknown":null}',
        b'{"a":[1,2]}',
        b'{"a":[2,1]}',
        b'{"a":1.0}',
        b'{"a":true}',
    ]
    assert len({canonical(text)[1] for text in texts}) == len(texts)


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt":"a","prompt":"b"}',
        b'{"m":{"x":1,"x":1}}',
        b'{"m":{"\\u0078":1,"x":2}}',
        b'{"a":{"x\\\\":"\\\\","x\\\\":"y"}}',
        b'{"\\\\":1,"\\\\":2}',
        b'{"a":"x\\\\","a":1}',
        b'{"a":1,"b":"\\u0022\\u0022","a":2}',
        b'{"a":1,"b":"\\u005c","a":2}',
        b'{"t":NaN}',
        b'{"t":Infinity}',
        b'{"t":1e999}',
        b'{"t":"\\ud800"}',
        b"[1]",
        b'"text"',
        b"",
        b"{",
        b'{"a":"\xff"}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_may_be_read_in_two_ways_has_no_spelling(body: bytes) -> None:
    """A name twice, a number that is none, and what is no object in UTF-8 are not cached."""
    with pytest.raises(Uncanonical):
        canonical(body)


@given(BODIES, st.text(alphabet='\\"ax', max_size=6), st.text(alphabet='\\"a', max_size=6), st.booleans())
def test_no_name_stands_twice(body: dict[str, Any], name: str, value: str, escaped: bool) -> None:
    """However its quotes and backslashes are spelt, at whatever depth, and whatever stands beside it."""
    spelt = json.dumps(name)
    if escaped:
        spelt = '"' + "".join(f"\\u{ord(each):04x}" for each in name) + '"'
    inner = f"{{{spelt}:{json.dumps(value)},{json.dumps(name)}:1}}"
    whole = json.dumps({**body, "inner": None})
    for text in (inner, whole.replace('"inner": null', f'"inner": [{inner}]')):
        with pytest.raises(Uncanonical):
            canonical(text.encode())

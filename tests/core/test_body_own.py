"""Routes of the file's own: where their bodies name what is asked for, and what counts as their input."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.config.load import loads
from extproc.config.own_routes import own_routes
from extproc.config.restart import restart_needed
from extproc.core.outcome import Reject
from extproc.core.reading import parse
from extproc.core.request import Request, RouteKind
from extproc.core.routes import Route

BASE = "gateway: {auth: none}\npools: [{name: p, models: [m], endpoints: [{address: 10.0.0.1:80}]}]\n"


def row(text: str) -> Route:
    """One route as the file has it, without its braces."""
    (found,) = own_routes(loads(f"{BASE}routes: [{{path: /v1/x, {text}}}]").routes)
    return found


def good(route: Route, body: Any) -> Request:
    """A body that is no mistake."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = parse(route, data)
    assert isinstance(request, Request), request
    return request


@pytest.mark.parametrize(
    ("body", "sequences", "size", "tokens"),
    [
        ({"a": "four"}, 1, 4, None),
        ({"a": ["four", "seventy"]}, 2, 11, None),
        ({"a": "four", "b": {"c": "xx"}}, 1, 6, None),
        ({"b": {"c": ["x", "y", "z"]}}, 3, 3, None),
        ({"a": [1, 2, 3]}, 1, 12, 3),
        ({"a": {"text": "four"}}, 1, 4, None),
        ({"a": {"other": 1}}, 1, len('{"other": 1}'), None),
    ],
)
def test_inputs_of_several_fields(body: Any, sequences: int, size: int, tokens: int | None) -> None:
    """They count together; what nobody can read has a size."""
    request = good(row("work: embedding, input: [a, b.c]"), body)
    assert (request.sequences, request.prompt_bytes, request.prompt_tokens) == (sequences, size, tokens)
    assert (request.kind, request.max_new_tokens, request.segments) == (RouteKind.OTHER, 0, ())


def test_without_fields_the_bodys_size_counts() -> None:
    """And of work 'none' nothing at all."""
    body = json.dumps({"model": "m", "x": "y" * 100}).encode()
    assert good(row("work: embedding"), body).prompt_bytes == len(body)
    assert good(row("work: none"), body).kind is RouteKind.OTHER_FREE


def test_what_a_generation_asks_for() -> None:
    """Model, limit and stream, from nested fields; its texts are there for prefixes."""
    route = row(
        "work: generation, model: {field: o.m}, input: [t], output_limit: o.n, streams: asked, "
        "stream_field: o.s"
    )
    request = good(route, {"t": "Ahoy", "o": {"m": "m", "n": "7", "s": 1}})
    assert (request.model, request.max_new_tokens, request.stream) == ("m", 7, True)
    assert request.segments == ("Ahoy",)
    plain = good(route, {"t": "Ahoy", "o": [1], "model": "not here"})
    assert (plain.model, plain.max_new_tokens, plain.stream) == (None, None, False)


def test_streams_by_word_of_the_file() -> None:
    """'always' asks no field, 'never' heeds none."""
    assert good(row("work: generation, streams: always"), {}).stream
    assert not good(row("work: generation"), {"stream": True}).stream


def test_a_form_and_a_request_without_body() -> None:
    """The form's own field, and the one model of all."""
    form = b'--b\r\ncontent-disposition: form-data; name="kind"\r\n\r\nm\r\n--b--\r\n'
    assert good(row("work: generation, body: form, model: {form: kind}"), form).model == "m"
    assert good(row("method: GET, body: none, work: none, model: {fixed: m}"), b"").model == "m"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcm"), inner),
        max_leaves=12,
    )
)
def test_any_json_is_read_or_refused(body: Any) -> None:
    """Nothing that a client sends is a fault here."""
    route = row("work: generation, model: {field: a.m}, input: [b, c.a], output_limit: a.b, streams: asked")
    answer = parse(route, json.dumps(body).encode())
    assert isinstance(answer, Reject) or answer.sequences >= 1


@pytest.mark.parametrize(
    ("route", "needed"),
    [
        ("path: /v1/x, work: embedding, input: [a]", False),
        ("path: /v1/x, work: embedding, dialect: tgi", True),
        ("path: /x, work: embedding, dialect: tgi", False),
        ("path: /v1/x, work: embedding, usage: {input: a.b}", True),
        ("path: /v1/x, work: none, body: form, model: {form: m}", True),
    ],
)
def test_what_a_reload_cannot_take(route: str, *, needed: bool) -> None:
    """What Envoy's filters know of a route waits for its restart, and nothing else."""
    before, after = loads(BASE), loads(f"{BASE}routes: [{{{route}}}]")
    assert bool(restart_needed(before, after)) is needed

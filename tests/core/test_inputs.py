"""Embeddings, reranking and scores: what counts as an input, and how much of a prompt it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.prompts import SEQUENCES_MAX, TOKEN_BYTES
from extproc.core.reading import bare
from extproc.core.request import Request
from extproc.core.routes import ROUTES, RouteWork
from tests.stand.bodies import good, read

EMBEDDINGS, RERANK, SCORE = "/v1/embeddings", "/v1/rerank", "/v1/score"


@pytest.mark.parametrize(
    ("given_input", "sequences", "size", "tokens"),
    [
        ("four", 1, 4, None),
        (["four", "seventy"], 2, 11, None),
        ("süß", 1, 5, None),
        ([1, 2, 3], 1, 3 * TOKEN_BYTES, 3),
        ([[1, 2, 3], [4]], 2, 4 * TOKEN_BYTES, 4),
        (["x"] * 2_048, SEQUENCES_MAX, 2_048, None),
        ([{"text": "four"}, {"text": "five"}], 2, 8, None),
    ],
)
def test_inputs(given_input: Any, sequences: int, size: int, tokens: int | None) -> None:
    """Texts, batches, token ids; more than an engine runs at once is not refused here."""
    request = good(EMBEDDINGS, {"model": "m", "input": given_input})
    assert (request.sequences, request.prompt_bytes, request.prompt_tokens) == (sequences, size, tokens)
    assert (request.max_new_tokens, request.stream, request.model) == (0, False, "m")


@pytest.mark.parametrize(
    ("path", "body", "images"),
    [
        (EMBEDDINGS, {"input": [{"text": "a"}, {"image": "https://x"}]}, 1),
        (EMBEDDINGS, {"messages": [{"role": "user", "content": "a"}]}, 0),
        (
            EMBEDDINGS,
            {"messages": [{"role": "user", "content": [{"image_url": {"url": "https://x"}}, "a"]}]},
            1,
        ),
        (RERANK, {"query": "a", "documents": ["b"]}, 0),
        (RERANK, {"query": {"image": "https://x"}, "documents": [{"image": "https://y"}, {"text": "b"}]}, 2),
        (
            SCORE,
            {"text_1": "a", "text_2": {"content": [{"video_url": {"url": "https://x"}}, {"text": "b"}]}},
            1,
        ),
    ],
)
def test_images_among_inputs_are_counted(path: str, body: Any, images: int) -> None:
    """Engines that embed them count their tokens, of which no text tells."""
    assert good(path, body).images == images


def test_a_batch_of_token_ids_beyond_any_bound_is_read_as_its_size() -> None:
    """Lists of ids that nobody counts one by one still have a size."""
    lists = [[1]] * (SEQUENCES_MAX + 5)
    request = good(EMBEDDINGS, {"input": lists})
    assert (request.sequences, request.prompt_bytes) == (SEQUENCES_MAX, len(json.dumps(lists)))


@pytest.mark.parametrize(
    ("path", "body", "sequences", "size"),
    [
        (RERANK, {"query": "abc", "documents": ["d", "efg"]}, 2, 2 * 3 + 4),
        (RERANK, {"query": "abc", "texts": ["d"]}, 1, 4),
        (RERANK, {"query": "abc", "documents": [{"text": "de"}, {"text": "f"}]}, 2, 2 * 3 + 3),
        (SCORE, {"text_1": "abc", "text_2": ["d", "e", "f"]}, 3, 3 * 3 + 3),
        (SCORE, {"text_1": ["ab", "cd"], "text_2": ["e", "f"]}, 2, 4 + 2),
        (SCORE, {"query": "abc", "items": ["d", "e"]}, 2, 2 * 3 + 2),
    ],
)
def test_a_query_counts_beside_each_document(path: str, body: Any, sequences: int, size: int) -> None:
    """An engine reads it so many times."""
    request = good(path, body)
    assert (request.sequences, request.prompt_bytes, request.max_new_tokens) == (sequences, size, 0)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(st.sampled_from([EMBEDDINGS, RERANK, SCORE]), json_values, json_values)
def test_whatever_stands_there_is_read_or_refused(path: str, one: Any, other: Any) -> None:
    """No shape raises, and what is read asks for something and for no output."""
    body = {"input": one, "query": one, "documents": other}
    request = read(path, body)
    if isinstance(request, Request):
        assert 1 <= request.sequences <= SEQUENCES_MAX
        assert request.prompt_bytes >= 0
        assert request.max_new_tokens == 0
    else:
        assert request.status == 422


def test_what_cannot_be_read_asks_for_no_output_either() -> None:
    """A degraded decision knows of the route that it generates nothing."""
    for path, (route, *_) in ROUTES.items():
        if route.method == "POST":
            left = bare(route, b'{"max_tokens": 9}')
            assert (left.max_new_tokens == 9) is (route.work is RouteWork.GENERATES), path

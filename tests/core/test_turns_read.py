"""Responses and messages: what is read of them, and that it is what a chat of the same words is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.outcome import Reject
from extproc.core.request import Request, prefix_of
from tests.stand.bodies import good, read

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
LONG = "All hands on deck, and look lively about it. " * 40


def test_a_response() -> None:
    """Its limit, stream, tools, user, format and what it continues."""
    request = good(
        RESPONSES,
        {
            "model": "m",
            "input": "abc",
            "instructions": "de",
            "max_output_tokens": 7,
            "stream": True,
            "tools": [{}, {}],
            "user": "u",
            "text": {"format": {"type": "json_schema"}},
            "previous_response_id": "resp_1",
        },
    )
    assert (request.model, request.max_new_tokens, request.stream, request.tools) == ("m", 7, True, 2)
    assert (request.user, request.json_output, request.follows) == ("u", True, "resp_1")
    assert (request.prompt_bytes, request.segments) == (5, ("de", "abc"))


def test_a_message() -> None:
    """Its limit, stream, tools and user, the system's words first."""
    request = good(
        MESSAGES,
        {
            "model": "m",
            "messages": [{"role": "user", "content": "abc"}],
            "system": [{"type": "text", "text": "de"}],
            "max_tokens": 7,
            "stream": True,
            "tools": [{}],
            "metadata": {"user_id": "u"},
        },
    )
    assert (request.model, request.max_new_tokens, request.stream, request.tools) == ("m", 7, True, 1)
    assert (request.user, request.prompt_bytes, request.segments) == ("u", 5, ("de", "abc"))


@pytest.mark.parametrize(
    ("more", "beside", "limit"),
    [
        ({}, False, 7),
        ({"previous_response_id": "resp_1"}, True, 7),
        ({"tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "g"}]}, False, 7),
        ({"tools": [{"type": "function", "name": "f"}, {"type": "web_search"}]}, True, None),
    ],
)
def test_what_an_engine_reads_beside_a_response(more: Any, beside: bool, limit: int | None) -> None:
    """What came before, and what its own tools find: with these it generates several times to the limit."""
    request = good(RESPONSES, {"input": "abc", "max_output_tokens": 7, **more})
    assert (request.beside, request.max_new_tokens) == (beside, limit)


@pytest.mark.parametrize(
    "part", [{"type": "input_file", "file_id": "f"}, {"type": "input_audio", "input_audio": {"data": "AAAA"}}]
)
def test_files_and_sounds_count_as_images(part: Any) -> None:
    """An engine reads what a name stands for."""
    assert good(RESPONSES, {"input": [{"role": "user", "content": [part]}]}).images == 1


def test_images_and_tools_are_told() -> None:
    """An image of either dialect counts as one; what tools are asked and answer counts as text."""
    image = {"type": "image", "source": {"type": "base64", "data": "AAAA"}}
    calls = {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}}
    answer = {"type": "tool_result", "tool_use_id": "t", "content": "found"}
    request = good(MESSAGES, {"messages": [{"role": "user", "content": [image, calls, answer]}]})
    assert (request.images, request.segments) == (1, ('{"x": 1}', '"found"'))
    items = [
        {"role": "user", "content": [{"type": "input_image", "image_url": "https://x"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "found"},
    ]
    request = good(RESPONSES, {"input": items})
    assert (request.images, request.segments) == (1, ('"{}"', '"found"'))


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
def test_one_conversation_has_one_prefix(path: str) -> None:
    """What begins alike is of one prefix, and what begins otherwise is not."""
    name = "input" if path == RESPONSES else "messages"
    system = "instructions" if path == RESPONSES else "system"

    def prefix(text: str, first: str = LONG) -> tuple[int, ...]:
        return prefix_of(good(path, {name: [{"role": "user", "content": text}], system: first}))

    one, other, apart = prefix(LONG + "a"), prefix(LONG + "b"), prefix(LONG + "a", LONG.upper())
    assert len(one) > 4
    assert one[:-1] == other[:-1]
    assert one[0] != apart[0]


@pytest.mark.parametrize("identity", [7, [], "", "x" * 300])
def test_what_is_no_id_is_refused(identity: Any) -> None:
    """An engine is never asked to continue what was not looked up."""
    refused = read(RESPONSES, {"input": "x", "previous_response_id": identity})
    assert isinstance(refused, Reject)
    assert "previous_response_id" in refused.message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["text", "content", "role", "input", "source"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.sampled_from([RESPONSES, MESSAGES]), json_values, json_values)
def test_whatever_stands_there_is_read_or_refused(path: str, turns: Any, first: Any) -> None:
    """No shape raises."""
    body = {"input": turns, "messages": turns, "instructions": first, "system": first}
    request = read(path, body)
    if isinstance(request, Request):
        assert request.prompt_bytes >= 0
        assert len(request.segments) == len(request.marks)
    else:
        assert request.status in (413, 422)

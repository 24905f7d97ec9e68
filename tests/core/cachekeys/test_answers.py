"""Which answers are whole and good."""

from __future__ import annotations

import json
from typing import Any

import pytest

from extproc.core.cachekeys import Usage, WantedAnswer, Wrong, judge
from extproc.core.request import RouteKind


def wanted(kind: RouteKind = RouteKind.CHAT, **more: Any) -> WantedAnswer:
    given = {"stream": False, "counts": False, **more}
    return WantedAnswer(
        scope="tenant:a", key=b"k" * 32, model="m", pool="p", kind=kind, ttl_ns=1, bytes_max=1 << 20, **given
    )


def whole(**change: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    choice.update(change.pop("choice", {}))
    value = {
        "object": "chat.completion",
        "choices": [choice],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
    return json.dumps({**value, **change}).encode()


def events(*values: Any, end: bytes = b"data: [DONE]\n\n") -> bytes:
    return b"".join(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values) + end


def piece(content: Any = "hi", finish: Any = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}], **more}


USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


def test_a_whole_answer_tells_its_usage() -> None:
    """One that ended by itself, by its limit, or as text of a completion."""
    assert judge(whole(), wanted()) == Usage(3, 2)
    assert judge(whole(choice={"finish_reason": "length"}), wanted()) == Usage(3, 2)
    text = {"text": "hi", "message": None}
    assert judge(whole(choice=text), wanted(RouteKind.COMPLETION)) == Usage(3, 2)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", Wrong.UNREADABLE),
        (whole()[:-2], Wrong.UNREADABLE),
        (b"[]", Wrong.UNREADABLE),
        (whole(error={"message": "no"}), Wrong.ERROR),
        (whole(object="error"), Wrong.ERROR),
        (whole(error_type="overloaded"), Wrong.ERROR),
        (whole(choices=[]), Wrong.EMPTY),
        (whole(choice={"message": {"content": ""}}), Wrong.EMPTY),
        (whole(choice={"message": {"content": None}}), Wrong.EMPTY),
        (whole(choice={"finish_reason": None}), Wrong.CUT),
        (whole(choice={"finish_reason": "content_filter"}), Wrong.REFUSED),
        (whole(choice={"finish_reason": "abort"}), Wrong.REFUSED),
        (whole(choice={"message": {"content": "x", "refusal": "I cannot"}}), Wrong.REFUSED),
        (whole(choice={"message": {"content": "x", "tool_calls": [{}]}}), Wrong.REFUSED),
        (whole(choices=[{}, {}]), Wrong.UNREADABLE),
        (whole(choices=7), Wrong.UNREADABLE),
    ],
)
def test_a_whole_answer_that_is_not_good_is_not_kept(body: bytes, why: Wrong) -> None:
    """Cut, wrong, empty and refused ones; each says why."""
    assert judge(body, wanted()) is why


def test_usage_that_was_asked_for_must_be_there() -> None:
    """An answer that lost its usage on the way is not given again without it."""
    body = whole(usage=None)
    assert judge(body, wanted(counts=True)) is Wrong.UNCOUNTED
    assert judge(body, wanted()) == Usage()
    stream = events(piece(), piece(finish="stop"))
    assert judge(stream, wanted(stream=True, counts=True)) is Wrong.UNCOUNTED
    assert judge(events(piece(), piece(finish="stop"), USAGE), wanted(stream=True, counts=True)) == Usage(
        3, 2
    )


def test_a_stream_is_whole_with_its_reason_and_its_end() -> None:
    """Comments and other fields of events are passed over; lines may end with CR."""
    body = b": alive\n\nevent: message\n" + events(piece(""), piece(), piece("", "stop"))
    assert judge(body, wanted(stream=True)) == Usage()
    assert judge(body.replace(b"\n", b"\r\n"), wanted(stream=True)) == Usage()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (events(piece(), piece(finish="stop"), end=b""), Wrong.CUT),
        (events(piece()), Wrong.CUT),
        (events(piece(), piece(finish="stop"))[:-1], Wrong.CUT),
        (events(), Wrong.CUT),
        (events(piece(""), piece("", "stop")), Wrong.EMPTY),
        (events(piece(), {"error": {"message": "x"}}, piece(finish="stop")), Wrong.ERROR),
        (events(piece(), piece(finish="content_filter")), Wrong.REFUSED),
        (events(piece(), piece(finish="stop"), end=b"data: [DONE]\n\ndata: {}\n\n"), Wrong.UNREADABLE),
        (b"error: boom\n\n", Wrong.ERROR),
        (b"<html>\n\n", Wrong.UNREADABLE),
        (b"data: {\n\n", Wrong.UNREADABLE),
        (b"", Wrong.CUT),
    ],
)
def test_a_stream_that_is_not_good_is_not_kept(body: bytes, why: Wrong) -> None:
    """Without its end, without a reason, with an error in it, or with something behind its end."""
    assert judge(body, wanted(stream=True)) is why


def tgi(text: Any = "hi", details: Any = None, **more: Any) -> dict[str, Any]:
    return {"generated_text": text, "details": details, **more}


DETAILS = {"finish_reason": "eos_token", "generated_tokens": 2, "input_length": 3}


def test_tgis_answers_end_with_their_text() -> None:
    """Whole, in a list, and streamed; counts are in the details."""
    kind = RouteKind.GENERATE
    assert judge(json.dumps(tgi(details=DETAILS)).encode(), wanted(kind, counts=True)) == Usage(3, 2)
    assert judge(json.dumps([tgi()]).encode(), wanted(RouteKind.COMPAT)) == Usage()
    stream = events({"token": {}, "generated_text": None}, tgi(details=DETAILS), end=b"")
    assert judge(stream, wanted(RouteKind.GENERATE_STREAM, stream=True, counts=True)) == Usage(3, 2)


@pytest.mark.parametrize(
    ("body", "stream", "why"),
    [
        (json.dumps({"error": "x", "error_type": "generation"}).encode(), False, Wrong.ERROR),
        (json.dumps(tgi("")).encode(), False, Wrong.EMPTY),
        (json.dumps([tgi(), tgi()]).encode(), False, Wrong.UNREADABLE),
        (json.dumps(tgi(details={**DETAILS, "finish_reason": None})).encode(), False, Wrong.CUT),
        (json.dumps(tgi()).encode(), False, Wrong.UNCOUNTED),
        (events({"generated_text": None}, end=b""), True, Wrong.CUT),
        (events(tgi(""), end=b""), True, Wrong.EMPTY),
        (events(tgi(), tgi(), end=b""), True, Wrong.UNREADABLE),
        (events({"error": "x", "error_type": "overloaded"}, end=b""), True, Wrong.ERROR),
    ],
)
def test_tgis_answers_that_are_not_good_are_not_kept(body: bytes, stream: bool, why: Wrong) -> None:
    """An error inside a 200, no text, two ends, or no counts where they were asked for."""
    kind = RouteKind.GENERATE_STREAM if stream else RouteKind.GENERATE
    assert judge(body, wanted(kind, stream=stream, counts=True)) is why

"""Whose fault an error inside a 200 is, by the engines' own words; and what ends how."""

from __future__ import annotations

import pytest

from extproc.core.outcome import End
from extproc.wire.ended import ErrorOrigin, end_of, fault_of
from extproc.wire.stream_events import StreamEvents, error_in


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("", ErrorOrigin.NONE),
        ('"error":"Model is overloaded","error_type":"overloaded"', ErrorOrigin.FULL),
        ('"error":{"message":"Model is overloaded","http_status_code":422}', ErrorOrigin.FULL),
        ('"error":{"message":"busy","code":429}', ErrorOrigin.FULL),
        (
            '"error":"Input validation error: `inputs` too long","error_type":"validation"',
            ErrorOrigin.REQUEST,
        ),
        (
            '"error":{"message":"Input validation error: too long","http_status_code":422}',
            ErrorOrigin.REQUEST,
        ),
        ('"error":{"message":"no such image","type":"BadRequestError","code":400}', ErrorOrigin.REQUEST),
        (
            '"error": {"code": 400, "message": "prompt too long", "type": "exceed_context_size_error"}',
            ErrorOrigin.REQUEST,
        ),
        ('"error":"Request failed during generation: x","error_type":"generation"', ErrorOrigin.ENGINE),
        (
            '"error":{"message":"Request failed during generation: x","http_status_code":422}',
            ErrorOrigin.ENGINE,
        ),
        ('"error":"Incomplete generation","error_type":"incomplete_generation"', ErrorOrigin.ENGINE),
        (
            '"error":{"message":"EngineCore is dead","type":"InternalServerError","code":500}',
            ErrorOrigin.ENGINE,
        ),
        (
            '"object":"error","message":"out of memory","type":"InternalServerError","code":500}',
            ErrorOrigin.ENGINE,
        ),
        ('error: {"code":500,"message":"slot failed"}', ErrorOrigin.ENGINE),
    ],
)
def test_whose_fault(said: str, fault: ErrorOrigin) -> None:
    """TGI says 422 of everything on its OpenAI routes: there its words count."""
    assert fault_of(said) is fault


@pytest.mark.parametrize(
    ("status", "fault", "gone", "broke", "end"),
    [
        (200, ErrorOrigin.NONE, False, False, End.OK),
        (200, ErrorOrigin.ENGINE, False, False, End.ERROR),
        (200, ErrorOrigin.ENGINE, True, False, End.ERROR),
        (200, ErrorOrigin.REQUEST, True, False, End.REFUSED),
        (200, ErrorOrigin.NONE, True, True, End.CLIENT_GONE),
        (200, ErrorOrigin.NONE, False, True, End.ERROR),
        (404, ErrorOrigin.NONE, False, False, End.REFUSED),
        (500, ErrorOrigin.NONE, False, False, End.ERROR),
        (0, ErrorOrigin.NONE, False, False, End.ERROR),
    ],
)
def test_how_it_ended(status: int, fault: ErrorOrigin, gone: bool, broke: bool, end: End) -> None:
    """What the engine said counts before whatever came after."""
    assert end_of(status, fault, gone=gone, broke=broke) is end


ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
TOKEN = b'data: {"choices":[{"delta":{"content":"data: \\"error\\": {"},"finish_reason":null}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"completion_tokens":3}}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM = b":\n\n" + ROLE + TOKEN * 3 + USAGE + DONE


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 4096])
def test_events_are_counted_however_they_are_cut(step: int) -> None:
    """Comments, roles, usage and the end hold no token; what a text says of errors is a text."""
    events = StreamEvents()
    for at in range(0, len(STREAM), step):
        events.saw(STREAM[at : at + step])
    assert events.count == 3
    assert (events.error, events.done) == ("", True)


NAMED = (
    b'event: response.created\ndata: {"type":"response.created","response":{"error":null}}\n\n'
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":" a"}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":" b"}}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":2}}\n\n'
)


@pytest.mark.parametrize("step", [1, 7, 4096])
@pytest.mark.parametrize(
    ("last", "done", "fault"),
    [
        (b'event: message_stop\ndata: {"type":"message_stop"}\n\n', True, ErrorOrigin.NONE),
        (b'event: response.completed\ndata: {"response":{"error":null}}\n\n', True, ErrorOrigin.NONE),
        (b'event: error\ndata: {"type":"error","code":"server_error"}\n\n', False, ErrorOrigin.ENGINE),
        (b'event: error\ndata: {"error":{"type":"overloaded_error"}}\n\n', False, ErrorOrigin.FULL),
    ],
)
def test_events_with_names_are_told_by_them(last: bytes, done: bool, fault: ErrorOrigin, step: int) -> None:
    """Of messages and responses the deltas hold tokens, and an event called an error is one."""
    events, stream = StreamEvents(), NAMED + last
    for at in range(0, len(stream), step):
        events.saw(stream[at : at + step])
    assert (events.count, events.done) == (2, done)
    assert fault_of(events.error) is fault


def test_an_error_after_tokens_is_seen() -> None:
    """Wherever it comes in the stream."""
    events = StreamEvents()
    for piece in (ROLE, TOKEN, b'data: {"error": {"message": "dead", "code": 500}}\n\n', DONE):
        events.saw(piece)
    assert fault_of(events.error) is ErrorOrigin.ENGINE
    assert error_in(b'{"choices":[{"message":{"content":"error"}}],"error":null}') == ""

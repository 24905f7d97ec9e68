"""A real Envoy reads the engine's own counts out of a stream, and takes nothing else for one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from extproc.core import contract

if TYPE_CHECKING:  # a conftest is not importable under importlib mode
    Gateway = Any

COUNTED = (
    contract.INDEX_KEY,
    contract.PROMPT_TOKENS_KEY,
    contract.COMPLETION_TOKENS_KEY,
    contract.GENERATED_TOKENS_KEY,
    contract.CACHED_TOKENS_KEY,
)
TOKEN = 'data: {"choices":[{"index":7,"delta":{"content":"x"}}],"usage":null}\\n\\n'
USAGE = '"usage":{"prompt_tokens":11,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":8}}'
SO_FAR = 'data: {"choices":[{"index":0,"delta":{}}],"usage":{"prompt_tokens":5,"completion_tokens":N}}\\n\\n'
TGI = (
    'data:{"index":1,"token":{"id":5,"text":"x"},"generated_text":null,"details":null}\\n\\n'
    'data:{"index":2,"token":{"id":5},"generated_text":"y","details":{"finish_reason":"length",'
    '"generated_tokens":2,"seed":null,"input_length":9}}\\n\\n'
)
QUOTED = (
    'data: {"choices":[{"delta":{"content":"\\"usage\\":{\\"prompt_tokens\\":9}"}}]}\\n\\n'
    'data:{"index":3,"token":{"text":"\\"details\\":{\\"generated_tokens\\":9},\\"index\\":9"}}\\n\\n'
    ': "usage":{"prompt_tokens":9}\\n\\n'
)
LAST = 'data: {"choices":[],%s}\\n\\n'


@pytest.mark.envoy
@pytest.mark.parametrize(
    ("said", "counts"),
    [
        (TOKEN * 3 + LAST % USAGE, (None, 11, 4, None, 8)),
        # Spaces, and what an engine has no number for.
        (
            TOKEN
            + 'data: {"choices": [], "usage" : { "prompt_tokens" : 3, "completion_tokens": null}}\\n\\n',
            (None, 3, None, None, None),
        ),
        # The usage so far, in each event: the last one stands.
        ("".join(SO_FAR.replace("N", str(n)) for n in range(1, 30)), (None, 5, 29, None, None)),
        (
            'data: {"choices":[{"delta":{}}],"timings":{"cache_n":6,"prompt_n":2}}\\n\\n',
            (None, None, None, None, 6),
        ),
        # TGI numbers its events, and says at the end of the last what it counted.
        (TGI, (2, 9, None, 2, None)),
        # What is generated may look like counts, but for its quotes; and so may a comment.
        (
            QUOTED,
            (3, None, None, None, None),
        ),
    ],
    ids=["usage", "spaces", "each", "timings", "tgi", "quoted"],
)
def test_the_engines_counts_are_noted(gateway: Gateway, said: str, counts: tuple[int | None, ...]) -> None:
    """Index, prompt, completion, generated and cached tokens, as numbers."""
    answer = gateway.call("/generate_stream", headers={"x-test-say": said, "x-test-tokens": "0"})
    observed = gateway.record(answer.request_id).observed
    assert tuple(observed.get(key) for key in COUNTED) == counts


def named(name: str, rest: str) -> str:
    return f'event: {name}\\ndata: {{"type":"{name}",{rest}}}\\n\\n'


RESPONSE = (
    named("response.created", '"response":{"id":"resp_7","object":"response","error":null,"usage":null}')
    + named("response.output_text.delta", '"delta":"{\\"usage\\":{\\"input_tokens\\":9}}"') * 3
    + named("response.output_text.done", '"text":"x"')
    + named(
        "response.completed",
        '"response":{"id":"resp_7","output":[],"usage":{"input_tokens":21,"output_tokens":3,'
        '"input_tokens_details":{"cached_tokens":16}}}',
    )
)
MESSAGE = (
    named("message_start", '"message":{"id":"msg_1","usage":{"input_tokens":5,"output_tokens":1}}')
    + named("content_block_start", '"index":0,"content_block":{"type":"text","text":""}')
    + named("ping", '"x":1')
    + named("content_block_delta", '"index":9,"delta":{"type":"text_delta","text":"hi"}') * 4
    + named("content_block_stop", '"index":0')
)
MESSAGE_END = named("message_delta", '"usage":{"output_tokens":4}') + named("message_stop", '"x":1')


@pytest.mark.envoy
@pytest.mark.parametrize(
    ("said", "counts", "events", "done"),
    [
        (RESPONSE, (None, 21, 3, None, 16), 3, True),
        (MESSAGE + MESSAGE_END, (None, 5, 4, None, None), 4, True),
        # Who leaves before the end is charged by what came: not by the one token that it began with.
        (MESSAGE, (None, 5, None, None, None), 4, None),
    ],
    ids=["response", "message", "left"],
)
def test_events_with_names_are_counted_by_them(
    gateway: Gateway, said: str, counts: tuple[int | None, ...], events: int, done: bool | None
) -> None:
    """The engine's counts, the events with a token, and the last event; a block's index is no token's."""
    answer = gateway.call("/generate_stream", headers={"x-test-say": said, "x-test-tokens": "0"})
    observed = gateway.record(answer.request_id).observed
    assert tuple(observed.get(key) for key in COUNTED) == counts
    assert observed.get(contract.EVENTS_KEY) == events
    assert observed.get(contract.DONE_KEY) is done
    assert observed.get(contract.RESPONSE_ID_KEY) == ("resp_7" if said == RESPONSE else None)


@pytest.mark.envoy
def test_a_response_that_has_only_begun_is_no_first_token(gateway: Gateway) -> None:
    """Engines say at once that they have begun: what is timed is the first event with a token."""
    begun, rest = RESPONSE.split("event: response.output_text", 1)
    for said, timed in ((begun, False), (begun + "event: response.output_text" + rest, True)):
        answer = gateway.call("/generate_stream", headers={"x-test-say": said, "x-test-tokens": "0"})
        observed = gateway.record(answer.request_id).observed
        assert (contract.FIRST_CHUNK_KEY in observed) is timed


@pytest.mark.envoy
@pytest.mark.parametrize("pad", [3_000, 4_000, 5_000, 20_000, 65_000, 200_000])
def test_counts_behind_a_long_text_are_noted(gateway: Gateway, pad: int) -> None:
    """TGI's last event repeats the whole text before its details, and comes in any number of pieces."""
    answer = gateway.call("/generate_stream", headers={"x-test-pad": str(pad)})
    observed = gateway.record(answer.request_id).observed
    assert tuple(observed.get(key) for key in COUNTED) == (4, 9, None, 4, None)
    assert observed[contract.EVENTS_KEY] == 4

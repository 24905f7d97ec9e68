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


@pytest.mark.envoy
@pytest.mark.parametrize("pad", [3_000, 4_000, 5_000, 20_000, 65_000, 200_000])
def test_counts_behind_a_long_text_are_noted(gateway: Gateway, pad: int) -> None:
    """TGI's last event repeats the whole text before its details, and comes in any number of pieces."""
    answer = gateway.call("/generate_stream", headers={"x-test-pad": str(pad)})
    observed = gateway.record(answer.request_id).observed
    assert tuple(observed.get(key) for key in COUNTED) == (4, 9, None, 4, None)
    assert observed[contract.EVENTS_KEY] == 4

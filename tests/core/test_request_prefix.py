"""What of a request's prompt is hashed, block by block."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.core.prefix import BLOCK_BYTES, BLOCK_TOKENS, chain
from extproc.core.prompts import IDS_READ_MAX
from extproc.core.request import (
    Dialect,
    Request,
    RouteKind,
    prefix_of,
)
from tests.core.test_request import CHAT, COMPLETION, GENERATE, good

LONG = "It was a bright cold day in April, and the clocks were striking thirteen. " * 20


def prefix(path: str, body: Any) -> tuple[int, ...]:
    return prefix_of(good(path, body))


def say(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def shared(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Leading hashes that two prompts have in common."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(map(len, (first, second))),
    )


def test_a_conversation_keeps_its_prefix() -> None:
    """Turns are added behind what was said, which keeps its hashes."""
    first = prefix(CHAT, say(("system", LONG), ("user", LONG)))
    later = prefix(CHAT, say(("system", LONG), ("user", LONG), ("assistant", LONG), ("user", "And?")))
    assert len(first) == 2 * len(LONG) // BLOCK_BYTES
    assert later[: len(first)] == first
    assert len(later) > len(first)


def test_roles_count() -> None:
    """The same words said by another are another prompt."""
    assert shared(prefix(CHAT, say(("system", LONG))), prefix(CHAT, say(("user", LONG)))) == 0
    by_user = prefix(CHAT, say(("system", LONG), ("user", LONG)))
    by_assistant = prefix(CHAT, say(("system", LONG), ("assistant", LONG)))
    assert shared(by_user, by_assistant) == len(LONG) // BLOCK_BYTES


def test_boundaries_count() -> None:
    """One message of two texts, two messages and one text are three prompts."""
    parts = [{"type": "text", "text": LONG}, {"type": "text", "text": LONG}]
    prompts = [
        prefix(CHAT, say(("user", parts))),
        prefix(CHAT, say(("user", LONG), ("user", LONG))),
        prefix(CHAT, say(("user", LONG + LONG))),
    ]
    assert len({hashes[-1] for hashes in prompts}) == 3
    assert len({hashes[0] for hashes in prompts}) == 1


def test_images_and_tools_count() -> None:
    """Other images, tool calls or tools before a text make it another prompt, without being read."""

    def show(url: str) -> dict[str, Any]:
        image = {"type": "image_url", "image_url": {"url": url}}
        return say(("user", [{"type": "text", "text": LONG}, image, {"type": "text", "text": LONG}]))

    assert prefix(CHAT, show("a")) == prefix(CHAT, show("a"))
    assert shared(prefix(CHAT, show("a")), prefix(CHAT, show("b"))) == len(LONG) // BLOCK_BYTES

    def call(name: str) -> dict[str, Any]:
        return {
            "messages": [
                {"role": "user", "content": LONG},
                {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": name}}]},
                {"role": "tool", "content": LONG},
            ]
        }

    assert prefix(CHAT, call("f")) == prefix(CHAT, call("f"))
    assert shared(prefix(CHAT, call("f")), prefix(CHAT, call("g"))) == len(LONG) // BLOCK_BYTES
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert prefix(CHAT, say(("user", LONG))) == prefix(CHAT, {**say(("user", LONG)), "tools": None})
    assert (
        shared(prefix(CHAT, say(("user", LONG))), prefix(CHAT, {**say(("user", LONG)), "tools": tools})) == 0
    )


def test_prefixes_of_plain_prompts() -> None:
    """A completion is one text, as TGI's inputs are; going on keeps its prefix; a batch has the first's."""
    alone = prefix(COMPLETION, {"prompt": LONG})
    assert alone == prefix(GENERATE, {"inputs": LONG}) == chain((LONG,))
    assert shared(alone, prefix(COMPLETION, {"prompt": LONG + LONG})) == len(alone)
    assert prefix(COMPLETION, {"prompt": [LONG, "other"]}) == alone
    assert prefix(COMPLETION, {"prompt": ""}) == prefix("/tokenize", {"inputs": "a"}) == ()


def test_prefixes_of_token_ids() -> None:
    """Token ids are hashed by the block, of a batch the first prompt's, and the block's tokens are known."""
    ids = list(range(3 * BLOCK_TOKENS + 1))
    request = good(COMPLETION, {"prompt": ids})
    assert len(prefix_of(request)) == 3
    assert request.prefix_block_tokens == BLOCK_TOKENS
    assert prefix(COMPLETION, {"prompt": [ids, [1]]}) == prefix_of(request)
    assert shared(prefix_of(request), prefix(COMPLETION, {"prompt": ids[: 2 * BLOCK_TOKENS]})) == 2
    many = good(COMPLETION, {"prompt": [7] * (IDS_READ_MAX + 5)})
    assert len(prefix_of(many)) == IDS_READ_MAX // BLOCK_TOKENS
    assert many.prompt_tokens == IDS_READ_MAX + 5


@pytest.mark.parametrize("odd", [-1, 2**32, 10**25])
def test_impossible_token_ids_have_no_prefix(odd: int) -> None:
    """The engine will say what is wrong with them."""
    assert prefix(COMPLETION, {"prompt": [odd] * 200}) == ()


def test_a_prefix_that_came_along() -> None:
    """Ready hashes are taken as they are."""
    assert prefix_of(
        Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, segments=(LONG,), prefix=(1, 2))
    ) == (
        1,
        2,
    )

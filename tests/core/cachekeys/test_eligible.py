"""Which requests would get the same answer again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from extproc.core.cachekeys import Unfit, canonical, unfit
from extproc.core.reading import parse
from extproc.core.request import Request
from extproc.core.routes import find_route

CHAT, COMPLETION, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
ASK = [{"role": "user", "content": "hello"}]


def request_of(path: str, body: dict[str, Any]) -> Request:
    route = find_route("POST", path)
    assert route is not None
    request = parse(route, json.dumps(body).encode())
    assert isinstance(request, Request), request
    return request


def said(path: str, body: dict[str, Any], **rule: bool) -> Unfit | None:
    body = {"messages": ASK, **body} if path == CHAT else {"prompt": "x", "inputs": "x", **body}
    return unfit(request_of(path, body), *canonical(json.dumps(body).encode()), **rule)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"temperature": 0}),
        (CHAT, {"temperature": 0.0, "stream": True}),
        (CHAT, {"temperature": 1.0, "seed": 0}),
        (CHAT, {"top_k": 1}),
        (CHAT, {"temperature": 0, "n": 1, "tools": []}),
        (CHAT, {"temperature": 0, "logprobs": True, "top_logprobs": 3}),
        (COMPLETION, {"temperature": 0, "prompt": "x"}),
        (GENERATE, {}),
        (GENERATE, {"parameters": None}),
        (GENERATE, {"parameters": {"do_sample": False, "temperature": None, "best_of": 1}}),
        (GENERATE, {"parameters": {"do_sample": True, "seed": 4}}),
        (GENERATE, {"inputs": "![](data:image/png;base64,A) what is it"}),
        (CHAT, {"temperature": 0, "enable_search": False, "plugins": [], "kv_transfer_params": None}),
        (CHAT, {"temperature": 0, "messages": [{"content": "wow![1] (see below)"}]}),
        (
            CHAT,
            {
                "temperature": 0,
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "what is it"},
                            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                        ],
                    }
                ],
            },
        ),
    ],
)
def test_what_is_deterministic_by_itself_may_be_cached(path: str, body: dict[str, Any]) -> None:
    """Temperature 0, a seed, the likeliest token alone, TGI without sampling; images that are in the body."""
    assert said(path, body) is None


@pytest.mark.parametrize(
    ("path", "body", "why"),
    [
        (CHAT, {}, Unfit.SAMPLED),
        (CHAT, {"temperature": 0.001}, Unfit.SAMPLED),
        (CHAT, {"temperature": "0"}, Unfit.SAMPLED),
        (CHAT, {"temperature": False}, Unfit.SAMPLED),
        (CHAT, {"temperature": None}, Unfit.SAMPLED),
        (CHAT, {"seed": -1}, Unfit.SAMPLED),
        (CHAT, {"seed": True}, Unfit.SAMPLED),
        (CHAT, {"top_k": 2}, Unfit.SAMPLED),
        (CHAT, {"temperature": 0, "n": 2}, Unfit.SEVERAL),
        (CHAT, {"temperature": 0, "best_of": 2}, Unfit.SEVERAL),
        (COMPLETION, {"temperature": 0, "prompt": ["a", "b"]}, Unfit.SEVERAL),
        (COMPLETION, {"temperature": 0, "prompt": "a", "best_of": 3}, Unfit.SEVERAL),
        (CHAT, {"temperature": 0, "tools": [{"type": "function"}]}, Unfit.TOOLS),
        (CHAT, {"temperature": 0, "functions": [{"name": "f"}]}, Unfit.TOOLS),
        (CHAT, {"temperature": 0, "web_search_options": {"a": 1}}, Unfit.TOOLS),
        (CHAT, {"temperature": 0, "previous_response_id": "r"}, Unfit.STATE),
        (CHAT, {"temperature": 0, "id_slot": 3}, Unfit.STATE),
        (CHAT, {"temperature": 0, "id_slot": 0}, Unfit.STATE),
        (CHAT, {"temperature": 0, "kv_transfer_params": {"do_remote_prefill": True}}, Unfit.STATE),
        (CHAT, {"temperature": 0, "bootstrap_room": 0}, Unfit.STATE),
        (CHAT, {"temperature": 0, "plugins": [{"id": "web"}]}, Unfit.TOOLS),
        (CHAT, {"temperature": 0, "data_sources": [{"type": "search"}]}, Unfit.TOOLS),
        (CHAT, {"temperature": 0, "search_parameters": {"mode": "on"}}, Unfit.TOOLS),
        (CHAT, {"temperature": 0, "enable_search": True}, Unfit.TOOLS),
        (CHAT, {"temperature": 0, "messages": [{"content": "![](http://a/b.png)"}]}, Unfit.OUTSIDE),
        (
            CHAT,
            {
                "temperature": 0,
                "messages": [{"content": [{"type": "text", "text": "![a](https://b)"}]}],
            },
            Unfit.OUTSIDE,
        ),
        (COMPLETION, {"temperature": 0, "prompt": "see ![](http://a/b.png)"}, Unfit.OUTSIDE),
        (GENERATE, {"sampling_params": {"temperature": 1}}, Unfit.SAMPLED),
        (GENERATE, {"temperature": 0.7}, Unfit.SAMPLED),
        (GENERATE, {"do_sample": True, "parameters": {}}, Unfit.SAMPLED),
        (GENERATE, {"parameters": {"do_sample": True}}, Unfit.SAMPLED),
        (GENERATE, {"parameters": {"temperature": 0.7}}, Unfit.SAMPLED),
        (GENERATE, {"parameters": {"top_p": 0.9}}, Unfit.SAMPLED),
        (GENERATE, {"parameters": {"best_of": 2, "seed": 1}}, Unfit.SEVERAL),
        (GENERATE, {"inputs": "![](http://a/b.png) what is it"}, Unfit.OUTSIDE),
        (GENERATE, {"inputs": "![](data:image/png;base64,A) ![](http://a/b.png)"}, Unfit.OUTSIDE),
    ],
)
def test_what_is_not_is_not(path: str, body: dict[str, Any], why: Unfit) -> None:
    """Sampling, several answers, tools, an engine's own memory, and images elsewhere; each says why."""
    assert said(path, body) is why


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://a/b.png"}},
        {"type": "image_url", "image_url": "https://a/b.png"},
        {"type": "image_url", "image_url": {}},
        {"type": "image_url"},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA"}},
        {"type": "file", "file": {"file_id": "f1"}},
        {"type": "text", "text": "x", "image_url": {"url": "https://a"}},
        {"type": "whatever"},
        {"text": "x"},
        7,
    ],
)
def test_a_part_that_is_elsewhere_or_not_known_is_never_cached(part: Any) -> None:
    """An image by URL, a file by its name, and any part that we do not know may be another thing tomorrow."""
    body = {"temperature": 0, "messages": [{"role": "user", "content": [part]}]}
    request = request_of(CHAT, {"messages": ASK})
    assert unfit(request, *canonical(json.dumps(body).encode())) is Unfit.OUTSIDE


def test_a_tenant_may_have_more_cached() -> None:
    """Sampled answers and tools where its settings say so; several answers never."""
    assert said(CHAT, {}, sampled=True) is None
    assert said(CHAT, {"temperature": 0, "tools": [{"type": "function"}]}, tools=True) is None
    assert said(CHAT, {"temperature": 0, "n": 2}, sampled=True, tools=True) is Unfit.SEVERAL

"""Whether the same request would get the same answer again, by what the request itself says.

Owns the rules of each dialect. When in doubt a request is not cached.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from extproc.core.request import Request, RouteKind

#: The routes whose fields stand in `parameters`, as TGI's do.
TGI_KINDS: Final = frozenset({RouteKind.GENERATE, RouteKind.GENERATE_STREAM, RouteKind.COMPAT})
#: One of these names is in every body that says that it is deterministic on the OpenAI routes; a body in
#: which none is spelled so is not read again.
MARKS: Final = (b'"temperature"', b'"seed"', b'"top_k"')
#: What makes TGI sample, where it is set (its router's `do_sample` follows from them).
SAMPLES: Final = ("temperature", "top_k", "top_p", "typical_p")
#: The same beside `parameters`, where TGI reads none of it and another engine may.
SAMPLES_BESIDE: Final = frozenset({*SAMPLES, "do_sample", "sampling_params"})
#: What lets an engine, a model or a gateway before it act, or asks the world outside.
TOOLS: Final = frozenset(
    {
        *("tools", "functions", "mcp_servers", "plugins", "data_sources"),
        *("web_search_options", "web_search", "search_parameters", "enable_search"),
    }
)
#: Fields of an engine's own memory, or of another's: the answer follows from more than the request.
STATEFUL: Final = frozenset(
    {
        *("id_slot", "previous_response_id", "conversation", "session_params"),
        # Prefill and decoding apart: where vLLM and SGLang find what another replica has read.
        *("kv_transfer_params", "bootstrap_host", "bootstrap_port", "bootstrap_room"),
    }
)
#: Parts of a message that are what they say, in themselves.
PLAIN_PARTS: Final = frozenset({"text", "input_text", "refusal"})
#: Where the URL of an image begins that TGI finds in the prompt that its template makes, of whatever text:
#: ![](URL). A `data:` URL is the image itself. What is between is not looked at, which would take n² steps.
_URL: Final = re.compile(rb"\]\((?!data:)")


class Unfit(Enum):
    """Why a request is not looked up."""

    SAMPLED = "sampled"
    TOOLS = "tools"
    SEVERAL = "several"
    OUTSIDE = "outside"  # an image or another part by its URL
    STATE = "state"


def unfit(
    request: Request, body: Mapping[str, Any], text: bytes, *, sampled: bool = False, tools: bool = False
) -> Unfit | None:
    """Why a request may not be answered from a cache, None where it may.

    `body` is the decoded body, `text` its canonical spelling. `sampled` and `tools`: its tenant takes those
    as well.
    """
    parameters = body.get("parameters") if request.kind in TGI_KINDS else body
    if not isinstance(parameters, Mapping):
        parameters = {}
    if request.sequences > 1 or _many(parameters.get("n")) or _many(parameters.get("best_of")):
        return Unfit.SEVERAL
    if _says(body, STATEFUL):
        return Unfit.STATE
    if not tools and _says(body, TOOLS):
        return Unfit.TOOLS
    if _outside(body, text):
        return Unfit.OUTSIDE
    beside = request.kind in TGI_KINDS and _samples_beside(body)
    if not sampled and (beside or not _greedy(request.kind, parameters)):
        return Unfit.SAMPLED
    return None


def _greedy(kind: RouteKind, given: Mapping[str, Any]) -> bool:
    """Whether the engine always takes the likeliest token, or draws by a seed that is given."""
    seed = given.get("seed")
    if isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0:
        # A negative one is "any" to llama.cpp.
        return True
    if kind in TGI_KINDS:
        return not given.get("do_sample") and all(given.get(name) is None for name in SAMPLES)
    return _is(given.get("temperature"), 0) or _is(given.get("top_k"), 1)


def _samples_beside(body: Mapping[str, Any]) -> bool:
    """Whether a body of TGI's dialect asks for sampling where its parameters do not stand."""
    greedy = _is(body.get("temperature"), 0) or _is(body.get("top_k"), 1)
    return not greedy and _says(body, SAMPLES_BESIDE)


def _is(value: Any, number: int) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == number


def _says(body: Mapping[str, Any], names: frozenset[str]) -> bool:
    """Whether it sets one of these fields; an empty one is as good as none, 0 is a slot."""
    return not names.isdisjoint(body) and not all(_nothing(body.get(name)) for name in names)


def _nothing(value: Any) -> bool:
    """Whether a field says as much as if it were not there. 0 equals False, and is a number."""
    return value is None or value is False or value in ("", [], {})


def _many(value: Any) -> bool:
    return value is not None and not _is(value, 1)


def _outside(body: Mapping[str, Any], text: bytes) -> bool:
    """Whether something that it speaks of is elsewhere, and may be another thing tomorrow."""
    image = text.find(b"![")
    if image >= 0 and _URL.search(text, image) is not None:
        return True
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list) else ():
            if not _inside(part):
                return True
    return False


def _inside(part: Any) -> bool:
    """Whether a part of a message is here as a whole: text, or something by a data: URL."""
    if isinstance(part, str):
        return True
    if not isinstance(part, Mapping):
        return False
    kind = part.get("type")
    if kind in PLAIN_PARTS:
        return all(isinstance(value, str | None) for value in part.values())
    if kind != "image_url":
        return False
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, Mapping) else image
    return isinstance(url, str) and url[:5].lower() == "data:"

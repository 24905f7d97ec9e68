"""Counts by an engine: its /tokenize, in each engine's own words.

Owns what is asked and how an answer is read; who asks whom, and how often, is the service's. Pure.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from extproc.engines import EngineRow

#: Where every engine that we know has it.
TOKENIZE_PATH: Final = "/tokenize"
#: A larger answer is not read: a block of 1,024 characters has at most a few thousand tokens.
ANSWER_BYTES_MAX: Final = 1024 * 1024
#: A byte is a token at most, but normalising (NFKC) makes up to 11 bytes of one.
TOKENS_PER_BYTE_MAX: Final = 12
#: What a model wants around a text, where an engine has no word against it.
ADDED_MAX: Final = 16
#: Without what a model wants around a text, where an engine has a word for that; else it is a cut's cost.
_PLAIN: Final[dict[str, dict[str, Any]]] = {
    "inputs": {},
    "prompt": {"add_special_tokens": False},
    "content": {"add_special": False},
}


def question(text: str, engine: EngineRow, model: str) -> bytes:
    """The body that asks an engine for a text's tokens."""
    name = engine.tokenize_field
    asked = {name: text.encode("utf-8", "replace").decode(), **_PLAIN[name]}
    return msgspec.json.encode({**asked, "model": model} if engine.strict_models else asked)


def answered(status: int, body: bytes) -> int:
    """How many tokens an engine says: a list of them (TGI), `tokens` or `count`. Raises ValueError."""
    if status != 200:
        raise ValueError(f"answers {status}: {body[:80]!r}")
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise ValueError(f"answers no JSON ({error})") from error
    if isinstance(found, dict):
        if isinstance(count := found.get("count"), int) and not isinstance(count, bool):
            return count
        found = found.get("tokens")
    if not isinstance(found, list):
        raise ValueError("answers without tokens")
    return len(found)


def believed(count: int, text: str) -> int:
    """A count that a text may have. Raises ValueError where no tokenizer makes so many of it, or none:
    nobody's quota is reserved by such a number."""
    size = len(text.encode("utf-8", "replace"))
    least = int(any(each.isalnum() for each in text))
    if not least <= count <= TOKENS_PER_BYTE_MAX * size + ADDED_MAX:
        raise ValueError(f"answers {min(count, 10**18)} tokens for a text of {size} bytes")
    return count

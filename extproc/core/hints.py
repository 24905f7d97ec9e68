"""Numbers and truths as clients send them: `100`, `100.0`, `"100"`, `true`, `"yes"`, `1`.

Owns the reading of single JSON values as generously as the most generous engine reads them (vLLM and SGLang
by pydantic's lax mode, llama.cpp by its JSON library). Pure.
"""

from __future__ import annotations

import math

import msgspec

#: Characters of a number that are looked at; a longer one is as large as its first ones say.
_NUMBER_CHARACTERS_MAX = 64
#: Bytes of a value that are decoded; of a longer one it is asked alone whether it is all digits, in one pass.
_VALUE_BYTES_MAX = 4_096
#: What is larger counts as this much: nothing here counts as far, and floats must hold it.
WHOLE_MAX = 2**62
_TRUE = frozenset({b"true", b"1", b"1.0", b'"true"', b'"1"', b'"t"', b'"y"', b'"yes"', b'"on"'})


def whole(raw: bytes | msgspec.Raw) -> int | None:
    """A value as a whole number, a fraction rounded up; None where it is none."""
    if not raw:
        return None
    data = bytes(raw)
    if data.isdigit() and len(data) < 19:
        return int(data)
    if len(data) > _VALUE_BYTES_MAX:
        return _endless(data)
    word = data.decode("utf-8", "replace")
    if word[:1] == '"':
        # Digits may be written as escapes too.
        word = str(_any(data)) if "\\" in word else word[1:-1]
        word = word.strip()
    if len(word) > _NUMBER_CHARACTERS_MAX:
        return _long(word)
    try:
        number = float(word)
    except ValueError:
        return None
    if math.isnan(number):
        return None
    if abs(number) >= WHOLE_MAX:
        return int(math.copysign(WHOLE_MAX, number))
    return int(word) if _digits(word) else math.ceil(number)


def flag(raw: bytes | msgspec.Raw) -> bool:
    """Whether a value is a yes."""
    if not raw:
        return False
    word = bytes(raw)
    return word == b"true" or (len(word) <= 8 and word.lower() in _TRUE)


def _any(data: bytes) -> object:
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _digits(word: str) -> bool:
    return word.lstrip("+-").isdecimal()


def _endless(data: bytes) -> int | None:
    """The same of more bytes than are decoded: escapes and blanks are no digits then."""
    inner = data[1:-1] if data[:1] == b'"' else data
    sign = inner[:1]
    if not (inner[1:] if sign in (b"+", b"-") else inner).isdigit():
        return None
    return -WHOLE_MAX if sign == b"-" else WHOLE_MAX


def _long(word: str) -> int | None:
    """An integer of more digits than anybody can mean; of what else is so long nothing is said."""
    if not _digits(word):
        return None
    return -WHOLE_MAX if word[:1] == "-" else WHOLE_MAX

"""What a person may have meant: the known name that is nearest to what was written. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

#: How alike two names are at the least (difflib's ratio) for one to be offered for the other.
LIKENESS_MIN = 0.72
#: Longer words are not compared: the work grows with the square of their length.
WORD_CHARS_MAX = 64


def nearest(word: object, known: Iterable[str]) -> str | None:
    """The known name nearest to a word, whatever its capitals and dashes; None when none is near."""
    if not isinstance(word, str) or not 0 < len(word) <= WORD_CHARS_MAX:
        return None
    plain = {_plain(each): each for each in reversed(list(known))}
    found = get_close_matches(_plain(word), plain, n=1, cutoff=LIKENESS_MIN)
    return plain[found[0]] if found else None


def meant(word: object, known: Iterable[str]) -> str:
    """`; did you mean 'vllm'?`, to stand at a message's end; empty when no known name is near."""
    found = nearest(word, known)
    return f"; did you mean {found!r}?" if found is not None else ""


def one_of(word: object, known: Sequence[str]) -> str:
    """`'vlm' is not one of 'tgi' or 'vllm'; did you mean 'vllm'?`."""
    *most, last = [f"{each!r}" for each in known]
    listed = f"{', '.join(most)} or {last}" if most else last
    return f"{word!r} is not one of {listed}{meant(word, known)}"


def _plain(word: str) -> str:
    return word.lower().replace("-", "_").replace(" ", "_")

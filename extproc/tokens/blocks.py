"""Cuts long texts into blocks that are counted by themselves.

Owns where a cut does little harm. Tokenizers split texts into words before anything is merged; between two
words of one line a cut is one of theirs (byte-level BPE, WordPiece), or costs the same each time (a blank
that SentencePiece writes before every text), which `tokenizer.bias_of` measures. Where there are no such
places a cut goes through a word, and may change the count by a token or two: reckoned at CUT_TOKENS_MAX for
each block of BLOCK_CHARACTERS. Pure.
"""

from __future__ import annotations

import re
from typing import Final

#: Characters of a block, and of its end in which a cut is looked for.
BLOCK_CHARACTERS: Final = 1_024
CUT_WINDOW: Final = 256
#: What a cut through a word is reckoned to change at most.
CUT_TOKENS_MAX: Final = 2

#: The best places first: before the blank between two words, behind a line's end, at any blank.
_PLACES: Final = (
    re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])"),
    re.compile(r"(?<=\n)(?=[^\s])"),
    re.compile(r"(?<=[^\s])(?=\s[^\s])"),
)


def blocks(text: str) -> list[str]:
    """The text in pieces of at most BLOCK_CHARACTERS, which begin alike where texts begin alike."""
    if len(text) <= BLOCK_CHARACTERS:
        return [text] if text else []
    found = []
    begin, end = 0, len(text)
    while end - begin > BLOCK_CHARACTERS:
        cut = _cut(text, begin + BLOCK_CHARACTERS - CUT_WINDOW, begin + BLOCK_CHARACTERS)
        found.append(text[begin:cut])
        begin = cut
    found.append(text[begin:])
    return found


def _cut(text: str, first: int, last: int) -> int:
    for place in _PLACES:
        # The blank behind the cut is looked at as well.
        match = place.search(text, first, last + 2)
        if match is not None and match.start() <= last:
            return match.start()
    return last

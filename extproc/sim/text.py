"""The simulated model: how long a prompt is, what it answers, and where its cache blocks lie.

Pure and deterministic: a prompt, a replica's seed and a request's seed give one answer. Tokens are
counted as `ceil(utf-8 bytes / bytes_per_token)`; every generated token is a blank and a three-letter
word, so that with the default of 4 bytes the count of a generated text is its tokens.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from random import Random
from typing import Final

# Three letters each: see the module's docstring. Words of the sea, for readable demos.
_VOCABULARY: Final = (
    "ark arm bay bow buy cap cay cod cut day dew dry ebb eel end eye far fen few fin fit fix fog fro gap gas "
    "gem gig got hew hot hub hue hum ice ink ivy jib joy keg key kit lag law lay lee log lug map men mew mud "
    "net new now oak oar oil old orb ore our out own pin ply pod pot pro raw ray red rib rig rim rod row rum "
    "run sag sea set shy six sky spa sun tag tan tar ten tie tip toe tow try tub tug use van vat vow wax way "
    "wet win wit yaw yes zag zen zig"
)
WORDS: Final = tuple(_VOCABULARY.split())
MARKER: Final = re.compile(r"\[\[sim:out=(\d{1,7})\]\]")
"""A prompt holding `[[sim:out=N]]` is answered with exactly N tokens (its limits permitting)."""


def count_tokens(text: str, *, bytes_per_token: int) -> int:
    """Tokens in a text; 0 for an empty one."""
    return -(-len(text.encode()) // bytes_per_token)


def prompt_blocks(text: str, *, block_tokens: int, bytes_per_token: int, tokens: int) -> tuple[bytes, ...]:
    """The full blocks among the prompt's last `tokens` tokens: the bytes themselves, so nothing collides.

    A truncated prompt keeps its end, as TGI's does.
    """
    data = text.encode()
    kept = tokens * bytes_per_token
    if kept < len(data):
        data = data[-kept:]
    size = block_tokens * bytes_per_token
    return tuple(data[at : at + size] for at in range(0, len(data) - size + 1, size))


def forced_output_tokens(text: str) -> int | None:
    """The N of the last `[[sim:out=N]]` in a text, at least 1; None without one."""
    found = MARKER.findall(text) if "[[sim:" in text else None
    return max(1, int(found[-1])) if found else None


def rng_for(text: str, *, replica_seed: int, request_seed: int | None) -> Random:
    """The chance of one answer: the same on every replica of one seed, whoever serves it."""
    digest = blake2b(f"{replica_seed}\0{request_seed}\0{text}".encode(), digest_size=8).digest()
    return Random(int.from_bytes(digest, "big"))


def draw_output_tokens(rng: Random, *, median: int, sigma: float) -> int:
    """A log-normal output length, at least 1."""
    return max(1, round(median * rng.lognormvariate(0.0, sigma)))


class Story:
    """An endless text, token by token, from a starting point: `word(i)` for the i-th token (from 0)."""

    __slots__ = ("_start", "_stride")

    def __init__(self, rng: Random) -> None:
        self._start = rng.randrange(len(WORDS))
        self._stride = rng.choice((5, 11, 13, 17, 19, 23, 29, 31))

    def word_id(self, index: int) -> int:
        """Which of `WORDS` the token is; also its token id, less the special ones."""
        return (self._start + index * self._stride) % len(WORDS)

    def text(self, tokens: int) -> str:
        """The first `tokens` tokens."""
        return "".join(" " + WORDS[self.word_id(index)] for index in range(tokens))

    def tokens_until(self, stop: tuple[str, ...], *, tokens: int) -> int | None:
        """How many tokens it takes until a stop sequence is complete; None if not within `tokens`."""
        text = self.text(tokens)
        ends = [at + len(word) for word in stop if word and (at := text.find(word)) >= 0]
        return -(-min(ends) // 4) if ends else None

"""The pairs of questions that the guards and the whole are judged by, and which were never looked at."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
#: Written against the guards once they stood: no part of what is held out.
SEEN = "loose"


class Pair(NamedTuple):
    """Two questions; `held` where the guards were not fitted on them."""

    kind: str
    one: str
    other: str
    held: bool


def pairs(name: str) -> Iterator[Pair]:
    """The pairs of the files of a name, `adversarial` or `paraphrases`, the second sets among them; or of
    one second set, as `adversarial_second`. Their hash says which half is held out."""
    for file in sorted(HERE.glob(f"{name}*.tsv")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                kind, one, other = line.split("\t")
                odd = bool(sha256(f"{one}\t{other}".encode()).digest()[0] & 1)
                yield Pair(kind, one, other, odd and kind != SEEN)

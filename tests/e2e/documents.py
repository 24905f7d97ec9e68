"""Reads a page as its reader does: sentences without code, tables and headings; fenced blocks; headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: What a newcomer is sent to: the front page, every page of docs/, and the folders' own front pages.
PAGES = sorted(
    {
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        ROOT / "agents" / "README.md",
        ROOT / "envoy" / "README.md",
    }
)
_FENCE = re.compile(r"^ *(`{3,})([a-z]*)[^\n]*\n(.*?)^ *\1 *$", re.DOTALL | re.MULTILINE)
_ITEM = re.compile(r"^\s*(?:[-*]|\d+\.)\s+")
_CONTENTS = re.compile(r"- \[[^\]]*\]\(#[^)]*\)$")
_END = re.compile(r"(?<=[.!?])[)*_\"”]*\s+(?=[A-Z`*\[(“\"0-9])")
#: A full stop in these ends no sentence.
_SHORT = re.compile(r"\b(e\.g|i\.e|etc|vs|cf)\.", re.IGNORECASE)


def name_of(page: Path) -> str:
    """How a page is called in a test's id."""
    return str(page.relative_to(ROOT))


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language ("" where it names none), the line (from 1) it begins at, the text."""

    language: str
    line: int
    text: str


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [
        Block(found[2], text.count("\n", 0, found.start()) + 1, found[3]) for found in _FENCE.finditer(text)
    ]


def headings(text: str) -> list[tuple[int, str]]:
    """(level, title) of each heading outside fenced blocks."""
    bare = _FENCE.sub("", text)
    return [(len(mark), title.strip()) for mark, title in re.findall(r"^(#+) (.+)$", bare, re.MULTILINE)]


def anchor(title: str) -> str:
    """The fragment that GitHub gives a heading."""
    kept = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower())
    return kept.replace(" ", "-")


def with_contents(page: str) -> str:
    """A page with links to its sections after its introduction."""
    head, _, rest = page.partition("\n## ")
    links = [f"- [{title}](#{anchor(title)})" for level, title in headings(page) if level == 2]
    return "\n".join([head.rstrip(), "", *links, "", f"## {rest}"])


def sentences(text: str) -> list[str]:
    """Sentences of the running text and of list items."""
    return [sentence for paragraph in _paragraphs(text) for sentence in _split(paragraph)]


def words(sentence: str) -> int:
    """Inline code is a word, whatever is in it; a link is its text."""
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", sentence)
    plain = re.sub(r"`[^`]+`", "code", plain)
    return len(re.findall(r"[^\W_]+(?:['’.,/-][^\W_]+)*", plain))


def _split(paragraph: str) -> Iterator[str]:
    for sentence in _END.split(_SHORT.sub(lambda found: found[0].replace(".", ""), paragraph)):
        if words(sentence):
            yield sentence.strip()


def _paragraphs(text: str) -> Iterator[str]:
    lines: list[str] = []
    for line in [*_FENCE.sub("\n", text).splitlines(), ""]:
        # A page's list of its sections is no prose.
        outside = (
            not line.strip()
            or _CONTENTS.match(line) is not None
            or line.lstrip().startswith(("|", "#", "<", "!["))
        )
        if lines and (outside or _ITEM.match(line)):
            yield " ".join(lines)
            lines = []
        if not outside:
            lines.append(_ITEM.sub("", line).strip())

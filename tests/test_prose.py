"""Pages that a stranger can read: short sentences, the field's words, a way to every section and page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from documents import PAGES, ROOT, anchor, headings, name_of, sentences, words

#: Words a sentence, on average over a page; and in the longest.
AVERAGE_MAX, LONGEST_MAX = 18.0, 45
#: A page with more lines begins with links to its sections.
LINES_WITHOUT_CONTENTS = 100
#: What only who wrote this would understand, or what points to files that readers do not have.
IDIOM = (
    r"\bsquared\b",
    r"settles? the books",
    r"\bthe books\b",
    r"\bbinds? late\b",
    r"\bbound late\b",
    r"of nobody here",
    r"\bfacts/",
    r"\bshared/(traces|facts|DESIGN|STYLE)",
    r"\bsee facts\b",
    r"\bcries wolf\b",
    r"\bheld against whom\b",
)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_sentences_are_short(page: Path) -> None:
    """A reader who is new here, or not at home in English, gets to their end."""
    found = {sentence: words(sentence) for sentence in sentences(page.read_text(encoding="utf-8"))}
    if found:
        longest = max(found, key=lambda sentence: found[sentence])
        assert sum(found.values()) / len(found) < AVERAGE_MAX
        assert found[longest] <= LONGEST_MAX, longest


def test_a_long_sentence_is_seen() -> None:
    """Paragraphs and lists count, and code as one word; tables and links' targets do not."""
    text = "# A title\n\nOne two `three four` [five six](seven.md). And\nnine.\n\n- Ten.\n\n| not | this |\n"
    assert [words(each) for each in sentences(text)] == [5, 2, 1]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_speaks_a_private_language(page: Path) -> None:
    """The field's terms, or words that the page explains."""
    text = page.read_text(encoding="utf-8")
    assert [idiom for idiom in IDIOM if re.search(idiom, text)] == []


def test_nothing_in_the_code_points_to_files_that_readers_do_not_have() -> None:
    """Comments cite what is published, or say it."""
    sources = [*(ROOT / "extproc").rglob("*.py"), *(ROOT / "agents").rglob("*.py")]
    assert len(sources) > 200
    assert [name_of(each) for each in sources if re.search(r"\bfacts/\w+\.md", each.read_text("utf-8"))] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_long_page_begins_with_its_contents(page: Path) -> None:
    """Links to every section, before the first of them."""
    text = page.read_text(encoding="utf-8")
    if page == ROOT / "README.md" or text.count("\n") <= LINES_WITHOUT_CONTENTS:
        return
    head = text.partition("\n## ")[0]
    missing = [title for level, title in headings(text) if level == 2 and f"](#{anchor(title)})" not in head]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_to_a_section_leads_there(page: Path) -> None:
    """On its own page and on others; GitHub shows the page's top for one that does not, and says nothing."""
    text = page.read_text(encoding="utf-8")
    for target, fragment in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)#([^)\s]+)\)", text):
        other = (page.parent / target).resolve() if target else page
        anchors = {anchor(title) for _, title in headings(other.read_text(encoding="utf-8"))}
        assert fragment in anchors, f"{target}#{fragment}"


def test_every_page_can_be_found() -> None:
    """README or docs/README.md links to each page of docs/."""
    linked = {
        (front.parent / link).resolve()
        for front in (ROOT / "README.md", ROOT / "docs" / "README.md")
        for link in re.findall(r"\]\(([^)#\s:]+\.md)", front.read_text(encoding="utf-8"))
    }
    assert [name_of(page) for page in PAGES if page not in linked and page.name != "README.md"] == []
    assert ROOT / "docs" / "README.md" in linked

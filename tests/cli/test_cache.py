"""`steersman cache`: what it prints."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from extproc.cli.cache import command, explained, show

FOUND = {
    "on": True,
    "answers": 3,
    "bytes": 2_097_152,
    "bytes_max": 268_435_456,
    "evicted": 1,
    "awaited": 2,
    "scopes": {"tenant:acme": {"answers": 3, "bytes": 2_097_152}},
    "requests": {"acme": {"hit": 5, "miss": 3, "sampled": 9}, "globex": {"miss": 1}},
    "saved": {"acme": {"hits": 5, "input_tokens": 50, "output_tokens": 60, "gpu_ms": 1_500.0}},
    "fills": {"kept": 3, "cut": 1},
    "away": False,
    "refused": {},
    "split": {},
    "semantic": {},
}


def test_figures_are_told_by_tenant(capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes, outcomes, and what hits saved; nothing is said to be saved where nothing was."""
    show(FOUND)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 answers, 2.0 of 256 MiB; 1 went for room, 2 are awaited"
    assert "acme: 5 hit, 3 miss, 9 sampled" in lines
    assert "  saved 50 input and 60 output tokens, 1.5 s of replicas" in lines
    assert lines[-2:] == ["globex: 1 miss", "answers that came: 1 cut, 3 kept"]


def test_without_a_cache_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing else."""
    show({"on": False})
    assert capsys.readouterr().out.startswith("there is no cache")


def test_questions_in_other_words_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Where they are, what came of them, how many would have been wrong; an explanation says it too."""
    scope = {"questions": 4, "checked_hits": 20, "wrong": 1, "wrong_at_most": 0.2, "off": True}
    words = {
        "up": False,
        "kept": "redis",
        "away": True,
        "store_refused": {"key": 2},
        "questions": 4,
        "bytes": 1_048_576,
        "requests": {"acme": {"hit": 1, "unsure": 2}},
        "refused": {"numbers": 3},
        "checks": {"same": 5},
        "scopes": {"tenant:acme": scope},
    }
    show({**FOUND, "semantic": words})
    lines = capsys.readouterr().out.splitlines()
    first = "in other words: 4 questions kept in Redis, 1.0 MiB; its process is not there; the store is away"
    assert lines[-7].startswith(first)
    assert lines[-6:-1] == [
        "  acme: 1 hit, 2 unsure",
        "  tenant:acme: 1 of 20 checked answers were wrong, at most 20.0 % of all (95 %); OFF",
        "  guards refused: 3 numbers",
        "  compared answers: 5 same",
        "  refused of the store: 2 key",
    ]
    about = {"tenant": "acme", "model": "m", "pool": "p", "cached": True, "why": "", "key": "ab"}
    said = {**about, "scope": "tenant:acme", "kept": None}
    assert "compared, with 4 kept" in explained({**said, "words": {"why": "", "questions": 4}})[2]
    assert explained({**said, "words": {"why": "not compared", "questions": 0}})[2].endswith(": not compared")


def test_an_explanation_says_why_not_or_what_is_kept() -> None:
    """One line, or with the key and the answer's age."""
    about = {"tenant": "acme", "model": "m", "pool": "p"}
    assert explained({**about, "cached": False, "why": "it has tools"}) == [
        "acme, model m, pool p: not cached: it has tools"
    ]
    kept = {"bytes": 9, "packed_bytes": 5, "age_s": 3.2, "left_s": 60.0, "hits": 2, "made_for": "acme"}
    lines = explained({**about, "cached": True, "why": "", "key": "ab", "scope": "tenant:acme", "kept": kept})
    assert lines[1] == "  key ab, of tenant:acme"
    assert "3 s old, made for acme, given 2 times; it goes in 60 s" in lines[2]


def test_a_purge_of_nothing_is_wrong_usage() -> None:
    """Nothing is asked of any service then."""
    found = CliRunner().invoke(command, ["purge"])
    assert found.exit_code == 2
    assert "--all" in found.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tenant", "", "--model", "m"], "--tenant is empty"),
        (["--tenant", "acme", "--key", ""], "--key is empty"),
        (["--older", "nan", "--tenant", "acme"], "number of seconds"),
        (["--older", "inf", "--all"], "number of seconds"),
    ],
)
def test_a_purge_with_an_unset_variable_is_wrong_usage(arguments: list[str], said: str) -> None:
    """It would purge more than was meant."""
    found = CliRunner().invoke(command, ["purge", *arguments])
    assert found.exit_code == 2
    assert said in found.output


@pytest.mark.parametrize(
    ("given", "said"),
    [(b"", "stdin is empty"), (b" \n", "stdin is empty"), (b"\xff\xfe{", "is not UTF-8 text")],
)
def test_what_is_no_text_is_not_explained(given: bytes, said: str) -> None:
    """An empty file or one in another encoding is wrong usage, and says which."""
    found = CliRunner().invoke(command, ["explain", "-"], input=given)
    assert found.exit_code == 2
    assert said in found.output

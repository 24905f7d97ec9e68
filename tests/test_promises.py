"""Each promise of README.md and docs/security.md names a test that is there."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from documents import ROOT

#: Where promises stand: the page, and the section whose bullets or rows are promises.
PLACES = (
    ("README.md", "What it promises"),
    ("docs/security.md", "What holds, and how far"),
    ("docs/health.md", "Promises"),
    ("docs/scaling.md", "What it promises"),
    ("docs/routes.md", "Promises"),
    ("docs/semantic-cache.md", "Promises"),
    ("docs/spill-over.md", "Promises"),
    ("docs/adapters.md", "Promises"),
)
_NODE = re.compile(r"`(tests/[\w/]+\.py)((?:::\w+)*)(?:\[([^\]`]+)\])?`")


def promises(page: str, section: str) -> list[str]:
    """The bullets (each to the next one) and the table's rows of a section."""
    text = (ROOT / page).read_text(encoding="utf-8")
    body = re.split(r"^## ", text.split(f"\n## {section}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    bullets = re.findall(r"^- (.*?)(?=^- |\n\n|\Z)", body, flags=re.MULTILINE | re.DOTALL)
    rows = [line for line in body.splitlines() if line.startswith("| ") and not set(line) <= set("|- ")]
    return bullets + rows[1:]


@cache
def functions(path: str) -> frozenset[str]:
    """The functions of a module, those of its classes as Class::name."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}
    for owner in (each for each in tree.body if isinstance(each, ast.ClassDef)):
        found |= {f"{owner.name}::{each.name}" for each in owner.body if isinstance(each, ast.FunctionDef)}
    return frozenset(found)


def unfounded(promise: str) -> list[str]:
    """What of a promise's tests is not there."""
    missing = []
    nodes = _NODE.findall(promise)
    for path, name, case in nodes:
        if not (ROOT / path).is_file():
            missing.append(path)
        elif name and (name[2:] not in functions(path) or not name.rpartition("::")[2].startswith("test_")):
            missing.append(path + name)
        elif case and not any(
            case.replace("-", "_") in functions(f"tests/attack/{each.name}")
            for each in (ROOT / "tests/attack").glob("*.py")
        ):
            missing.append(f"{path}{name}[{case}]")
    if not any(name for _, name, _ in nodes):
        missing.append("a test's name")
    return missing


@pytest.mark.parametrize(("page", "section"), PLACES)
def test_every_promise_names_its_test(page: str, section: str) -> None:
    """A promise without a test is a hope; and a test that was renamed takes its promise along."""
    found = promises(page, section)
    assert len(found) >= 8
    assert {promise[:60]: what for promise in found if (what := unfounded(promise))} == {}


def test_a_promise_without_its_test_is_seen() -> None:
    """No name, a file, a function or a case that is not there."""
    assert unfounded("It holds.") == ["a test's name"]
    assert unfounded("It holds (`tests/none.py::test_it`).") == ["tests/none.py"]
    assert unfounded("It holds (`tests/test_promises.py`).") == ["a test's name"]
    assert unfounded("It holds (`tests/test_promises.py::test_it`).") == ["tests/test_promises.py::test_it"]
    here = "tests/test_promises.py::test_every_promise_names_its_test"
    assert unfounded(f"It holds (`{here}`).") == []
    assert unfounded(f"It holds (`{here}[no-such-attack]`).") == [f"{here}[no-such-attack]"]
    assert unfounded(f"It holds (`{here}[parse-bombs]`).") == []

"""The house: one name for one meaning, and nothing cited that is not there."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

#: A file with more lines wants to be two.
LINES_MAX, LINES_MEDIAN_MAX = 450, 130
ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path for top in ("extproc", "agents") for path in (ROOT / top).rglob("*.py") if "_pb" not in path.parts
)
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Everything that a text may name, by its path from the root.
FILES = {
    str(path.relative_to(ROOT))
    for top in ("extproc", "agents", "tests", "deploy", "examples", "envoy", "docs", "protos")
    for path in (ROOT / top).rglob("*")
} | {path.name for path in ROOT.iterdir()}
#: What the campaign writes.
WRITTEN = {"report.md"}


def test_no_class_name_stands_twice() -> None:
    """A class's name has one meaning in the whole project."""
    seen = defaultdict(list)
    for path in SOURCES:
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef):
                seen[node.name].append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in seen.items() if len(paths) > 1} == {}


def test_laws_are_cited_by_their_names() -> None:
    """Each law that code cites stands in CONTRIBUTING's list, by the name that it has there."""
    listed = {
        re.sub(r"\W+$", "", name).lower()
        for name in re.findall(
            r"^- \*\*(.+?)\*\*", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE
        )
    }
    cited, numbered = defaultdict(list), []
    for path in SOURCES + TESTS:
        text = path.read_text("utf-8")
        for name in re.findall(r"[(# ]law: ([^).;:\n]+)", text):
            cited[name.strip().lower()].append(str(path.relative_to(ROOT)))
        numbered += [str(path.relative_to(ROOT)) for _ in re.findall(r"\blaws? \d", text)]
    assert {name: paths for name, paths in cited.items() if name not in listed} == {}
    assert numbered == []
    assert len(cited) > 5


def test_cited_files_exist() -> None:
    """A Python file or a page that a text of ours names is there, under the end of the path that it gives."""
    ends = {"/".join(path.split("/")[i:]) for path in FILES for i in range(path.count("/") + 1)}
    cited = r"(?<![\w/.*{<-])((?:[\w.-]+/)*\w+\.(?:py|md))\b(?![\w/(*])"
    missing = [
        (str(path.relative_to(ROOT)), name)
        for path in [*SOURCES, *PAGES]
        for name in re.findall(cited, path.read_text("utf-8"))
        if re.sub(r"^\.\.?/", "", name) not in ends and name.rpartition("/")[2] not in WRITTEN
    ]
    assert missing == []


def test_no_module_is_in_a_circle() -> None:
    """Not even by imports that types alone need."""
    graph = grimp.build_graph("extproc", exclude_type_checking_imports=False)
    imports = {
        module: {each for each in graph.find_modules_directly_imported_by(module) if "._pb" not in each}
        for module in graph.modules
        if "._pb" not in module
    }
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        raise AssertionError(" → ".join(error.args[1])) from None


def test_files_are_of_a_size_to_be_read() -> None:
    """None of ours is longer than the bound, tests neither, and half of the sources are short."""
    lines = {path: path.read_text("utf-8").count("\n") for path in (*SOURCES, *TESTS)}
    assert {str(p.relative_to(ROOT)): n for p, n in lines.items() if n > LINES_MAX} == {}
    assert sorted(lines[path] for path in SOURCES)[len(SOURCES) // 2] <= LINES_MEDIAN_MAX

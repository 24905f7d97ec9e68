"""One row an engine, and one adapter: the same engines on both sides."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from extproc import engines
from extproc.core.errors import Error, as_engine_says
from extproc.core.request import Dialect, Request, RouteKind, limited
from steersman_agent import engines as adapters

EXTPROC = Path(engines.__file__).parent


def test_every_engine_has_a_row_and_an_adapter() -> None:
    """Routing and the node agent know the same engines, under the same names."""
    assert tuple(engines.ENGINES) == tuple(adapters.ENGINES)
    assert engines.DEFAULT in engines.ENGINES
    for name in engines.names():
        assert engines.named(name).name == adapters.adapter(name).name == name
        assert engines.named(name).title, name


def test_nobody_compares_an_engines_name() -> None:
    """What depends on the engine is a trait of its row; a package's engine would be left out elsewhere."""
    found = []
    for path in sorted(EXTPROC.rglob("*.py")):
        if path.relative_to(EXTPROC).parts[0] == "_pb":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                named = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}
                if named & engines.ENGINES.keys():
                    found.append(f"{path.relative_to(EXTPROC)}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def test_who_is_asked_first() -> None:
    """Whoever shows pages that others may show too comes last."""
    weak = [each.told_weakly for each in adapters.adapters()]
    assert weak == sorted(weak)


@pytest.mark.parametrize(
    ("engine", "limits", "expected"),
    [
        ("vllm", (100, 200, None), 200),
        ("vllm", (100, 0, None), 100),
        ("sglang", (100, 200, None), 100),
        ("sglang", (0, 200, None), 200),
        ("llamacpp", (100, 200, 50), 50),
        ("llamacpp", (100, 200, None), 200),
        ("tgi", (100, 200, 50), 200),
        ("a recording's", (100, 200, 50), 200),
    ],
)
def test_the_bound_that_it_obeys(
    engine: str, limits: tuple[int | None, int | None, int | None], expected: int
) -> None:
    """Of several in one body; an engine that nobody knows may take the largest."""
    request = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, stream=False, model="m", limits=limits)
    assert limited(request, engine).max_new_tokens == expected


@pytest.mark.parametrize(("engine", "status"), [("tgi", 422), ("vllm", 400), ("a recording's", 400)])
def test_what_it_says_of_json_that_is_no_request(engine: str, status: int) -> None:
    """TGI has a status of its own on OpenAI's routes."""
    assert as_engine_says(Error.UNFIT.reject("no"), Dialect.OPENAI, engine).status == status

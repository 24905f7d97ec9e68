"""Laws that no linter of the Makefile holds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from extproc.config.docstrings import described
from extproc.config.model import Config, Section

ROOT = Path(__file__).resolve().parent.parent
CORE = sorted((ROOT / "extproc" / "core").rglob("*.py"))
#: What the core may import beside itself and msgspec (law: pure core).
PURE = {
    "abc",
    "__future__",
    "array",
    "base64",
    "bisect",
    "collections",
    "cryptography",  # Ed25519, where it is installed: reckons like hmac
    "dataclasses",
    "enum",
    "functools",
    "hashlib",
    "heapq",
    "hmac",
    "ipaddress",
    "itertools",
    "math",
    "struct",
    "xxhash",
    "msgspec",
    "operator",
    "re",
    "statistics",
    "types",
    "typing",
    "weakref",
    "unicodedata",
}
#: What the core takes of the house besides itself: the engines' rows.
BELOW = {("extproc.engines", "traits_of"), ("extproc.engines", "DEFAULT")}
#: Builtins that reach the world.
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "__import__"}


@pytest.mark.parametrize("path", CORE, ids=[str(path.relative_to(ROOT)) for path in CORE])
def test_the_core_is_pure(path: Path) -> None:
    """Its imports are of a short list; of `random` it takes the type alone, handed in with its seed."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                assert {name.name.partition(".")[0] for name in names} <= PURE, ast.unparse(node)
            case ast.ImportFrom(module="random", names=names):
                assert [name.name for name in names] == ["Random"], ast.unparse(node)
            case ast.ImportFrom(module=str(module), names=names) if module.startswith("extproc.engines"):
                assert {(module, name.name) for name in names} <= BELOW, ast.unparse(node)
            case ast.ImportFrom(module=str(module), level=0) if not module.startswith("extproc.core"):
                assert module.partition(".")[0] in PURE, ast.unparse(node)
            case ast.Call(func=ast.Name(id=name)):
                assert name not in IMPURE_CALLS, ast.unparse(node)
                assert name != "Random", "chance is handed in"


@pytest.mark.parametrize("path", CORE, ids=[str(path.relative_to(ROOT)) for path in CORE])
def test_no_module_of_the_core_keeps_state(path: Path) -> None:
    """No `global`, and no empty container at module level that somebody means to fill."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Global)]
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            assert ast.unparse(node.value) not in ("{}", "[]", "set()") if node.value else True


def settings(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of the file with its dotted path."""
    for name, field in section.model_fields.items():
        yield f"{path}{name}", described(section).get(name)
        for inner in sections_in(field.annotation):
            yield from settings(inner, f"{path}{name}.")


def sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in sections_in(part)]


SETTINGS = dict(settings(Config))


@pytest.mark.parametrize("path", SETTINGS)
def test_every_setting_says_what_it_is(path: str) -> None:
    """A setting without a description fails here; so does one that is no sentence."""
    description = SETTINGS[path]
    assert description, "write a docstring under it"
    assert description.rstrip().endswith(".")


def test_the_settings_are_found() -> None:
    """The walk goes into lists and optional sections."""
    assert {"pools.endpoints.address", "gateway.tracing.otlp_grpc", "tenants.keys.sha256"} <= set(SETTINGS)

"""What each setting is: the text that stands under it in its section's source.

Read when somebody asks (the reference, the schema, `--help` of quotas): pydantic's own
`use_attribute_docstrings` parses every section's source at import, a quarter of the cost of `check`.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from functools import cache
from types import ModuleType

from pydantic import BaseModel


def described(section: type[BaseModel]) -> dict[str, str]:
    """A section's settings by attribute, inherited ones included, each with its text; without: left out."""
    found: dict[str, str] = {}
    for each in reversed(section.__mro__):
        if issubclass(each, BaseModel) and each is not BaseModel:
            found |= _of_module(sys.modules[each.__module__]).get(each.__qualname__, {})
    # What is made of a table says it itself.
    found |= {name: field.description for name, field in section.model_fields.items() if field.description}
    return found


@cache
def _of_module(module: ModuleType) -> Mapping[str, dict[str, str]]:
    tree = ast.parse(inspect.getsource(module))
    return {each.name: _of_class(each) for each in tree.body if isinstance(each, ast.ClassDef)}


def _of_class(node: ast.ClassDef) -> dict[str, str]:
    found = {}
    for setting, text in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(setting, ast.AnnAssign)
            and isinstance(setting.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            found[setting.target.id] = inspect.cleandoc(text.value.value)
    return found

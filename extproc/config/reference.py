"""The configuration's reference page, made from the models: every setting with its type, default and meaning.

Owns the page's text. Knows nothing of what a setting does: that is each field's own docstring.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from extproc.config.docstrings import described
from extproc.config.model import Config

HEAD = """# Configuration reference

Every setting of `steersman.yaml`. `steersman check -f FILE` reports every mistake in a file at once, with
its line and with what to write instead. A setting that is not on this page is a mistake. Names of durations
and sizes end with their unit. Settings in **bold** are sections with a heading of their own. `[]` after a
name means a list, `.NAME` a mapping by names that you choose.

(To make this page again from the models: `STEERSMAN_UPDATE_DOCS=1 .venv/bin/pytest
tests/config/test_reference.py`.)
"""

#: How Python's types read in a configuration file.
_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false"}
#: A default longer than this is said in words.
_DEFAULT_SHOWN_MAX = 60


def page() -> str:
    """The whole document, in Markdown."""
    parts = [HEAD]
    for section, paths in sections().items():
        path, *others = sorted(paths, key=lambda path: path.count("."))
        title = f"`{path}`" if path else "The file"
        also = f" The same under {', '.join(f'`{each}`' for each in others)}." if others else ""
        about = " ".join((section.__doc__ or "").split())
        rows = [
            _row(field.alias or name, field, described(section).get(name, ""))
            for name, field in section.model_fields.items()
        ]
        table = "\n".join(["| setting | type | default | |", "|---|---|---|---|", *rows])
        parts.append(f"## {title}\n\n{about}{also}\n\n{table}\n")
    return "\n".join(parts)


def settings() -> Iterator[tuple[str, str]]:
    """Every setting's path (`pools[].endpoints[].address`) and what it is."""
    for section, paths in sections().items():
        for path in paths:
            texts = described(section)
            for name, field in section.model_fields.items():
                yield _below(path, field.alias or name), texts.get(name, "")


def sections() -> dict[type[BaseModel], list[str]]:
    """Every section and where it stands, depth first in the file's order."""
    found: dict[type[BaseModel], list[str]] = {}

    def visit(section: type[BaseModel], path: str) -> None:
        found.setdefault(section, []).append(path)
        for name, field in section.model_fields.items():
            for inner, mark in _inner(field.annotation):
                visit(inner, _below(path, field.alias or name) + mark)

    visit(Config, "")
    return found


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _inner(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """The sections that a field holds, with the mark of how: one, a list, a mapping by name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, ""
        return
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from _inner(arguments[0])
    elif origin in (list, tuple, set, frozenset):
        for each in arguments:
            yield from ((inner, f"[]{mark}") for inner, mark in _inner(each))
    elif origin is dict:
        yield from ((inner, f".NAME{mark}") for inner, mark in _inner(arguments[1]))
    else:
        for each in arguments:
            yield from _inner(each)


def _row(name: str, field: FieldInfo, text: str) -> str:
    shown = f"**`{name}`**" if any(_inner(field.annotation)) else f"`{name}`"
    about = " ".join(text.split()).replace("|", "\\|")
    return f"| {shown} | {_type(field)} | {_default(field)} | {about} |"


def _type(field: FieldInfo) -> str:
    bounds = []
    for each in field.metadata:
        for name, words in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            value = getattr(each, name, None)
            if value is not None:
                bounds.append(f"{words} {value:g}" if isinstance(value, float) else f"{words} {value:,}")
    said = _words(field.annotation)
    if callable(known := field.json_schema_extra):
        schema: dict[str, Any] = {}
        known(schema)
        said = " or ".join(f"`{each}`" for each in schema["enum"])
    return f"{said}, {', '.join(bounds)}" if bounds else said


def _words(annotation: Any) -> str:
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _words(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{each}`" for each in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(each) for each in arguments if each is not type(None))
    if origin in (list, tuple, set, frozenset):
        return f"list of {_words(arguments[0])}"
    if origin is dict:
        return f"by name, {_words(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return getattr(annotation, "__name__", str(annotation)).lower()


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its own"
    if value is None or value in ([], {}, ()):
        return "none"
    if isinstance(value, list) and any(isinstance(each, BaseModel) for each in value):
        value = [each.model_dump(exclude_defaults=True) for each in value if isinstance(each, BaseModel)]
    said = {True: "true", False: "false"}[value] if isinstance(value, bool) else f"{value}"
    said = said.replace("|", "\\|") or '""'
    return f"`{said}`" if len(said) <= _DEFAULT_SHOWN_MAX else "built in"

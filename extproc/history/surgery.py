"""Edits of YAML text that touch only what they change: comments, order and spelling of the rest stay.

Owns where in the text a value goes. Each edit is made twice, in the text and in the data, and the text is
taken only when it reads as the data: what is shared by an alias, or written in a way not foreseen here, is
refused rather than guessed. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import yaml

Path = tuple[str | int, ...]

#: libyaml where PyYAML was built with it: ten times as fast.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


class EditError(Exception):
    """The text cannot be edited this way; the message says what to do by hand."""


@dataclass(frozen=True, slots=True)
class Put:
    """Set a setting of a mapping; mappings on the way that are missing are made."""

    path: Path
    value: Any


@dataclass(frozen=True, slots=True)
class Remove:
    """Take a setting out of a mapping, and the mapping too when nothing is left in it."""

    path: Path


@dataclass(frozen=True, slots=True)
class Add:
    """Put an entry at the beginning of a list; the list is made when missing."""

    path: Path
    value: Any


Edit = Put | Remove | Add


def edited(text: str, edits: Sequence[Edit]) -> str:
    """The text after the edits, in order. Raises EditError."""
    data = _unshared(yaml.load(text, Loader=_LOADER))  # noqa: S506 (one of PyYAML's two safe loaders)
    new = text
    for edit in edits:
        try:
            new = _in_text(new, edit)
            _in_data(data, edit)
        except (KeyError, IndexError, TypeError, AttributeError):
            raise EditError(f"{_dotted(edit.path)} cannot be changed here; edit the file by hand") from None
    try:
        same = yaml.load(new, Loader=_LOADER) == data  # noqa: S506 (the same)
    except (yaml.YAMLError, ValueError):
        same = False
    if not same:
        where = ", ".join(sorted({_dotted(edit.path) for edit in edits}))
        raise EditError(f"{where} is written in a way (an alias, a merge) that only a person can edit")
    return new


def written(value: Any) -> str:
    """A value in YAML's flow style, on one line."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            # YAML takes 1e+22 for text.
            return repr(value).replace("e", ".0e") if re.fullmatch(r"-?\d+e.*", repr(value)) else repr(value)
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        case dict():
            return "{" + ", ".join(f"{written(k)}: {written(v)}" for k, v in value.items()) + "}"
        case list():
            return "[" + ", ".join(written(each) for each in value) + "]"
        case _:
            plain = _PLAIN.fullmatch(value) and yaml.safe_load(value) == value
            return value if plain else json.dumps(value, ensure_ascii=False)


def _in_data(data: Any, edit: Edit) -> None:
    *way, last = edit.path
    match edit:
        case Put():
            for part in way:
                if isinstance(part, str) and data.get(part) is None:
                    data[part] = {}
                data = data[part]
            data[last] = edit.value
        case Add():
            for part in way:
                data = data[part]
            if data.get(last) is None:
                data[last] = []
            data[last].insert(0, edit.value)
        case Remove():
            parents = [data]
            for part in way:
                parents.append(parents[-1][part])
            for parent, part in zip(reversed(parents), reversed(edit.path), strict=True):
                del parent[part]
                if parent or not isinstance(part, str):
                    break


def _in_text(text: str, edit: Edit) -> str:
    root: Any = yaml.compose(text, Loader=_LOADER)
    match edit:
        case Put():
            return _put(text, root, edit.path, edit.value)
        case Add():
            node = _find(root, edit.path)
            if node is None or _is_null(node):
                return _put(text, root, edit.path, [edit.value])
            start = node.start_mark
            if node.flow_style:
                more = ", " if node.value else ""
                return _insert(text, start.index + 1, written(edit.value) + more)
            return _insert(text, start.index, f"- {written(edit.value)}\n{' ' * start.column}")
        case Remove():
            return _remove(text, root, edit.path)


def _put(text: str, root: Any, path: Path, value: Any) -> str:
    node = _find(root, path)
    if node is not None:
        if not isinstance(node, yaml.ScalarNode) and not node.flow_style:
            raise TypeError("a block is not replaced")
        start, end = node.start_mark.index, node.end_mark.index
        blank = " " if start == end else ""
        return text[:start] + blank + written(value) + text[end:]
    parent = _find(root, path[:-1])
    if parent is None or _is_null(parent):
        return _put(text, root, path[:-1], {path[-1]: value})
    entry = f"{written(path[-1])}: {written(value)}"
    if parent.flow_style or not parent.value:
        return _insert(text, parent.start_mark.index + 1, entry + (", " if parent.value else ""))
    key, first = parent.value[0]
    column = " " * key.start_mark.column
    if isinstance(first, yaml.ScalarNode) and first.style not in ("|", ">") and first.value:
        # After the first line, which mostly is the name.
        end = text.find("\n", first.end_mark.index)
        if end < 0:
            return f"{text}\n{column}{entry}\n"
        return _insert(text, end + 1, f"{column}{entry}\n")
    return _insert(text, key.start_mark.index, f"{entry}\n{column}")


def _remove(text: str, root: Any, path: Path) -> str:
    parent = _find(root, path[:-1])
    if _find(root, path) is None:
        raise KeyError(path[-1])
    if len(parent.value) == 1 and isinstance(path[-2], str):
        return _remove(text, root, path[:-1])
    at = next(i for i, (key, _) in enumerate(parent.value) if key.value == path[-1])
    key, value = parent.value[at]
    start, end = key.start_mark.index, _end(value)
    if parent.flow_style:
        if at + 1 < len(parent.value):
            end = parent.value[at + 1][0].start_mark.index
        elif at:
            start = _end(parent.value[at - 1][1])
        return text[:start] + text[end:]
    start = text.rfind("\n", 0, start) + 1
    if text[start : key.start_mark.index].strip():
        raise TypeError("the first of a list's entry stays")
    end = text.find("\n", end)
    return text[:start] + (text[end + 1 :] if end >= 0 else "")


def _end(node: Any) -> int:
    """Where a node's own text ends: a block's end is its last entry's, not what comes after it."""
    if isinstance(node, yaml.ScalarNode) or node.flow_style or not node.value:
        end: int = node.end_mark.index
        return end
    last = node.value[-1]
    return _end(last[1] if isinstance(last, tuple) else last)


def _find(node: yaml.Node | None, path: Path) -> Any:
    for part in path:
        if isinstance(node, yaml.MappingNode):
            node = next((value for key, value in node.value if key.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
        else:
            return None
    return node


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _insert(text: str, at: int, what: str) -> str:
    return text[:at] + what + text[at:]


def _unshared(data: Any) -> Any:
    """Data without shared parts, so that an edit of one that an alias shares shows."""
    if isinstance(data, dict):
        return {key: _unshared(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_unshared(value) for value in data]
    return data


def _dotted(path: Path) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text

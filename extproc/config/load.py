"""Reads `steersman.yaml`: YAML to a checked `Config`, or every mistake at once.

Owns files and the wording of mistakes (`file:line: path: message`). The models and their checks
are model.py's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from extproc.config.checks import Loc, cross_checks, dotted
from extproc.config.model import Config

#: A configuration file above this is refused unread.
CONFIG_BYTES_MAX = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where it stands and what to write instead."""

    file: str
    line: int | None
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}"


class ConfigError(Exception):
    """The configuration cannot be used; `problems` lists every mistake found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def load(path: str | Path) -> Config:
    """Read and check a file; raises ConfigError with every mistake."""
    name = str(path)
    try:
        size = Path(path).stat().st_size
        if size > CONFIG_BYTES_MAX:
            message = f"the file has {size} bytes; at most {CONFIG_BYTES_MAX} are read"
            raise ConfigError([Problem(name, None, "", message)])
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        message = f"cannot be read: {error.strerror}; give the configuration with -f FILE"
        raise ConfigError([Problem(name, None, "", message)]) from error
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 (byte {error.start}); save it as UTF-8"
        raise ConfigError([Problem(name, None, "", message)]) from error
    return loads(text, name=name)


def loads(text: str, *, name: str = "<string>") -> Config:
    """Check a configuration given as text; raises ConfigError with every mistake."""
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else None
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise ConfigError([Problem(name, line, "", f"is not YAML: {what}")]) from error
    except ValueError as error:
        # A date that no calendar has; PyYAML does not say where.
        message = f"is not YAML: {error}; quote the value that is meant as text"
        raise ConfigError([Problem(name, None, "", message)]) from error
    except RecursionError as error:
        raise ConfigError([Problem(name, None, "", "is nested too deeply")]) from error
    if not isinstance(data, dict):
        message = "holds no mapping; begin with 'pools:' (README, 'Your own backends', has an example)"
        raise ConfigError([Problem(name, None, "", message)])

    def problem(location: Loc, message: str) -> Problem:
        return Problem(name, _line(tree, location), dotted(location), message)

    repeated = [problem(location, message) for location, message in _repeated_keys(tree, (), set())]
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        wrong = [problem(tuple(entry["loc"]), _wording(entry)) for entry in error.errors()]
        # In the order of the file, as a compiler would.
        raise ConfigError(sorted(repeated + wrong, key=lambda found: found.line or 0)) from None
    problems = repeated + [problem(location, message) for location, message in cross_checks(config)]
    if problems:
        raise ConfigError(sorted(problems, key=lambda found: found.line or 0))
    return config


#: Pydantic's kinds of error as what should stand there instead.
_WANTED = {
    "model_type": "a section with settings of its own, 'name: value'",
    "list_type": "a list; begin each entry with '- '",
    "string_type": "text; put it in quotes",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "greater_than": "above {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "below {lt}",
    "less_than_equal": "{le} or less",
    "string_pattern_mismatch": "text like {pattern}",
    "timezone_aware": "a time with its zone, such as 2026-12-01T00:00:00Z",
    "string_too_short": "at least {min_length} long",
    "string_too_long": "at most {max_length} characters long",
    "invalid_key": "text, as every setting's name is",
}


def _wording(entry: Any) -> str:
    """Pydantic's error as a sentence with the fix; the list's own wording where ours adds nothing."""
    kind, context = entry["type"], entry.get("ctx", {})
    if kind == "missing":
        return "is missing; add it"
    if kind == "extra_forbidden":
        known = _known_keys(entry["loc"][:-1])
        return (
            f"is not a setting here; this section knows {', '.join(known)}" if known else "is not a setting"
        )
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"{entry['input']!r} is not one of {context['expected']}"
    if kind == "too_short" and context.get("min_length") == 1:
        return "is empty; list at least one"
    wanted = _WANTED.get(kind, "").format(**context)
    # What stands in place of a key's hash may be the key itself: that is not repeated.
    seen = "" if "keys" in entry["loc"] else f" (it is {_short(entry['input'])})"
    if wanted:
        return f"must be {wanted}{seen}"
    return f"{entry['msg'][0].lower()}{entry['msg'][1:]}{seen}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Names of the settings that the section at a location has."""
    section: Any = Config
    for part in location:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part)
        if field is None:
            return []
        section = _section_in(field.annotation)
        if section is None:
            return []
    return list(section.model_fields)


def _section_in(annotation: Any) -> Any:
    """The model inside `Model`, `list[Model]` or `Model | None`; None when there is none."""
    if hasattr(annotation, "model_fields"):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _section_in(argument)
        if found is not None:
            return found
    return None


def _line(node: yaml.Node | None, location: Loc) -> int | None:
    """The line (from 1) of a location, or of the nearest parent that the file holds."""
    line: int | None = None
    for part in location:
        child: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, child = key.start_mark.line + 1, value
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            child = node.value[part]
            line = child.start_mark.line + 1
        if child is None:
            break
        node = child
    return line


def _repeated_keys(node: yaml.Node | None, location: Loc, visited: set[int]) -> Iterable[tuple[Loc, str]]:
    """A key written twice: YAML keeps the last in silence, which loses what the first said."""
    if id(node) in visited:
        return  # an alias, possibly of what it stands in
    visited.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield (*location, key.value), "stands here a second time; keep one of them"
            seen.add(key.value)
            yield from _repeated_keys(value, (*location, key.value), visited)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _repeated_keys(value, (*location, index), visited)

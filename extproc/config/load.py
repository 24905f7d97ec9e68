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

from extproc.config.checks import Loc, cross_checks
from extproc.config.model import Config
from extproc.wording import dotted, wording
from extproc.yamltext import Document, YamlMistakeError, read, read_json

#: A configuration file above this is refused unread.
CONFIG_BYTES_MAX = 16 * 1024 * 1024
#: What to write first.
BEGIN = "begin with 'pools:' ('steersman init' writes a first file)"
_KINDS: dict[type, str] = {list: "a list", str: "one text"}


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
    return loads(file_text(path), name=name)


def file_text(path: str | Path) -> str:
    """A configuration file's text. Raises ConfigError."""
    name = str(path)

    def wrong(message: str) -> ConfigError:
        return ConfigError([Problem(name, None, "", message)])

    try:
        size = Path(path).stat().st_size
        if size > CONFIG_BYTES_MAX:
            raise wrong(f"has {size} bytes; at most {CONFIG_BYTES_MAX} are read, is it the right file?")
        data = Path(path).read_bytes()
    except OSError as error:
        raise wrong(f"cannot be read: {error.strerror}; give the configuration with -f FILE") from error
    if (at := data.find(b"\0")) >= 0:
        raise wrong(f"is not text (byte {at} is 0); is it the right file?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise wrong(f"is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def loads(text: str, *, name: str = "<string>") -> Config:
    """Check a configuration given as text; raises ConfigError with every mistake."""
    document = read_json(text)
    try:
        document = document or read(text)
    except YamlMistakeError as error:
        raise ConfigError([Problem(name, error.line, "", str(error))]) from None
    tree, data = document.tree, document.data
    if not isinstance(data, dict):
        what = "is empty" if data is None else f"holds {_KINDS.get(type(data), 'one value')}, not a mapping"
        raise ConfigError([Problem(name, None, "", f"{what}; {BEGIN}")])

    if tree is None:
        # JSON has no lines; whoever wants to know of a mistake wants them.
        try:
            return checked(data, None, [], name=name)
        except ConfigError as error:
            document = _with_lines(text)
            if document is None:
                raise error from None
    return checked(document.data, document.tree, document.repeated, name=name)


def _with_lines(text: str) -> Document | None:
    """JSON read as YAML; None where it is none, such as with a character as an escaped pair of surrogates."""
    try:
        return None if "\\ud" in text.lower() else read(text)
    except YamlMistakeError:
        return None


def checked(data: Any, tree: yaml.Node | None, again: list[tuple[Loc, str]], *, name: str) -> Config:
    """A configuration of a document's data; raises ConfigError with every mistake."""

    def problem(location: Loc, message: str) -> Problem:
        return Problem(name, _line(tree, location), dotted(location), message)

    repeated = [problem(location, message) for location, message in again]
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        wrong = [problem(tuple(entry["loc"]), wording(entry, Config)) for entry in error.errors()]
        # In the order of the file, as a compiler would.
        raise ConfigError(sorted(repeated + wrong, key=lambda found: found.line or 0)) from None
    problems = repeated + [problem(location, message) for location, message in cross_checks(config)]
    if problems:
        raise ConfigError(sorted(problems, key=lambda found: found.line or 0))
    return config


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

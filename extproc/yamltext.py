"""Reads YAML text once: its nodes (with lines) and its data, or one mistake in one wording.

Owns what is wrong with a text as YAML, before anything is known of settings: `is not YAML: WHAT; MEND`.
Parsing is libyaml's where PyYAML was built with it (ten times as fast); texts that might be nested deeply
are the pure parser's, since libyaml's binding recurses without a bound.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

#: Where something stands: names and places in lists.
Loc = tuple[int | str, ...]
#: The pure parser reads what may be nested deeper than this, and gives up in order (RecursionError).
DEPTH_FAST_MAX = 64
#: Values that a text may stand for once its aliases are written out. 50,000 tenants are about a million.
VALUES_MAX = 10_000_000

_FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BRACKETS = re.compile(r"[\[\]{}]")
#: What opens nested blocks on one line: blanks and the marks of entries and keys.
_OPENING = re.compile(rf"^[ \-?:]{{{DEPTH_FAST_MAX},}}", re.MULTILINE)
#: An address as it has to be written, without the quotes that YAML wants of it.
_BARE_IPV6 = re.compile(r"(?<=[\s,\[])\[[0-9A-Fa-f:.]*::?[0-9A-Fa-f:.]*\]:\d+")
_INT = "tag:yaml.org,2002:int"
_ODD_INT = re.compile(r"[-+]?(?:(0_*[0-7_]+)$|\d[\d_]*:)")
_TAB = re.compile(r"^ *\t")
#: Where it is not the text's last line, a line without an end of its own is not UTF-8's business.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

#: What libyaml and PyYAML say → what is wrong and what to do. The first that fits.
_SAID = (
    (r"anoth?er document", "a second document begins ('---'); keep one"),
    (r"constructor for the tag '(?P<tag>[^']*)'", "the tag {tag!r} is not taken; write the value itself"),
    (r"undefined alias", "an alias ('*name') names no anchor ('&name') above it; write the value itself"),
    (r"unhashable key", "a setting's name is a list or a mapping; write name: value"),
    (r"mapping values are not allowed", "a ':' stands where none may; indent as above, or quote the text"),
    (r"expected ':'", "a setting has no ':'; write name: value"),
    (r"quoted scalar|end of stream$", "a quote is not closed; close it"),
    (r"expected ',' or|node content", "a bracket or a brace is not closed, or a value is missing"),
    (
        r"block end|expected key|'-' indicator",
        "the indentation does not fit what stands above; begin a section's entries in one column",
    ),
    (r"start any token", "a character that needs quotes begins the value; quote it"),
    (r"(control|special) characters", "a control character stands in it; is it the right file?"),
)


class YamlMistakeError(Exception):
    """The text cannot be read as YAML; `line` from 1, None where it is not known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Document:
    """A text's nodes (None of an empty one), its data with aliases shared, and what YAML reads
    otherwise than it looks: keys written twice, numbers of other bases."""

    tree: yaml.Node | None
    data: Any
    repeated: list[tuple[Loc, str]]


def read(text: str) -> Document:
    """A text, read once. Raises YamlMistakeError."""
    loader = (_FAST if _is_shallow(text) else yaml.SafeLoader)(_without_control(text))
    try:
        node = loader.get_single_node()
        if node is None:
            return Document(None, None, [])
        _bounded(node)
        # Before merge keys ('<<') are put in place, which writes into the nodes.
        repeated = list(_read_otherwise(node, (), set()))
        return Document(node, loader.construct_document(node), repeated)
    except yaml.YAMLError as error:
        raise _mistake(error, text) from None
    except (ValueError, OverflowError) as error:
        # A date that no calendar has; PyYAML does not say where.
        raise YamlMistakeError(f"is not YAML: {error}; quote the value that is meant as text") from None
    except RecursionError:
        raise YamlMistakeError("is not YAML: it is nested too deeply; is it the right file?") from None
    finally:
        loader.dispose()


def read_json(text: str) -> Document | None:
    """A text that is a JSON object, without nodes: some fifty times as fast. None for any other text."""
    if not text.startswith("{"):
        return None

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands there twice")
        return found

    try:
        data = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return None
    return Document(None, data, [])


def _without_control(text: str) -> str:
    found = _CONTROL.search(text)
    if found is None:
        return text
    what = f"a control character (code {ord(found[0])}) stands in it; is it the right file?"
    raise YamlMistakeError(f"is not YAML: {what}", text.count("\n", 0, found.start()) + 1)


def _is_shallow(text: str) -> bool:
    """Whether a text is surely nested less than DEPTH_FAST_MAX in brackets, and in blocks."""
    depth = 0
    for found in _BRACKETS.finditer(text):
        depth += 1 if found[0] in "[{" else -1
        if depth > DEPTH_FAST_MAX:
            return False
        depth = max(depth, 0)
    return _OPENING.search(text) is None


def _bounded(root: yaml.Node) -> None:
    """Aliases may multiply: refuses what holds itself, and what stands for more than VALUES_MAX values."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        known = sizes.get(id(node))
        if known == 0:
            message = "is not YAML: an anchor stands within itself; write the value itself"
            raise YamlMistakeError(message, node.start_mark.line + 1)
        if known is not None:
            return known
        if isinstance(node, yaml.ScalarNode):
            return 1
        sizes[id(node)] = 0
        total = 1
        for each in node.value:
            total += size(each[0]) + size(each[1]) if isinstance(each, tuple) else size(each)
        sizes[id(node)] = total
        return total

    if size(root) > VALUES_MAX:
        message = f"is not YAML: its aliases stand for more than {VALUES_MAX:,} values; write fewer"
        raise YamlMistakeError(message)


def _mistake(error: yaml.YAMLError, text: str) -> YamlMistakeError:
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark is not None else None
    raw = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
    if line is not None:
        lines = text.split("\n")
        line = min(line, len(lines))  # a text without a last line's end is read as if it had one
        stands = lines[line - 1]
        if found := _BARE_IPV6.search(stands):
            what = f"an IPv6 address begins with a bracket and needs quotes; write '{found[0]}'"
            return YamlMistakeError(f"is not YAML: {what}", line)
        if "{{" in stands:
            what = "'{{' begins a template's place that nothing has filled in; write the value itself"
            return YamlMistakeError(f"is not YAML: {what}", line)
        if _TAB.match(stands):
            return YamlMistakeError("is not YAML: a tab stands in the indentation; write blanks", line)
        if line > 1 and not stands.strip():
            line = _last_written(lines, line)
    for pattern, said in _SAID:
        if found := re.search(pattern, raw):
            return YamlMistakeError(f"is not YAML: {said.format(**found.groupdict())}", line)
    return YamlMistakeError(f"is not YAML: {raw}; quote what is meant as text", line)


def _last_written(lines: list[str], line: int) -> int:
    """The last line that holds something, where a mistake shows at the text's end."""
    while line > 1 and not lines[line - 1].strip():
        line -= 1
    return line


def _read_otherwise(node: yaml.Node | None, location: Loc, visited: set[int]) -> Iterable[tuple[Loc, str]]:
    """What YAML takes in silence for something else than what a person reads: a key written twice, of which
    it keeps the last, and numbers of other bases (010 is 8, 1:30 is 90)."""
    if id(node) in visited:
        return  # an alias, possibly of what it stands in
    visited.add(id(node))
    if isinstance(node, yaml.ScalarNode) and node.tag == _INT and (found := _ODD_INT.match(node.value)):
        kind = "an octal number" if found[1] else "a number of base 60"
        yield location, f"is {kind} to YAML; write it without a leading 0 or ':', or quote the text"
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # no setting's name; the data cannot be made either
            if key.value in seen:
                yield (*location, key.value), "stands here a second time; keep one of them"
            seen.add(key.value)
            yield from _read_otherwise(value, (*location, key.value), visited)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _read_otherwise(value, (*location, index), visited)

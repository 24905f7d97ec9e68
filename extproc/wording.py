"""Pydantic's errors as sentences with the mend: what should stand there, and what was perhaps meant. Pure.

Owns wording, of steersman.yaml's mistakes and of agent.yaml's. Names are shown as the file spells them
(`class`, not the attribute `service_class`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from extproc.meant import meant, nearest

_A_TIME = "a time with its zone, such as 2026-12-01T00:00:00Z"
#: Pydantic's kinds of error as what should stand there instead.
_WANTED = {
    "model_type": "a section with settings of its own, 'name: value'",
    "dict_type": "a mapping by names that you choose, 'name: value'",
    "list_type": "a list; begin each entry with '- '",
    "string_type": "text; put it in quotes",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number that ends",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "greater_than": "above {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "below {lt}",
    "less_than_equal": "{le} or less",
    "string_pattern_mismatch": "text like {pattern}",
    "timezone_aware": _A_TIME,
    "string_too_short": "at least {min_length} long",
    "string_too_long": "at most {max_length} characters long",
    "invalid_key": "text, as every setting's name is",
    "tuple_type": "a list; begin each entry with '- '",
    "too_short": "a list of {min_length} or more",
    "datetime_parsing": _A_TIME,
    "datetime_from_date_parsing": _A_TIME,
    "datetime_type": _A_TIME,
    "too_long": "at most {max_length} entries long",
    "path_type": "the path of a file",
}


def dotted(location: tuple[int | str, ...]) -> str:
    """`("pools", 0, "name")` as `pools[0].name`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def wording(entry: Any, root: Any) -> str:
    """One of `ValidationError.errors()` as a sentence; `root` is the model of the whole file."""
    kind, context = entry["type"], entry.get("ctx", {})
    if kind == "missing":
        return "is missing; add it"
    if kind == "extra_forbidden":
        return _unknown(entry["loc"], root)
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"])
        return f"{entry['input']!r} is not one of {context['expected']}{meant(entry['input'], allowed)}"
    if kind == "too_short" and context.get("min_length") == 1:
        return "is empty; list at least one"
    wanted = _WANTED.get(kind, "").format(**context)
    # What stands in place of a key's hash may be the key itself: that is not repeated.
    seen = "" if "keys" in entry["loc"] else f" (it is {_short(entry['input'])})"
    if wanted:
        return f"must be {wanted}{seen}"
    return f"{entry['msg'][0].lower()}{entry['msg'][1:]}{seen}"


def spelled(section: Any) -> dict[str, str]:
    """A section's settings: attribute → as the file spells it."""
    return {name: field.alias or name for name, field in section.model_fields.items()}


def _unknown(location: tuple[int | str, ...], root: Any) -> str:
    section = section_at(location[:-1], root)
    if section is None:
        return "is not a setting; remove it"
    names, key = spelled(section), location[-1]
    listed = ", ".join(names.values())
    own = names.get(str(key)) or nearest(key, names.values())
    if own is not None:
        return f"is not a setting here; did you mean {own!r}? This section knows {listed}"
    if where := _elsewhere(str(key), root):
        return f"is not a setting here; it belongs under {where}. This section knows {listed}"
    return f"is not a setting here; this section knows {listed}"


def _elsewhere(key: str, root: Any) -> str | None:
    """The one section at the top that has a setting of this very name."""
    found = [
        name
        for name, field in root.model_fields.items()
        if (section := _direct(field.annotation)) is not None and key in spelled(section).values()
    ]
    return found[0] if len(found) == 1 else None


def section_at(location: tuple[int | str, ...], root: Any) -> Any:
    """The model of the section at a location; None where there is none."""
    section: Any = root
    annotation: Any = root
    for part in location:
        if isinstance(part, int):
            continue
        by_name = _values_of(annotation)
        if by_name is not None:
            # A name that the user chose.
            annotation = by_name
        else:
            attribute = next((name for name, alias in spelled(section).items() if alias == part), None)
            if attribute is None:
                return None
            annotation = section.model_fields[attribute].annotation
        section = _section_in(annotation)
        if section is None:
            return None
    return section


def _values_of(annotation: Any) -> Any:
    """What a mapping by names holds; None for anything else."""
    origin = getattr(annotation, "__origin__", None)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return annotation.__args__[1]
    return None


def _section_in(annotation: Any) -> Any:
    """The model inside `Model`, `list[Model]` or `Model | None`; None when there is none."""
    if hasattr(annotation, "model_fields"):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _section_in(argument)
        if found is not None:
            return found
    return None


def _direct(annotation: Any) -> Any:
    """The model of `Model` or `Model | None`; None for lists, mappings and values."""
    if getattr(annotation, "__origin__", None) is not None:
        return None
    return _section_in(annotation)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

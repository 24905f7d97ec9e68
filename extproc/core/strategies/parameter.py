"""Parameters of strategies: fields with a default and a range, and their check when one is built.

Owns the reading of a strategy's fields. Knows no strategy: what is no field is no parameter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from typing import Any, TypeVar

Value = float | int | bool | str
T = TypeVar("T", int, float)

_RANGE = "range"
#: A number's range where its field names none.
ANY = (0.0, math.inf)


def bounded(default: T, low: float, high: float) -> T:
    """A field that is a number from `low` to `high`, both included."""
    return field(default=default, metadata={_RANGE: (low, high)})


def parameters_of(strategy: object) -> dict[str, tuple[type, Value]]:
    """Type and default of each parameter, by name."""
    found = {}
    for each in _parameters(strategy):
        default: Value = getattr(strategy, each.name)
        found[each.name] = (type(default), default)
    return found


def checked(strategy: object, name: str, given: Mapping[str, Value]) -> dict[str, Value]:
    """What is given to the strategy called `name`, each in its parameter's type.

    ValueError for a parameter that it does not have, a value of another type or one out of range.
    """
    known = {each.name: each for each in _parameters(strategy)}
    values: dict[str, Value] = {}
    for key, value in given.items():
        if key not in known:
            has = ", ".join(sorted(known)) or "none"
            raise ValueError(f"strategy {name!r} has no parameter {key!r}; it has: {has}")
        low, high = known[key].metadata.get(_RANGE, ANY)
        values[key] = _checked(f"{name}.{key}", value, getattr(strategy, key), low, high)
    return values


def _checked(path: str, value: Value, default: Value, low: float, high: float) -> Value:
    if isinstance(default, bool) or isinstance(value, bool):
        if type(value) is not type(default):
            raise ValueError(f"{path} is {_said(default)}, not {value!r}")
        return value
    if isinstance(default, int | float):
        whole = isinstance(default, int)
        if not isinstance(value, int if whole else int | float):
            raise ValueError(f"{path} is {_said(default)}, not {value!r}")
        if not math.isfinite(value) or not low <= value <= high:
            most = "" if math.isinf(high) else f" and at most {high:g}"
            raise ValueError(f"{path} is at least {low:g}{most}, not {value!r}")
        return value if whole else float(value)
    if not isinstance(value, str):
        raise ValueError(f"{path} is {_said(default)}, not {value!r}")
    return value


def _said(default: Value) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(type(default), "a text")


def _parameters(strategy: Any) -> list[Any]:
    return [each for each in fields(strategy) if each.init] if is_dataclass(strategy) else []

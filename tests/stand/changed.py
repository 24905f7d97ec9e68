"""A value with some of its fields changed, whatever kind of value it is."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec


def replace(value: Any, **changes: Any) -> Any:
    """A copy: of a msgspec struct or of a dataclass."""
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.replace(value, **changes)
    return dataclasses.replace(value, **changes)

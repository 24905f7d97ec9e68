"""Where in the file something stands, and values that may stand there once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from extproc.wording import dotted

Loc = tuple[str | int, ...]


def repeats(items: Iterable[tuple[Loc, str]]) -> Iterator[tuple[Loc, str]]:
    """A mistake for each value that an earlier location has."""
    seen: dict[str, Loc] = {}
    for location, value in items:
        if value in seen:
            yield location, f"{value!r} is already at {dotted(seen[value])}; each must be the only one"
        else:
            seen[value] = location

"""Rows of figures by label values, side by side in one array.

A scrape copies all of them at once (a memcpy), and the garbage collector has nothing to walk: with ten
thousand tenants either would otherwise stop the event loop for longer than a decision may take.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence


class Rows:
    """Rows of `width` figures; a row is never removed, and its figures stand from its place on."""

    __slots__ = ("_places", "keys", "values", "width")

    def __init__(self, width: int) -> None:
        self.width = width
        #: Label values in the order of the rows; only ever appended to.
        self.keys: list[tuple[str, ...]] = []
        self.values = array("d")
        self._places: dict[tuple[str, ...], int] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def get(self, key: tuple[str, ...]) -> int | None:
        """A row's place in `values`, None where there is no such row."""
        return self._places.get(key)

    def add(self, key: tuple[str, ...]) -> int:
        """A new row of zeros; its place."""
        assert key not in self._places, key
        place = self._places[key] = len(self.values)
        self.values.extend([0.0] * self.width)
        self.keys.append(key)
        return place

    def read(self) -> Read:
        """All figures as they are now."""
        return Read(self.keys, self.values[:], self.width)


class Read:
    """A copy of the figures; may be iterated in a thread while rows are added."""

    __slots__ = ("_keys", "_values", "_width")

    def __init__(self, keys: Sequence[tuple[str, ...]], values: array[float], width: int) -> None:
        self._keys, self._values, self._width = keys, values, width

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], Sequence[float]]]:
        """Label values and figures, row by row."""
        width = self._width
        for number in range(len(self._values) // width):
            yield self._keys[number], self._values[number * width : (number + 1) * width]

"""Prometheus text, only the lines that are wanted: TGI's page is 700 lines of buckets, we need a dozen.

The filter is one regular expression in C over the whole page; what is left goes through
prometheus_client's own parser, which knows the format's quoting.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

#: A page with more wanted lines than this is not one of ours: the rest is left unread.
LINES_MAX: Final = 4096
#: Names (models, adapters) from an engine: so many, so long.
NAMES_MAX, NAME_CHARACTERS_MAX = 64, 256
#: A list that counts only where it is whole (the adapters that are loaded, or served): so many names, so long
#: together. The lists of 64 replicas fit into one report.
WHOLE_NAMES_MAX: Final = 256
WHOLE_BYTES_MAX: Final = 3_072

_U32, _U64 = 2**32 - 1, 2**64 - 1


class PageSamples:
    """The wanted samples of one page."""

    __slots__ = ("_by_name",)

    def __init__(self, by_name: Mapping[str, list[tuple[dict[str, str], float]]]) -> None:
        self._by_name = by_name

    def of(self, name: str) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of every series of a name."""
        return self._by_name.get(name, [])

    def total(self, *names: str) -> float | None:
        """The sum over the series of the first of these names that the page has; None for none."""
        for name in names:
            series = self._by_name.get(name)
            if series:
                return sum(value for _, value in series)
        return None


class WantedSamples:
    """Names to read from a page; built once an engine."""

    def __init__(self, *names: str) -> None:
        self._pattern = re.compile(
            rb"^(?:" + b"|".join(re.escape(name.encode()) for name in names) + rb")[ {].*$", re.MULTILINE
        )

    def read(self, page: bytes) -> PageSamples:
        """Parse a page; `ValueError` where it is not Prometheus text."""
        # Late: who only asks an engine what it is (`steersman init`) needs no prometheus_client.
        from prometheus_client.parser import text_string_to_metric_families

        found: defaultdict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
        lines = self._pattern.findall(page)[:LINES_MAX]
        if lines:
            text = b"\n".join(lines).decode("utf-8", "replace") + "\n"
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if not math.isnan(sample.value):
                        found[sample.name].append((sample.labels, sample.value))
        return PageSamples(found)


def count(value: object, *, at_most: int = _U32) -> int | None:
    """A figure as a whole number within a wire field; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Compared first: an integer that no float can hold is above every bound.
    return int(value) if 0 <= value <= at_most else None


def tokens(value: object) -> int | None:
    """Like `count`, for token sums."""
    return count(value, at_most=_U64)


def names(values: Iterable[object]) -> tuple[str, ...]:
    """Distinct names in order, bounded in number and length."""
    kept: dict[str, None] = {}
    for value in values:
        if isinstance(value, str) and value and len(value) <= NAME_CHARACTERS_MAX:
            kept[value] = None
        if len(kept) == NAMES_MAX:
            break
    return tuple(kept)


def whole(values: Iterable[object]) -> tuple[str, ...] | None:
    """Distinct names in order, all of them; None for more than a report may hold."""
    kept: dict[str, None] = {}
    for value in values:
        if not isinstance(value, str) or not value or len(value) > NAME_CHARACTERS_MAX:
            return None
        kept[value] = None
        if len(kept) > WHOLE_NAMES_MAX:
            return None
    size = sum(len(name.encode("utf-8", "replace")) for name in kept)
    return tuple(kept) if size <= WHOLE_BYTES_MAX else None


def known(*values: float | None) -> tuple[float, ...]:
    """The figures that the engine gave, for `Scrape.progress`."""
    return tuple(value for value in values if value is not None)

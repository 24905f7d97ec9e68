"""Whose fault an engine's own error is: the replica's, or the request's.

Owns the rule for answers that the engine itself gave with a 500, or with an error inside a 200. Resets,
refusals and timeouts are the replica's. An engine answers so to an image that it cannot decode as well as
when its card is broken; a client that repeats such a request must not take the replica away from everybody.
It is held against it when

- two tenants have met it there within WINDOW_NS, or
- FAILURES_IN_A_ROW came with no good answer between them, and the tenant has not met it elsewhere too.

A tenant that meets it on several replicas of the pool brings it along, and is no witness against any.
"""

from __future__ import annotations

from typing import TypeVar

from extproc.core.outcome import End, Outcome

Key = TypeVar("Key")
Value = TypeVar("Value")

WINDOW_NS = 60_000_000_000
FAILURES_IN_A_ROW = 3
#: Replicas and tenants remembered, and how many of the one for each of the other; the oldest give way.
REPLICAS_MAX, TENANTS_MAX, EACH_MAX = 8_192, 8_192, 16
#: The status of errors that an engine gives of its own; Envoy's own are 502 to 504, and 501 is no error of it
#: (wire/ended.py). What has begun to stream has 200.
OWN_STATUS, BEGUN_STATUS = 500, 200


def own_error(outcome: Outcome) -> bool:
    """Whether the engine itself answered with an error, at the first attempt."""
    if outcome.end is not End.ERROR or outcome.attempts > 1:
        return False
    return outcome.status == OWN_STATUS or (outcome.status == BEGUN_STATUS and outcome.error_said)


class Blame:
    """Remembers who met errors where."""

    __slots__ = ("_at", "_by", "_row")

    def __init__(self) -> None:
        #: address → tenant → when last; (pool, tenant) → address → when last.
        self._at: dict[str, dict[str, int]] = {}
        self._by: dict[tuple[str, str], dict[str, int]] = {}
        #: address → errors since the last good answer.
        self._row: dict[str, int] = {}

    def answered(self, address: str) -> None:
        """A good answer of a replica."""
        if self._row:
            self._row.pop(address, None)

    def failed(self, pool: str, address: str, tenant: str, *, now_ns: int) -> bool:
        """An own error of a replica; whether it is held against it."""
        row = self._row.pop(address, 0) + 1
        _put(self._row, address, row, REPLICAS_MAX)
        here = self._at.pop(address, {})
        _put(self._at, address, here, REPLICAS_MAX)
        there = self._by.pop((pool, tenant), {})
        _put(self._by, (pool, tenant), there, TENANTS_MAX)
        for book, key in ((here, tenant), (there, address)):
            book.pop(key, None)
            _put(book, key, now_ns, EACH_MAX)
        if any(other != tenant and self._witness(pool, other, now_ns) for other in _fresh(here, now_ns)):
            return True
        return row >= FAILURES_IN_A_ROW and self._witness(pool, tenant, now_ns)

    def _witness(self, pool: str, tenant: str, now_ns: int) -> bool:
        """Whether a tenant met errors on one replica alone."""
        return len(_fresh(self._by.get((pool, tenant), {}), now_ns)) == 1


def _fresh(book: dict[str, int], now_ns: int) -> list[str]:
    return [key for key, at_ns in book.items() if now_ns - at_ns <= WINDOW_NS]


def _put(table: dict[Key, Value], key: Key, value: Value, most: int) -> None:
    if len(table) >= most:
        del table[next(iter(table))]
    table[key] = value

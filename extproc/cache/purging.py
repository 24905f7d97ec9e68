"""What is to be forgotten: by whose it is, of what, and how old. A plain value, so that it can go to others.

Owns what an order means. Who carries it out is a store's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import NamedTuple

import msgspec


class AnswerOrigin(NamedTuple):
    """For whom an answer was made, by which model and pool, and how long ago (ns)."""

    tenant: str
    model: str
    pool: str
    age_ns: int = 0


class PurgeOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All answers that fit every one of these; every answer where nothing is said.

    `shared`: only those that a group shares. `older_ns`: at least so old.
    """

    tenant: str = ""
    model: str = ""
    pool: str = ""
    key: bytes = b""
    shared: bool = False
    older_ns: int = 0

    def wants(self, scope: str, key: bytes, whose: AnswerOrigin) -> bool:
        """Whether this answer is to go."""
        return (
            (not self.tenant or whose.tenant == self.tenant)
            and (not self.model or whose.model == self.model)
            and (not self.pool or whose.pool == self.pool)
            and (not self.key or key == self.key)
            and (not self.shared or scope.startswith("group:"))
            and whose.age_ns >= self.older_ns
        )

    def concerns(self, scope: str) -> bool:
        """Whether an answer of this scope may be meant: a tenant's are its own or a group's."""
        if scope.startswith("group:"):
            return True
        return not self.shared and (not self.tenant or scope == f"tenant:{self.tenant}")


def wanted(orders: Iterable[PurgeOrder], scope: str, key: bytes, whose: AnswerOrigin) -> bool:
    """Whether one of the orders means this answer."""
    return any(order.wants(scope, key, whose) for order in orders)


def both(purged: int | Awaitable[int], words: Awaitable[int]) -> Awaitable[int]:
    """How many answers were purged, once what is known in other words is as well. Begun within a loop."""
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    rest = [words] if isinstance(purged, int) else [purged, words]

    def told(all_of_them: asyncio.Future[list[int]]) -> None:
        if not done.done() and not all_of_them.cancelled() and all_of_them.exception() is None:
            done.set_result(purged if isinstance(purged, int) else all_of_them.result()[0])

    asyncio.gather(*rest).add_done_callback(told)
    return done

"""Fair queues filled with requests of one cost, and what comes out of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from extproc.core.fairqueue import FairQueue, QueueBounds, QueuedRequest, Shed
from extproc.core.strategies import Work

S = 1_000_000_000
BOUNDS = QueueBounds(
    held_max=1_000, class_held_max=(1_000, 1_000, 1_000), tenant_held_max=500, ageing_ns=10 * S
)


def held(name: str, tenant: str = "a", **fields: Any) -> QueuedRequest:
    """A request of 100 + 2·50 = 200 tokens' cost that arrives at 0, is shed at 60 s and due at 5 s."""
    given: dict[str, Any] = {
        "weight": 1.0,
        "klass": 0,
        "pool": "p",
        "work": Work(100, 50),
        "arrived_ns": 0,
        "shed_at_ns": 60 * S,
        "ttft_deadline_ns": 5 * S,
    }
    return QueuedRequest(id=name, tenant=tenant, **(given | fields))


def anywhere(_: QueuedRequest) -> str:
    return "place"


def only(*ids: str) -> Callable[[QueuedRequest], str | None]:
    """Fits the named alone, and notes whom it was asked about in `asked`."""

    def fits(each: QueuedRequest) -> str | None:
        asked.append(each.id)
        return "place" if each.id in ids else None

    asked: list[str] = []
    fits.asked = asked  # type: ignore[attr-defined]
    return fits


def filled(*requests: QueuedRequest, bounds: QueueBounds = BOUNDS, **options: Any) -> FairQueue:
    queue = FairQueue(bounds, **options)
    for each in requests:
        assert queue.push(each, now_ns=each.arrived_ns) == []
    return queue


def drain(queue: FairQueue, *, now_ns: int = 0, most: int = 10_000, pool: str = "p") -> list[str]:
    """Ids in the order in which they go."""
    ids: list[str] = []
    while len(ids) < most and (taken := queue.take(pool, anywhere, now_ns=now_ns)) is not None:
        ids.append(taken[0].id)
    return ids


def shed_ids(sheds: list[Shed]) -> list[str]:
    return [shed.held.id for shed in sheds]

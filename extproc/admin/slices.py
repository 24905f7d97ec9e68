"""Long work in short slices on the event loop, so that decisions go on in between.

Owns the length of a slice. What is worked through may change meanwhile: callers hand in a list of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

T = TypeVar("T")

#: How long the loop is held at once, and left alone after that: half of the time is others', at the least.
SLICE_NS = 1_000_000
PAUSE_S = 0.001


async def sliced(items: Iterable[T]) -> AsyncIterator[T]:
    """The items; whatever is done with each counts towards the slice that it is in."""
    began_ns = time.perf_counter_ns()
    for item in items:
        yield item
        if time.perf_counter_ns() - began_ns > SLICE_NS:
            await asyncio.sleep(PAUSE_S)
            began_ns = time.perf_counter_ns()

"""Waiting for what others do: conditions with a deadline that is for failures alone.

A busy machine may take a hundred times as long as a quiet one, so no deadline here says anything of speed. It
is shorter than pytest's own limit, so that the failure names what was waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

#: Seconds. Well below `timeout` in pyproject.toml, well above what any machine needs.
PATIENCE_S = 60.0
#: Seconds between two looks.
LOOK_S = 0.005


async def until(condition: Callable[[], Any], what: object = "", *, within_s: float = PATIENCE_S) -> Any:
    """What the condition gives once that is true."""
    deadline_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"not within {within_s:g} s: {told(what)}"
        await asyncio.sleep(LOOK_S)
    return found


def wait_until(condition: Callable[[], Any], what: object = "", *, within_s: float = PATIENCE_S) -> Any:
    """The same for threads and processes, where no event loop runs."""
    deadline_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"not within {within_s:g} s: {told(what)}"
        time.sleep(LOOK_S)
    return found


def told(what: object) -> object:
    """A name, or a function that says how things stand."""
    return what() if callable(what) else what

"""Processes that play simulations beside each other. Owns what Ctrl-C does to them: nothing, it is ours."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.pool import Pool


def worker_pool(
    workers: int, initializer: Callable[..., object] | None = None, initargs: tuple[Any, ...] = ()
) -> Pool:
    """Fresh processes, which ignore Ctrl-C from their first moment: a terminal sends it to them as well, and
    whoever holds the pool ends them. So no traceback of theirs comes between."""
    context = get_context("spawn")
    if threading.current_thread() is not threading.main_thread():
        return context.Pool(workers, initializer, initargs)
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is ignored stays so in a new program
    try:
        return context.Pool(workers, initializer, initargs)
    finally:
        signal.signal(signal.SIGINT, usual)

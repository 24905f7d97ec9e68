"""What the replicas say of themselves while requests are turned away: was one of them idle?

Owns a thread that asks each replica's `/sim/state` again and again, and the judgement over what it heard.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from bisect import bisect_right
from collections.abc import Sequence

#: Between two looks at a replica. A shed is judged by the last look before its answer came.
LOOK_S = 0.1


class Watch:
    """Context manager: samples `waiting` and `running` of each replica until it ends."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        #: When (perf_counter), and of each replica the requests that it has, running and waiting.
        self.samples: list[tuple[float, tuple[int, ...]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.ExitStack() as stack:
            connections = []
            for address in self._addresses:
                host, port = address.split(":")
                connection = http.client.HTTPConnection(host, int(port), timeout=10)
                stack.callback(connection.close)
                connections.append(connection)
            while not self._stop.wait(LOOK_S):
                at_s = time.perf_counter()
                self.samples.append((at_s, tuple(_busy(connection) for connection in connections)))


def _busy(connection: http.client.HTTPConnection) -> int:
    connection.request("GET", "/sim/state")
    state = json.loads(connection.getresponse().read())
    return int(state["permits_in_use"])


def shed_while_idle(
    ends_s: Sequence[float],
    samples: Sequence[tuple[float, tuple[int, ...]]],
    *,
    slots: int,
    without: frozenset[int] = frozenset(),
) -> int:
    """How many of the refusals at these times came while a replica had a slot that nobody used.

    Judged by the last sample before each; without one it does not count. `without` are replicas that do not
    count as idle: one that fails of itself has empty slots because nobody can use them.
    """
    times = [at_s for at_s, _ in samples]
    found = 0
    for end_s in ends_s:
        if (at := bisect_right(times, end_s) - 1) >= 0:
            found += any(busy < slots for i, busy in enumerate(samples[at][1]) if i not in without)
    return found

"""Reports that wait to be relayed: a short queue that forgets the oldest.

Owns the bounds of count, bytes and age. A report is worth little after a second (its agent sends
another), so nothing here is ever waited for.
"""

from __future__ import annotations

from collections import Counter, deque

from extproc.state.messages import REPORTS_PER_FRAME_MAX

#: Reports waiting, and their bytes; the oldest are dropped above either.
REPORTS_MAX, REPORTS_BYTES_MAX = 1_024, 8 * 1024 * 1024
#: A report that has waited this long is not sent.
REPORT_AGE_NS_MAX = 3_000_000_000
#: Bytes of reports in one frame, so that our own load is never stuck behind them.
BATCH_BYTES_MAX = 1024 * 1024


class Outbox:
    """Reports with the time of their arrival, oldest first."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts
        self._reports: deque[tuple[int, str, bytes]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._reports)

    def put(self, node: str, data: bytes, *, now_ns: int) -> None:
        """Add one; the oldest go when there are too many."""
        self._reports.append((now_ns, node, data))
        self._bytes += len(data)
        while len(self._reports) > REPORTS_MAX or self._bytes > REPORTS_BYTES_MAX:
            self._drop()

    def batch(self, *, now_ns: int) -> list[tuple[str, bytes]]:
        """Remove and return the oldest that are still worth sending and fit a frame; at least one if any."""
        while self._reports and now_ns - self._reports[0][0] > REPORT_AGE_NS_MAX:
            self._drop()
        batch: list[tuple[str, bytes]] = []
        size = 0
        while self._reports and len(batch) < REPORTS_PER_FRAME_MAX:
            _, node, data = self._reports[0]
            if batch and size + len(data) > BATCH_BYTES_MAX:
                break
            self._reports.popleft()
            size += len(data)
            batch.append((node, data))
        self._bytes -= size
        return batch

    def _drop(self) -> None:
        self._bytes -= len(self._reports.popleft()[2])
        self.counts["reports_dropped"] += 1

"""From notes to the collector: two bounded queues and two threads, so that nothing ever waits.

    request path ──offer──▶ [notes] ──thread──▶ spans, figures ──▶ [spans] ──thread──▶ collector

Owns the bounds, the counts of what was dropped, and the pace: threads share the interpreter with decisions,
so work is done in small pieces with a pause between. A collector that hangs holds its thread alone; the
queues fill, and what is above their bound is dropped and counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from extproc.observe.tracing.request_trace import Note, TraceEnd
from extproc.observe.tracing.spans import Span

log = logging.getLogger(__name__)

#: Notes worked on in one go (each takes about 50 µs), and the pause for other threads after it.
NOTES_AT_ONCE, PAUSE_S = 16, 0.001
#: How long notes may lie before they are looked at.
POLL_S = 0.05
#: Spans of one export: building its message takes about 0.1 ms each, and shall end before the interpreter's
#: turn does (5 ms), so that a decision waits for it no longer than that.
SPANS_AT_ONCE = 32
#: At most one line of log in so long says that spans are lost.
LOG_EVERY_S = 30.0


class Pipeline:
    """Takes notes at once, and works on them from `start` on."""

    def __init__(self, *, queue_max: int, interval_s: float) -> None:
        self._build: Callable[[Note], list[Span]] | None = None
        self._send: Callable[[Sequence[Span]], bool] | None = None
        self._measure: Callable[[TraceEnd], None] | None = None
        self._queue_max = queue_max
        self._interval_s = interval_s
        self._notes: deque[Note] = deque()
        self._spans: deque[Span] = deque()
        self._stopping = threading.Event()
        self._built = threading.Event()
        self._logged_s = -LOG_EVERY_S
        #: Notes and spans dropped for want of room; spans sent and lost; notes that could not be used.
        self.notes_dropped = self.spans_dropped = self.sent = self.lost = self.failed = 0
        self._threads = [
            threading.Thread(target=self._work, name="tracing", daemon=True),
            threading.Thread(target=self._export, name="tracing-export", daemon=True),
        ]

    def start(
        self,
        *,
        build: Callable[[Note], list[Span]] | None,
        send: Callable[[Sequence[Span]], bool] | None,
        measure: Callable[[TraceEnd], None] | None,
    ) -> None:
        """Begin to work: notes become spans by `build`, which `send` takes (True when they arrived; it may
        block); `measure` hears of ends. What is None is left out."""
        self._build, self._send, self._measure = build, send, measure
        for thread in self._threads:
            thread.start()

    def offer(self, note: Note) -> None:
        """Take a note; drops it when there is no room. On the request path: a microsecond."""
        if len(self._notes) >= self._queue_max:
            self.notes_dropped += 1
        else:
            self._notes.append(note)

    def stop(self, timeout_s: float) -> None:
        """Work off what is there, and send it, as far as the time goes."""
        deadline = time.monotonic() + timeout_s
        self._stopping.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        self.lost += len(self._spans)

    @property
    def counts(self) -> dict[str, int]:
        """What became of notes and spans."""
        return {
            "waiting": len(self._notes) + len(self._spans),
            "spans_sent": self.sent,
            "spans_lost": self.lost,
            "dropped": self.notes_dropped + self.spans_dropped,
            "failed": self.failed,
        }

    def _work(self) -> None:
        while True:
            stopping = self._stopping.is_set()
            worked = self._work_some()
            if worked and not stopping:
                time.sleep(PAUSE_S)
            elif not worked:
                if stopping:
                    self._built.set()
                    return
                self._stopping.wait(POLL_S)

    def _work_some(self) -> bool:
        for _ in range(NOTES_AT_ONCE):
            if not self._notes:
                return False
            note = self._notes.popleft()
            try:
                if self._measure is not None and isinstance(note, TraceEnd):
                    self._measure(note)
                spans = self._build(note) if self._build is not None else ()
            except Exception as error:  # noqa: BLE001 (one odd request must not end all traces)
                self.failed += 1
                self._say("a request's spans could not be built", error)
                continue
            for span in spans:
                if len(self._spans) >= self._queue_max:
                    self.spans_dropped += 1
                else:
                    self._spans.append(span)
        return True

    def _export(self) -> None:
        while True:
            last = self._built.is_set()
            while self._spans:
                self._export_some()
                if not last:
                    time.sleep(PAUSE_S)
            if last:
                return
            waits_until = time.monotonic() + self._interval_s
            while (
                len(self._spans) < SPANS_AT_ONCE
                and not self._built.is_set()
                and (left_s := waits_until - time.monotonic()) > 0
            ):
                self._built.wait(min(left_s, POLL_S))

    def _export_some(self) -> None:
        batch = [self._spans.popleft() for _ in range(min(SPANS_AT_ONCE, len(self._spans)))]
        try:
            arrived = self._send(batch) if self._send is not None else True
        except Exception as error:  # noqa: BLE001 (a collector's fault is no reason to stop trying)
            arrived = False
            self._say("spans could not be sent", error)
        if arrived:
            self.sent += len(batch)
        else:
            self.lost += len(batch)
            self._say(f"{self.lost} spans did not reach the collector so far")

    def _say(self, what: str, error: Exception | None = None) -> None:
        now_s = time.monotonic()
        if now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            log.warning("tracing: %s", what, exc_info=error)

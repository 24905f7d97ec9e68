from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest
from trips import SAMPLED, Trips

from extproc.observe.tracing.pipeline import SPANS_AT_ONCE, Pipeline
from extproc.observe.tracing.request_trace import Decided, Note, TraceEnd
from extproc.observe.tracing.spans import Span
from tests.stand.waits import wait_until

METADATA = ("traceparent", SAMPLED)


def pipeline(queue_max: int = 100) -> Pipeline:
    return Pipeline(queue_max=queue_max, interval_s=0.05)


@pytest.fixture
def notes() -> list[Note]:
    """A decision and its end."""
    trips = Trips()
    _, reply = trips.ask(METADATA)
    trips.end(reply)
    return trips.notes


def test_notes_become_spans_that_are_sent(notes: list[Note]) -> None:
    """Those offered before the start too; ends are measured; stopping sends what is left."""
    sent: list[Span] = []
    ends: list[TraceEnd] = []

    def send(spans: Sequence[Span]) -> bool:
        sent.extend(spans)
        return True

    line = pipeline()
    line.offer(notes[0])
    line.start(build=Trips().spans_of, send=send, measure=ends.append)
    wait_until(lambda: sent)
    line.offer(notes[1])
    line.stop(5.0)
    assert [span.name for span in sent] == ["steersman.decide", "chat m"]
    assert ends == [notes[1]]
    assert line.counts == {"waiting": 0, "spans_sent": 2, "spans_lost": 0, "dropped": 0, "failed": 0}


def test_a_collector_that_hangs(notes: list[Note]) -> None:
    """Offering stays quick, the queues end at their bound, the rest is counted, stopping takes no longer."""
    hangs = threading.Event()
    given_up: list[bool] = []

    def send(_: Sequence[Span]) -> bool:
        given_up.append(hangs.wait(100))
        return False

    line = pipeline(queue_max=50)
    ends: list[TraceEnd] = []
    line.start(build=Trips().spans_of, send=send, measure=ends.append)
    for i in range(2_000):
        line.offer(notes[1])
        if i % 20 == 0:
            time.sleep(0.001)
    wait_until(lambda: not line._notes)
    counts = line.counts
    assert counts["waiting"] <= 50
    assert counts["dropped"] + counts["waiting"] + SPANS_AT_ONCE >= 2_000
    # The metrics are measured all the same, but for notes that had no room.
    assert len(ends) == 2_000 - line.notes_dropped
    line.stop(0.3)
    # Whoever had waited for the collector, to offer or to stop, would have come back after it.
    assert not given_up
    hangs.set()


def test_a_collector_that_is_gone(notes: list[Note], caplog: pytest.LogCaptureFixture) -> None:
    """Spans are lost and counted, with one line of log; what raises is as good as what refuses."""

    def send(_: Sequence[Span]) -> bool:
        raise ConnectionError("nobody there")

    line = pipeline()
    line.start(build=Trips().spans_of, send=send, measure=None)
    for _ in range(5):
        line.offer(notes[0])
        time.sleep(0.06)
    line.stop(5.0)
    assert line.counts["spans_lost"] == 5
    # Another test's hung pipeline may end meanwhile, and say what it lost.
    assert len([each for each in caplog.records if "could not be sent" in each.message]) == 1


def test_a_note_that_cannot_be_used(notes: list[Note]) -> None:
    """It is counted; the next one goes on."""
    sent: list[Span] = []

    def build(note: Note) -> list[Span]:
        if isinstance(note, Decided):
            raise ValueError("odd")
        return Trips().spans_of(note)

    def send(spans: Sequence[Span]) -> bool:
        sent.extend(spans)
        return True

    line = pipeline()
    line.start(build=build, send=send, measure=None)
    for note in notes:
        line.offer(note)
    line.stop(5.0)
    assert line.counts["failed"] == 1
    assert [span.name for span in sent] == ["chat m"]


def test_without_room_before_the_start(notes: list[Note]) -> None:
    """The bound holds from the first note; a pipeline that never began stops at once."""
    line = pipeline(queue_max=16)
    for _ in range(20):
        line.offer(notes[0])
    assert line.counts["dropped"] == 4
    line.stop(0.1)

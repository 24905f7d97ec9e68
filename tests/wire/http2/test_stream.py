"""Messages out of a stream's bytes: of whatever pieces, how many at once, and how they are kept."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from extproc.wire.calls import RpcCall
from extproc.wire.http2.framing import framed
from extproc.wire.http2.stream import GrpcStream

MESSAGE_BYTES_MAX = 1_000_000


class Session:
    """What a stream says to HTTP/2's session; the caller's window is told what was taken."""

    def __init__(self) -> None:
        self.acknowledged, self.trailers = 0, b""

    def acknowledge_received_data(self, amount: int, _id: int) -> None:
        self.acknowledged += amount

    def send_response(self, _id: int, headers: Any, *, end_stream: bool = False) -> None:
        self.trailers = dict(headers).get(b"grpc-status", b"") if end_stream else b""

    def send_data(self, _id: int, _data: bytes) -> None:
        pass

    def send_trailers(self, _id: int, headers: Any) -> None:
        self.trailers = dict(headers)[b"grpc-status"]


class Line:
    """A connection of one stream: how many bytes it keeps."""

    def __init__(self) -> None:
        self.session: Any = Session()
        self.message_bytes_max = MESSAGE_BYTES_MAX
        self.kept = 0

    def wrote(self, _stream: GrpcStream) -> None:
        pass

    def turn(self) -> None:
        pass

    def buffered(self, more: int) -> bool:
        self.kept += more
        return True


class Listener:
    """Keeps what it is told; is busy with each message where that is wanted."""

    def __init__(self, _call: RpcCall, *, slow: bool = False) -> None:
        self.heard: list[bytes] = []
        self.slow, self.busy, self.done = slow, False, False

    def message(self, data: bytes) -> None:
        self.heard.append(data)
        self.busy = self.slow

    def sent(self) -> None:
        pass

    def sent_all(self) -> None:
        self.done = True

    def closed(self) -> None:
        pass


def opened(*, slow: bool = False) -> tuple[Line, GrpcStream, Listener]:
    line = Line()
    stream = GrpcStream(line, 1, ())
    stream.begin(lambda call: Listener(call, slow=slow), None)
    listener = stream.handler
    assert isinstance(listener, Listener)
    return line, stream, listener


@given(
    sizes=st.lists(st.sampled_from((0, 1, 4, 5, 6, 1_019, 1_024, 3_000)), max_size=5),
    cuts=st.lists(st.integers(0, 16_000), max_size=12),
    slow=st.booleans(),
)
def test_messages_come_whole_whatever_pieces_they_come_in(
    sizes: list[int], cuts: list[int], slow: bool
) -> None:
    """Each once and in order; what was kept is let go, and all of it is acknowledged."""
    messages = [bytes([65 + i]) * size for i, size in enumerate(sizes)]
    data = b"".join(map(framed, messages))
    line, stream, listener = opened(slow=slow)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in pairwise(edges)]
    for piece in pieces:
        stream.data(piece, end=False)
    for _ in messages:
        listener.busy = False
        stream.resume()
    listener.busy = False
    stream.data(b"", end=True)
    assert listener.heard == messages
    assert listener.done
    assert line.kept == 0
    assert line.session.acknowledged == len(data)


@given(size=st.integers(1, 5_000), lacks=st.integers(1, 5_005))
def test_an_end_within_a_message_is_a_fault(size: int, lacks: int) -> None:
    """Within its prefix as well; what was kept of it is let go."""
    whole = framed(b"x" * size)
    line, stream, listener = opened()
    stream.data(whole[: max(1, len(whole) - lacks)], end=True)
    stream.flushed()
    assert listener.heard == []
    assert line.session.trailers == b"13"
    assert line.kept == 0


def test_tiny_pieces_cost_no_more_than_their_bytes() -> None:
    """A message that comes byte by byte is kept as bytes, and not as so many objects."""
    size = 200_000
    whole = framed(b"x" * size)
    line, stream, listener = opened()
    one = [whole[i : i + 1] for i in range(len(whole) - 1)]
    tracemalloc.start()
    for piece in one:
        stream.data(piece, end=False)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert line.kept > size - 10
    assert kept < 2 * size
    stream.data(whole[-1:], end=True)
    assert listener.heard == [b"x" * size]

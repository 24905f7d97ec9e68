"""A response as a picker sees it pass: when it began, what it counts, how it ended.

Owns the reading of headers and of a body's pieces; keeps no more of a body than its last bytes. What it
finds is an `Outcome`, as the access log's records are.
"""

from __future__ import annotations

import re

from extproc._pb import ext_proc_pb2 as pb
from extproc.core.contract import GENERATED_TOKENS_HEADER, PROMPT_TOKENS_HEADER
from extproc.core.outcome import End, Outcome, Reservation
from extproc.core.request import RouteKind
from extproc.wire.accesslog import TOKENS_MAX
from extproc.wire.ended import ErrorOrigin, came_to_nothing, end_of, fault_of
from extproc.wire.stream_events import StreamEvents, error_in, no_answer_in

#: So much of a body's end is looked through for counts: an OpenAI usage object, TGI's details.
TAIL_BYTES = 16 * 1024
#: So much of a whole answer's beginning is looked into for an error.
HEAD_BYTES = 4 * 1024

# In generated text quotes are escaped, so that no text can look like these.
_PROMPT = re.compile(rb'"(?:prompt_tokens|input_length)"\s*:\s*(\d{1,9})\b')
#: The sum, which is the prompts' where nothing is generated: some rerankers say no other number.
_TOTAL = re.compile(rb'"total_tokens"\s*:\s*(\d{1,9})\b')
#: Of OpenAI's responses and Anthropic's messages, by their own names. Of the latter's prompt this is what no
#: cache held; what one held, and what was put into one, are said beside it.
_TURN_PROMPT = re.compile(rb'"input_tokens"\s*:\s*(\d{1,9})\b')
_TURN_OUTPUT = re.compile(rb'"output_tokens"\s*:\s*(\d{1,9})\b')
_CACHE_READ = re.compile(rb'"cache_read_input_tokens"\s*:\s*(\d{1,9})\b')
_CACHE_WRITTEN = re.compile(rb'"cache_creation_input_tokens"\s*:\s*(\d{1,9})\b')
#: What it says of the output is what a message begins with.
_STARTS = b'"message_start"'
_TURNS = frozenset({RouteKind.MESSAGES.value, RouteKind.RESPONSES.value})
_CACHED = re.compile(rb'"(?:cached_tokens|cache_n)"\s*:\s*(\d{1,9})\b')
_OUTPUT = re.compile(rb'"completion_tokens"\s*:\s*(\d{1,9})\b')
#: TGI's own count, which is of the best sequence alone.
_BEST = re.compile(rb'"generated_tokens"\s*:\s*(\d{1,9})\b')
#: TGI's events begin with their token's number.
_INDEX = re.compile(rb'^data:\s*\{"index":\s*(\d{1,9})\b', re.MULTILINE)
_WANTED = frozenset(
    {":status", "content-type", "content-length", GENERATED_TOKENS_HEADER, PROMPT_TOKENS_HEADER}
)
#: The last event of OpenAI's streams: clients hang up on it.
_DONE = b"data: [DONE]"


class Followed:
    """One request's response, from its headers to its end.

    `begun_ns` is when the request came, `start_unix_ns` the same in unix time, `trace` what rides with it.
    Whoever feeds it says what time it is.
    """

    __slots__ = (
        "_begun_ns",
        "_bodied",
        "_bytes",
        "_events",
        "_fault",
        "_headers",
        "_index",
        "_opening",
        "_request_bytes",
        "_reservation",
        "_start_unix_ns",
        "_tail",
        "_trace",
        "first_ns",
        "served_by",
        "status",
        "streams",
    )

    def __init__(
        self,
        reservation: Reservation,
        *,
        begun_ns: int,
        start_unix_ns: int = 0,
        trace: str = "",
        request_bytes: int = 0,
    ) -> None:
        self._reservation = reservation
        self._start_unix_ns, self._trace = start_unix_ns, trace
        self._begun_ns = begun_ns
        self._headers: dict[str, str] = {}
        self._tail = b""
        self._bytes, self._request_bytes = 0, request_bytes
        self._events = StreamEvents()
        self._fault = ErrorOrigin.NONE
        #: Whether its body passes here, or there is none: only then no byte of it means an empty one.
        self._bodied = False
        self._index: int | None = None
        #: The event that a message begins with, where it came in one piece: it alone may say the prompt.
        self._opening = b""
        #: 0 until the headers came.
        self.status = 0
        #: Whether it is a stream of events, answered well.
        self.streams = False
        #: When its first output came; None before.
        self.first_ns: int | None = None
        self.served_by = ""

    @property
    def refused(self) -> bool:
        """The engine said inside a 200 that it was overloaded."""
        return self._fault is ErrorOrigin.FULL

    @property
    def reservation_id(self) -> str:
        """Whose response it is."""
        return self._reservation.id

    def headers(self, message: pb.HttpHeaders, *, served_by: str) -> None:
        """The response's headers."""
        self.served_by, self._bodied = served_by, message.end_of_stream
        for header in message.headers.headers:
            if header.key in _WANTED:
                self._headers[header.key] = header.raw_value.decode("latin-1") or header.value
        status = self._headers.get(":status", "")
        self.status = int(status) if status.isascii() and status.isdigit() and len(status) == 3 else 0
        kind = self._headers.get("content-type", "").lower()
        self.streams = self.status == 200 and kind.startswith("text/event-stream")

    def body(self, piece: bytes, *, now_ns: int) -> bool:
        """A piece of the body; true when it holds a stream's first output, or a refusal.

        Lines that begin with ":" keep a connection alive and are no output.
        """
        self._bodied = True
        first = self.first_ns is None and piece != b"" and (piece[:1] != b":" or b"\ndata:" in piece)
        if first:
            self.first_ns = now_ns
        self._judge(piece, first=first)
        self._bytes += len(piece)
        self._tail = (self._tail + piece)[-TAIL_BYTES:] if len(piece) < TAIL_BYTES else piece[-TAIL_BYTES:]
        if self.streams:
            if not self._events.count and not self._opening and _STARTS in piece:
                self._opening = piece[piece.index(_STARTS) :].partition(b"\n")[0][:HEAD_BYTES]
            found = _last(_INDEX, piece)
            self._index = self._index if found is None else found
        return first and self.streams and (self.refused or self._fault is ErrorOrigin.NONE)

    def _judge(self, piece: bytes, *, first: bool) -> None:
        """What it says of an error inside a 200."""
        if self.streams:
            self._events.saw(piece)
        if self._fault is ErrorOrigin.NONE and self.status == 200:
            self._fault = fault_of(self._events.error if self.streams else self._said(piece) if first else "")

    def _said(self, piece: bytes) -> str:
        """What a whole answer says of an error; of the file's own routes nobody knows what is none."""
        head = piece[:HEAD_BYTES]
        own = self._reservation.route == RouteKind.OTHER.value
        kind = self._headers.get("content-type", "").lower()
        return error_in(head) or ("" if own else no_answer_in(head, kind))

    def outcome(self, *, now_ns: int, complete: bool) -> Outcome:
        """How the request ended; `complete` is false where the response was cut.

        Who cut it does not show here: a client that left is by far the commonest.
        """
        if self.streams and complete:
            self._events.ended()
            self._judge(b"", first=False)
        made = self._fault is ErrorOrigin.NONE or self._events.count > 0
        seen = self.first_ns is not None and self._reservation.stream and self.status == 200 and made
        prompt, output, cached = self._turn() if self._reservation.route in _TURNS else self._usual()
        return Outcome(
            reservation=self._reservation,
            final=True,
            status=self.status,
            end=self._end(complete=complete),
            # Without a word on it nobody can say that it was another than the first that was named.
            served_by=self.served_by or (self._reservation.address if self.status else ""),
            attempts=self._attempts,
            duration_ns=now_ns - self._begun_ns,
            ttft_ns=self.first_ns - self._begun_ns if seen and self.first_ns is not None else None,
            prompt_tokens=_bounded(prompt),
            output_tokens=_bounded(output),
            cached_tokens=_bounded(cached),
            refused=self.refused,
            error_said=self._fault is ErrorOrigin.ENGINE,
            events=self._events.count if self.streams else None,
            request_bytes=self._request_bytes,
            response_bytes=self._bytes if self.status == 200 else 0,
            start_unix_ns=self._start_unix_ns,
            trace=self._trace,
        )

    def _usual(self) -> tuple[int | None, int | None, int | None]:
        """What the engine counted, prompt, output and cached, by OpenAI's names and TGI's."""
        output = _last(_OUTPUT, self._tail)
        if output is None:
            best = _last(_BEST, self._tail)
            best = self._counted(GENERATED_TOKENS_HEADER) if best is None else best
            output = None if best is None else best * max(1, self._reservation.permits)
        if output is None:
            output = self._index
        prompt = _last(_PROMPT, self._tail)
        if prompt is None:
            prompt = self._counted(PROMPT_TOKENS_HEADER)
        if prompt is None and self._reservation.max_new_tokens == 0:
            prompt = _last(_TOTAL, self._tail)
        return prompt, output, _last(_CACHED, self._tail)

    def _turn(self) -> tuple[int | None, int | None, int | None]:
        """The same of responses and messages."""
        *_, tail = self._tail.rpartition(_STARTS)
        if len(tail) < len(self._tail):
            *_, tail = tail.partition(b"\n")
        said = self._opening + b"\n" + tail
        prompt, read = _last(_TURN_PROMPT, said), _last(_CACHE_READ, said)
        written = _last(_CACHE_WRITTEN, said)
        if prompt is not None:
            prompt += (read or 0) + (written or 0)
        cached = read if read is not None or written is not None else _last(_CACHED, tail)
        return prompt, _last(_TURN_OUTPUT, tail), cached

    def heartbeat(self, *, now_ns: int) -> Outcome:
        """It still runs."""
        return Outcome(
            reservation=self._reservation,
            final=False,
            status=self.status,
            served_by=self.served_by,
            attempts=self._attempts,
            duration_ns=now_ns - self._begun_ns,
            output_tokens=self._index,
            events=self._events.count if self.streams else None,
            request_bytes=self._request_bytes,
            response_bytes=self._bytes if self.status == 200 else 0,
        )

    @property
    def _whole(self) -> bool:
        """Whether all of it went by, though its end did not: a client that has all may close at once."""
        length = self._counted("content-length")
        if length is not None:
            return self._bytes >= length
        return self.streams and self._tail.rstrip().endswith(_DONE)

    @property
    def _attempts(self) -> int:
        """At least so many: another than the first that was named serves after that one failed."""
        return 1 if self.served_by in ("", self._reservation.address) else 2

    def _end(self, *, complete: bool) -> End:
        gone = not complete and not self._whole
        empty = self._bodied and came_to_nothing(self.status, self._reservation, size=self._bytes)
        return end_of(self.status, self._fault, gone=gone, broke=empty)

    def _counted(self, name: str) -> int | None:
        text = self._headers.get(name, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _last(pattern: re.Pattern[bytes], data: bytes) -> int | None:
    found = None
    for found in pattern.finditer(data):  # noqa: B007 (the last one counts)
        pass
    return None if found is None else int(found.group(1))


def _bounded(count: int | None) -> int | None:
    return count if count is not None and count <= TOKENS_MAX else None

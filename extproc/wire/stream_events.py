"""What passes of a stream's body, piece by piece: events that hold a token, an error, the end.

The same as Envoy's script does (control/lua/first_chunk.lua), for responses that pass through a picker: a
test holds the two equal. Keeps no more of a body than a piece's last bytes.
"""

from __future__ import annotations

import re

from extproc.core.contract import NO_ANSWER
from extproc.core.routes import ends

#: So much of what an engine says of an error is kept.
ERROR_BYTES = 512
#: Of a line that is longer only its head and its last bytes are kept until it is whole.
LINE_BYTES, LINE_HEAD_BYTES, LINE_TAIL_BYTES = 4096, 512, 1024

# In generated text quotes and line ends are escaped, so that no text can look like these.
_ERROR = re.compile(
    rb'"error"\s*:\s*[{"]|"(?:object|finish_reason)"\s*:\s*"error"|^error: |'
    # SGLang's own streams say so of what they gave up, with a status.
    rb'"finish_reason"\s*:\s*\{\s*"type"\s*:\s*"abort"'
)
#: What FastAPI's own errors look like, and a page.
_NO_ANSWER = re.compile(rb'\s*(?:\{\s*"detail"\s*:|<)')
#: Engines write a choice an event; a gateway before them may put several together.
_CHOICE = b'"finish_reason"'
_NO_CHOICE = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_ROLE = re.compile(rb'"role"\s*:\s*"')
_EMPTY = re.compile(rb'"content"\s*:\s*(?:""|null)')
_OUTPUT = re.compile(rb'"finish_reason"\s*:\s*"|"reasoning[A-Za-z_]*"\s*:\s*"[^"]|"arguments"\s*:\s*"[^"]')
_DONE = re.compile(rb"data:\s*\[DONE\]")
# A name of one word, but for "error" and "ping", is SSE's own "message" or an engine's: such an event is read
# as one without a name. Those of responses and messages have parts.
_NAME = re.compile(rb"event:\s*((?:error|ping)\b(?![_.])|[A-Za-z0-9]*[_.][A-Za-z0-9_.]*)")
#: The names of the last events of streams whose events have names.
_ENDS = frozenset(name.encode() for name in ends())


def error_in(text: bytes) -> str:
    """What an engine says of an error, from its name on; empty where it says nothing."""
    found = _ERROR.search(text)
    return (
        "" if found is None else text[found.start() : found.start() + ERROR_BYTES].decode("utf-8", "replace")
    )


def no_answer_in(text: bytes, kind: str) -> str:
    """What stands in a whole answer's place, by its content type; empty where it may be one."""
    page = kind.startswith("text/html")
    if not page and not (kind.startswith("application/json") and _NO_ANSWER.match(text)):
        return ""
    return NO_ANSWER + text[:ERROR_BYTES].decode("utf-8", "replace")


class StreamEvents:
    """Counts one stream's events."""

    __slots__ = ("_data", "_name", "_rest", "count", "done", "error")

    def __init__(self) -> None:
        self.count = 0
        self.error = ""
        self.done = False
        #: What has come of a line that is not whole.
        self._rest = b""
        #: The last event's name, where events have names; b"" where they have none.
        self._name = b""
        #: The data of an event that has not ended; empty where there is none.
        self._data = b""

    def ended(self) -> None:
        """The body ends: its last line may have no end, and its last event no empty line."""
        self.saw(b"\n\n")

    def saw(self, piece: bytes) -> None:
        """The next piece of the body."""
        if not piece:
            return
        *lines, rest = (self._rest + piece).split(b"\n")
        long = len(rest) > LINE_BYTES
        self._rest = rest[:LINE_HEAD_BYTES] + rest[-LINE_TAIL_BYTES:] if long else rest
        for line in lines:
            if line in (b"", b"\r"):
                # An event ends with an empty line, and its name with it.
                self._event()
                self._name = b""
            elif line.startswith(b"data:"):
                self._line(line)
            elif line.startswith(b"event:"):
                found = _NAME.match(line)
                self._name = b"" if found is None else found[1]
            else:
                self.error = self.error or error_in(line)

    def _line(self, line: bytes) -> None:
        """An event's first line of data, or what goes on in it. Some write no empty line between two events:
        what was whole before this line is an event of its own."""
        if self._data and not self._data.rstrip().endswith(b"}"):
            data = self._data + line[5:]
            self._data = data if len(data) <= LINE_BYTES else data[:LINE_HEAD_BYTES] + data[-LINE_TAIL_BYTES:]
            return
        self._event()
        self._data = line
        if _DONE.match(line):
            self._event()

    def _event(self) -> None:
        """An event is whole: what its data comes to."""
        data, self._data = self._data, b""
        if not data:
            return
        said = error_in(data)
        if said or self._name == b"error":
            # OpenAI's own error event has no object of that name: what it says is the event.
            self.error = self.error or said or data[5 : 5 + ERROR_BYTES].decode("utf-8", "replace")
        elif self._name:
            self._named()
        elif not (_is_bare if self.count == 0 else _is_bare_later)(data):
            self.count += max(1, data.count(_CHOICE))
        elif _DONE.match(data):
            self.done = True

    def _named(self) -> None:
        """One event with a name, as OpenAI's responses and Anthropic's messages have them."""
        if self._name.endswith(b"delta") and self._name != b"message_delta":
            self.count += 1
        elif self._name in _ENDS:
            self.done = True


def _is_bare(event: bytes) -> bool:
    """An event that holds no token: usage, the end, or what opens a choice."""
    if _DONE.match(event) or _NO_CHOICE.search(event):
        return True
    return bool(_ROLE.search(event) and _EMPTY.search(event)) and not _OUTPUT.search(event)


def _is_bare_later(event: bytes) -> bool:
    """The same once tokens have come: no choice opens without one."""
    return bool(_DONE.match(event) or _NO_CHOICE.search(event))

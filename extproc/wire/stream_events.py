"""What passes of a stream's body, piece by piece: events that hold a token, an error, the end.

The same as Envoy's script does (control/lua/first_chunk.lua), for responses that pass through a picker: a
test holds the two equal. Keeps no more of a body than a piece's last bytes.
"""

from __future__ import annotations

import re

#: So much of what an engine says of an error is kept.
ERROR_BYTES = 512

# In generated text quotes and line ends are escaped, so that no text can look like these.
_ERROR = re.compile(rb'"error"\s*:\s*[{"]|"object"\s*:\s*"error"|(?:^|\n)error: ')
_USAGE = re.compile(rb'"choices": ?\[\]')
_BARE = re.compile(rb'^data:\s*\[DONE\]|"choices"\s*:\s*\[\s*\]')
_ROLE = re.compile(rb'"role"\s*:\s*"')
_EMPTY = re.compile(rb'"content"\s*:\s*(?:""|null)')
_OUTPUT = re.compile(rb'"finish_reason"\s*:\s*"|"reasoning[A-Za-z_]*"\s*:\s*"[^"]|"arguments"\s*:\s*"[^"]')
_DONE = b"data: [DONE]"


def error_in(text: bytes) -> str:
    """What an engine says of an error, from its name on; empty where it says nothing."""
    found = _ERROR.search(text)
    return (
        "" if found is None else text[found.start() : found.start() + ERROR_BYTES].decode("utf-8", "replace")
    )


class StreamEvents:
    """Counts one stream's events."""

    __slots__ = ("_rest", "count", "done", "error")

    def __init__(self) -> None:
        self.count = 0
        self.error = ""
        self.done = False
        #: The last bytes of a line that goes on in the next piece; a line's end where none does.
        self._rest = b"\n"

    def saw(self, piece: bytes) -> None:
        """The next piece of the body."""
        if not piece:
            return
        whole = piece if self._rest == b"\n" else self._rest + piece
        at = 0 if self._rest == b"\n" and whole.startswith(b"data:") else _next(whole, 0)
        if not self.error:
            self.error = error_in(whole)
        if self.count == 0:
            self.count = _first(whole, at)
        else:
            while at >= 0:
                self.count += 1
                at = _next(whole, at)
            if _USAGE.search(whole):
                self.count -= 1
        if not self.done and _DONE in whole[-16:]:
            self.done = True
            self.count = max(0, self.count - 1)
        self._rest = b"\n" if whole.endswith(b"\n") else whole[-5:]


def _next(text: bytes, start: int) -> int:
    at = text.find(b"\ndata:", start)
    return at + 1 if at >= 0 else -1


def _first(text: bytes, at: int) -> int:
    """Events that hold a token, until one does: from then on each that begins is taken to."""
    count = 0
    while at >= 0:
        following = _next(text, at)
        if count or not _is_bare(text[at : following if following >= 0 else len(text)]):
            count += 1
        at = following
    return count


def _is_bare(event: bytes) -> bool:
    if _BARE.search(event) or error_in(event):
        return True
    return bool(_ROLE.search(event) and _EMPTY.search(event)) and not _OUTPUT.search(event)

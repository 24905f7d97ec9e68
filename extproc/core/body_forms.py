"""The head of a form: multipart/form-data, of which the fields before the file are read.

Owns the reading of what came of a body so far; the file in it is passed on by Envoy and never comes here. A
field that stands behind the file is not seen: the header for the model names it then, or nothing does.
"""

from __future__ import annotations

import re
from typing import Final

from extproc.core.errors import Error
from extproc.core.hints import flag
from extproc.core.outcome import Reject
from extproc.core.request import Request
from extproc.core.routes import Route

#: So much of a form is looked at: the fields of a client's library have a few hundred bytes.
HEAD_BYTES_MAX: Final = 64 * 1024
#: Fields before the file that are looked at, and bytes of one that counts.
FIELDS_MAX, FIELD_BYTES_MAX = 64, 1_024
#: Bytes of sound that a token stands for, where nobody has heard it yet: 16 kB a second, as speech is mostly
#: packed, and 50 tokens a second, as Whisper's encoder makes them.
SOUND_BYTES_A_TOKEN: Final = 320

_NAME: Final = re.compile(rb'(?:^|;)\s*name="?([^";\r\n]*)"?', re.IGNORECASE)
_FILE: Final = re.compile(rb";\s*filename", re.IGNORECASE)
_DISPOSITION: Final = re.compile(rb"^content-disposition:([^\r\n]*)", re.IGNORECASE | re.MULTILINE)


def read_form(route: Route, body: bytes) -> Request | Reject:
    """The model and whether its answer streams; the sound's size is its sender's to declare.

    Refuses what is no form: one begins with its boundary.
    """
    fields = form_fields(body)
    if isinstance(fields, Reject):
        return fields
    model = fields.get("model", b"").decode("utf-8", "replace").strip()
    return Request(
        kind=route.kind,
        dialect=route.dialect,
        model=model or None,
        stream=flag(b'"%b"' % word if (word := fields.get("stream", b"").strip().lower()) else b""),
    )


def form_fields(body: bytes) -> dict[str, bytes] | Reject:
    """The fields before the file, by name, as far as a form's head holds them; Reject where it is no form."""
    head = body[:HEAD_BYTES_MAX]
    line, end, _ = head.partition(b"\r\n")
    boundary = line.rstrip(b" \t")
    if not body:
        return Error.INVALID_REQUEST.reject("the body is empty")
    if not end or not boundary.startswith(b"--") or len(boundary) <= 2:
        return Error.INVALID_REQUEST.reject("the body is no multipart/form-data: it begins with no boundary")
    fields = _fields(head, boundary)
    if fields is None:
        return Error.INVALID_REQUEST.reject("a part of the form has no name")
    return fields


def sound_tokens(size: int) -> int:
    """What a file of so many bytes is taken to be, in tokens of a prompt."""
    return max(1, size // SOUND_BYTES_A_TOKEN)


def _fields(head: bytes, boundary: bytes) -> dict[str, bytes] | None:
    """The fields that came whole, by name; None where a part has no name."""
    found: dict[str, bytes] = {}
    parts = head[len(boundary) :].split(b"\r\n" + boundary, FIELDS_MAX)
    # The last came whole only if it is the form's end.
    for number, part in enumerate(parts):
        about, end, value = part.partition(b"\r\n\r\n")
        if not end:
            break
        disposition = _DISPOSITION.search(about.lstrip(b"\r\n"))
        name = _NAME.search(disposition.group(1)) if disposition is not None else None
        if disposition is None or name is None:
            return None
        if _FILE.search(disposition.group(1)) is None and number < len(parts) - 1:
            found[name.group(1).decode("utf-8", "replace")] = value[:FIELD_BYTES_MAX]
    return found

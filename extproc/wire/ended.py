"""How a request ended, by what Envoy saw of its end and what the engine said inside its answer.

Owns the reading of an engine's error message: whose fault it says that it is. Engines send errors inside a
200, since their stream has begun by then; what they say is cut and comes as text, not as JSON.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from extproc.core.outcome import End, Reservation

_CODE = re.compile(r'"(?:code|status|status_code)"\s*:\s*"?(\d{3})\b')
#: The kinds and messages with which engines refuse what only the request is to blame for. TGI says 422 of
#: everything on its OpenAI routes, so that its words count there.
_REJECTS = re.compile(
    r'"(?:validation|template_error|tool_error|missing_template_variable|invalid_request_error|'
    r"BadRequestError|NotFoundError|UnprocessableEntityError)\"|"
    r'"(?:Input validation|Template|Tool) error:'
)

#: What an engine answers on a route that it knows and does not serve: llama.cpp for embeddings without its
#: flag for them.
NOT_IMPLEMENTED: Final = 501


class ErrorOrigin(Enum):
    """Whose fault an error is."""

    NONE = "none"
    FULL = "full"  # the engine's, for want of room
    REQUEST = "request"
    ENGINE = "engine"


def fault_of(said: str) -> ErrorOrigin:
    """What an engine said of an error, from its name on."""
    if not said:
        return ErrorOrigin.NONE
    found = _CODE.search(said)
    code = int(found.group(1)) if found is not None else 0
    if "overloaded" in said or code == 429:
        return ErrorOrigin.FULL
    if _REJECTS.search(said) or 400 <= code < 500:
        return ErrorOrigin.REQUEST
    return ErrorOrigin.ENGINE


def came_to_nothing(status: int, reservation: Reservation, *, size: int) -> bool:
    """Whether an answer that came whole, of so many bytes, is none: something was to be generated."""
    return not size and status == 200 and bool(reservation.permits) and reservation.max_new_tokens != 0


def end_of(status: int, fault: ErrorOrigin, *, gone: bool, broke: bool) -> End:
    """How it ended; `gone`: the client left before the end, `broke`: the connection to the engine did, or its
    answer came to nothing.

    An error that was said counts before whatever came after: a client mostly hangs up on it.
    """
    if fault in (ErrorOrigin.FULL, ErrorOrigin.REQUEST):
        return End.REFUSED
    if fault is ErrorOrigin.ENGINE:
        return End.ERROR
    if gone:
        return End.CLIENT_GONE
    if status == NOT_IMPLEMENTED:
        # It says that it has no such route, or was not started with it: it answers, and well.
        return End.REFUSED
    if broke or status >= 500 or status == 0:
        return End.ERROR
    return End.REFUSED if status >= 400 else End.OK

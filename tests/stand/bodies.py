"""Bodies as a route reads them."""

from __future__ import annotations

import json
from typing import Any

from extproc.core.outcome import Reject
from extproc.core.reading import parse
from extproc.core.request import Request
from extproc.core.routes import ROUTES


def read(path: str, body: Any) -> Request | Reject:
    """What a body sent to a path asks for, or why it is refused."""
    return parse(ROUTES[path][0], json.dumps(body).encode())


def good(path: str, body: Any) -> Request:
    """The same of one that must be a request."""
    request = read(path, body)
    assert isinstance(request, Request), request
    return request

"""`ast.parse` for threads: CPython up to 3.11.7 and 3.12.1 keeps one recursion counter for all of them.

Whoever formats a traceback parses source (pytest's excerpts, `traceback`'s carets). Where two threads do so
at once, or a finaliser does so inside another's parse, CPython finds its counter changed and raises
`SystemError: AST constructor recursion depth mismatch` (gh-106905) out of code that never expects one: a
test that failed beside threads ended its pytest process, and with it whatever else was to run there. Asked
again, it parses well.
"""

from __future__ import annotations

import ast
import functools
import threading
from collections.abc import Callable
from typing import Any

#: A finaliser can only run so often inside one parse.
TRIES_MAX = 100
COMPLAINT = "AST constructor recursion depth mismatch"


def steady(parse: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, one caller at a time, once more where CPython miscounted."""
    turn = threading.RLock()

    @functools.wraps(parse)
    def parsed(*arguments: Any, **named: Any) -> Any:
        for left in range(TRIES_MAX, -1, -1):
            try:
                with turn:
                    return parse(*arguments, **named)
            except SystemError as error:
                if not left or COMPLAINT not in str(error):
                    raise
        raise AssertionError("unreachable")

    return parsed


def install() -> None:
    """For this process; a second call changes nothing."""
    if not hasattr(ast.parse, "__wrapped__"):
        ast.parse = steady(ast.parse)

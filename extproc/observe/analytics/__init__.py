"""Figures of a fleet's past: by tenant, pool, model and strategy, by minute, hour and day (UTC), with a set
retention; mergeable, so that services' figures add up.

Knows nothing of the loop and of threads: the running service's side is `extproc.app.analysing`.
"""

from __future__ import annotations

from extproc.observe.analytics.books import Books
from extproc.observe.analytics.listener import Listener
from extproc.observe.analytics.query import Answer, Line, Query
from extproc.observe.analytics.reporting import report
from extproc.observe.analytics.row import Key, Row
from extproc.observe.analytics.sketch import Sketch
from extproc.observe.analytics.spans import Retention
from extproc.observe.analytics.store import Entry, MemoryStore, Store, StoreError

__all__ = [
    "Answer",
    "Books",
    "Entry",
    "Key",
    "Line",
    "Listener",
    "MemoryStore",
    "Query",
    "Retention",
    "Row",
    "Sketch",
    "Store",
    "StoreError",
    "report",
]

"""Figures of a fleet's past: by tenant, pool, model and strategy, by minute, hour and day (UTC), with a set
retention; mergeable, so that services' figures add up.

Knows nothing of the loop and of threads: the running service's side is `extproc.service.analytics`.
"""

from __future__ import annotations

from extproc.observe.analytics.books import OpenSpans
from extproc.observe.analytics.listener import Listener
from extproc.observe.analytics.query import Query, QueryLine, QueryResult
from extproc.observe.analytics.reporting import report
from extproc.observe.analytics.row import AnalyticsRow, RowKey
from extproc.observe.analytics.spans import Retention
from extproc.observe.analytics.store import AnalyticsStore, MemoryStore, StoredRow, StoreError

__all__ = [
    "AnalyticsRow",
    "AnalyticsStore",
    "Listener",
    "MemoryStore",
    "OpenSpans",
    "Query",
    "QueryLine",
    "QueryResult",
    "Retention",
    "RowKey",
    "StoreError",
    "StoredRow",
    "report",
]

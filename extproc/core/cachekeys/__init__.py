"""What of requests and answers may be cached, and under which key. Pure.

Owns the canonical form of a body, what counts as deterministic, the key, and what a whole answer is. Where
answers are kept is extproc.cache's.
"""

from __future__ import annotations

from extproc.core.cachekeys.answers import Wrong, judge
from extproc.core.cachekeys.canonical import Uncanonical, canonical
from extproc.core.cachekeys.eligible import Unfit, unfit
from extproc.core.cachekeys.marking import marked
from extproc.core.cachekeys.values import (
    CACHED_KINDS,
    AskAnswer,
    CacheCharge,
    CachedAnswer,
    CacheDirective,
    CacheRule,
    SemanticAsk,
    SemanticRule,
    Usage,
    WantedAnswer,
    digest,
)

__all__ = [
    "CACHED_KINDS",
    "AskAnswer",
    "CacheCharge",
    "CacheDirective",
    "CacheRule",
    "CachedAnswer",
    "SemanticAsk",
    "SemanticRule",
    "Uncanonical",
    "Unfit",
    "Usage",
    "WantedAnswer",
    "Wrong",
    "canonical",
    "digest",
    "judge",
    "marked",
    "unfit",
]

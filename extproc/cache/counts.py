"""What the response cache counts: what came of looks by tenant, and what hits saved.

Owns the bound of names.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec

from extproc.core.cachekeys import Usage

#: Tenants that are counted by name; those beyond are one.
COUNTED_TENANTS_MAX: Final = 1_000
OTHER: Final = "(other)"


class CacheSaved(msgspec.Struct):
    """What a tenant's hits did not ask of an engine: tokens by its counts, and replica time as measured."""

    hits: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    gpu_ms: float = 0.0


class CacheCounts:
    """Counts since the start."""

    def __init__(self) -> None:
        #: By tenant and outcome: hit, miss, or why neither was looked for.
        self.looked: Counter[tuple[str, str]] = Counter()
        self.saved: dict[str, CacheSaved] = {}

    def count(self, tenant: str, outcome: str) -> None:
        """One look."""
        key = (tenant, outcome)
        if key not in self.looked and tenant not in self.saved:
            if len(self.saved) >= COUNTED_TENANTS_MAX:
                key = (OTHER, outcome)
            self.saved.setdefault(key[0], CacheSaved())
        self.looked[key] += 1

    def save(self, tenant: str, usage: Usage, gpu_ms: float) -> None:
        """One hit."""
        saved = self.saved.get(tenant) or self.saved.setdefault(OTHER, CacheSaved())
        saved.hits += 1
        saved.input_tokens += usage.input_tokens
        saved.output_tokens += usage.output_tokens
        saved.gpu_ms += gpu_ms

"""The metrics of the running service: counts, and answers scrapes.

Owns when figures are read and rendered. The admin port serves what `exposition` gives.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from extproc.config.model import Config
from extproc.core.events import Observer
from extproc.core.scheduler import Scheduler
from extproc.core.tenant import Tenant
from extproc.observe.metrics.counting import Counting
from extproc.observe.metrics.snapshot import CacheSeen, MetricsSnapshot, ScalingSeen, TokensSeen, take
from extproc.service.parts import Part


def _no_rules() -> Mapping[str, bool]:
    return {}


def _render(snapshot: MetricsSnapshot, accept: str) -> tuple[bytes, str]:
    """In a thread: the first time it loads the client library too, longer than an event loop may stand."""
    from extproc.observe.metrics.exposition import render

    return render(snapshot, accept)


class MetricsPart(Part):
    """The part that counts."""

    name = "metrics"

    def __init__(
        self,
        config: Config,
        scheduler: Scheduler,
        *,
        tenants: Callable[[], Mapping[str, Tenant]],
        clock: Callable[[], int],
    ) -> None:
        self._settings = config.metrics
        self._scheduler = scheduler
        self._clock = clock
        self.counting = Counting(scheduler, tenants=tenants, tenants_max=config.metrics.tenants_max)
        #: Alert rules by name, and whether each fires; set by who has them.
        self.firing: Callable[[], Mapping[str, bool]] = _no_rules
        #: Pools that scale; set by who plans for them.
        self.scaling: Callable[[], ScalingSeen] = ScalingSeen
        #: The response cache; set by who has it.
        self.caching: Callable[[], CacheSeen] = CacheSeen
        #: How prompts are counted; set by who counts them.
        self.tokens: Callable[[], TokensSeen] = TokensSeen
        #: The calls that load LoRA adapters, by pool, call and result; set by who makes them.
        self.adapter_calls: Callable[[], Mapping[tuple[str, str, str], int]] = dict
        #: What other parts show beside: prometheus_client's metrics, asked for on the event loop.
        self.extra: list[Callable[[], Iterable[Any]]] = []
        #: For how long what binds a pool has bound it; set by who watches.
        self.bound: Callable[[], Mapping[tuple[str, str], float]] = dict
        self.scrapes = 0
        self._scrape_ms = 0.0
        self._reading = asyncio.Lock()
        #: Scrapes that have not begun, by what they accept: who comes meanwhile shares them.
        self._next: dict[str, asyncio.Task[tuple[bytes, str]]] = {}

    @property
    def observers(self) -> tuple[Observer, ...]:
        """The counters."""
        return (self.counting,)

    def apply(self, config: Config) -> None:
        """Other bounds hold for new names."""
        self._settings = config.metrics
        self.counting.apply(config.metrics.tenants_max)

    def status(self) -> dict[str, object]:
        """How many label values there are, and how scrapes went."""
        return {
            "tenants_named": len(self.counting.tenants.named),
            "series": self.counting.series,
            "scrapes": self.scrapes,
            "scrape_ms": round(self._scrape_ms, 1),
        }

    async def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics' text and its content type, for an Accept header.

        One is made at a time; those who ask meanwhile share the next. Raises ImportError without the extra
        `admin`.
        """
        task = self._next.get(accept)
        if task is None:
            task = self._next[accept] = asyncio.create_task(self._expose(accept))
        # One who hangs up does not take the answer from the others.
        return await asyncio.shield(task)

    async def _expose(self, accept: str) -> tuple[bytes, str]:
        async with self._reading:
            del self._next[accept]
            begun = time.perf_counter()
            snapshot = await take(
                self.counting,
                self._scheduler,
                endpoints_max=self._settings.endpoints_max,
                clock=self._clock,
                bound=self.bound,
                firing=self.firing,
                scaling=self.scaling,
                cache=self.caching,
                tokens=self.tokens,
                adapter_calls=self.adapter_calls,
                extra=self.extra,
            )
            answer = await asyncio.to_thread(_render, snapshot, accept)
            self.scrapes += 1
            self._scrape_ms = (time.perf_counter() - begun) * 1e3
            return answer

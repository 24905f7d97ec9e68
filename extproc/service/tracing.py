"""Traces and GenAI metrics of the running service: built, exchanged at a reload, ended.

Owns the lives of the queue's threads and of the exporters, where secrets come from, and which service ends
the spans of one that is gone. What is noted, built and sent is observe/tracing's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from xxhash import xxh3_64_intdigest

from extproc import extras
from extproc.config.load import ConfigError, Problem
from extproc.config.model import Config
from extproc.config.tracing import OpenTelemetry
from extproc.core.events import Observer
from extproc.core.peers import Peers, owner_of
from extproc.observe.tracing.figures import SpanMetrics
from extproc.observe.tracing.pipeline import Pipeline
from extproc.observe.tracing.request_trace import NO_TRACES, RequestTraces
from extproc.observe.tracing.semconv import RELEASES
from extproc.observe.tracing.spans import Spans
from extproc.service.parts import Part
from extproc.wire.processor import Processor

if TYPE_CHECKING:
    from extproc.observe.tracing.otlp import Otlp

log = logging.getLogger(__name__)

#: How long what waits may take to leave at the end: spans, then the last metrics.
LAST_SPANS_S, LAST_METRICS_S = 3.0, 2.0
#: Longer than a silent peer counts as living, so that its heirs know.
ORPHAN_WAIT_NS = 5_000_000_000
HEADERS_BYTES_MAX = 64 * 1024


class TracingPart(Part):
    """The part that traces; without an `otel` section it does nothing."""

    name = "tracing"

    def __init__(
        self,
        config: Config,
        peers: Peers,
        processor: Processor,
        *,
        clock: Callable[[], int],
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Raises ConfigError where headers cannot be read, or a package is missing."""
        self._config = config
        self._peers = peers
        self._processor = processor
        self._clock = clock
        self._wall_ns = wall_ns
        self._rng = Random(os.urandom(16))  # two services must not draw the same ids
        self._line: _Line | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.request_traces: RequestTraces | None = None
        if config.otel is not None:
            self._set(config.otel)

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Who hears of requests' ends."""
        return (self.request_traces,) if self.request_traces is not None else ()

    async def start(self) -> None:
        """Begin to send."""
        if self._line is not None:
            await asyncio.to_thread(self._line.start)

    async def stop(self) -> None:
        """Send what waits, for a few seconds."""
        if self.request_traces is not None:
            self.request_traces.step(now_ns=self._clock(), last=True)
        if self._line is not None:
            await asyncio.to_thread(self._line.stop)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def step(self, *, now_ns: int) -> None:
        """Ends that were another service's are looked at again."""
        if self.request_traces is not None:
            self.request_traces.step(now_ns=now_ns)

    def apply(self, config: Config) -> None:
        """A new configuration holds: what goes to another place goes there from now on."""
        before, self._config = self._config, config
        if config.otel == before.otel:
            if self._line is not None:
                self._line.engines.update(engines_of(config))
            return
        old = self._line
        if config.otel is None:
            self.request_traces = self._line = None
            self._processor.request_traces = NO_TRACES
        else:
            try:
                self._set(config.otel)
            except ConfigError as error:
                self._config = before
                for problem in error.problems:
                    log.error("the old tracing goes on: %s", problem)
                return
        new = self._line

        def exchange() -> None:
            if new is not None:
                new.start()
            if old is not None:
                old.stop()

        task = asyncio.get_running_loop().create_task(asyncio.to_thread(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def status(self) -> dict[str, object]:
        """What was sent and what was not."""
        request_traces, line = self.request_traces, self._line
        if request_traces is None or line is None:
            return {"on": False}
        counts = line.pipeline.counts
        return {
            "on": True,
            "endpoint": line.settings.endpoint,
            "in_flight": request_traces.in_flight,
            **counts,
            "dropped": counts["dropped"] + request_traces.dropped,
        }

    def _set(self, settings: OpenTelemetry) -> None:
        line = _Line(
            settings,
            headers=export_headers(settings),
            engines=engines_of(self._config),
            instance=self._peers.own,
            seed=self._rng.getrandbits(64),
        )
        if self.request_traces is None:
            self.request_traces = RequestTraces(
                settings,
                clock=self._clock,
                wall_ns=self._wall_ns,
                rng=self._rng,
                offer=line.pipeline.offer,
                heir=self._heir,
                orphan_wait_ns=0 if self._alone else ORPHAN_WAIT_NS,
            )
        self.request_traces.settings, self.request_traces.offer = settings, line.pipeline.offer
        self._line, self._processor.request_traces = line, self.request_traces

    @property
    def _alone(self) -> bool:
        return self._config.sharing is None and len(self._config.service_addresses) <= 1

    def _heir(self, reservation_id: str) -> bool:
        """Whether it is on this service to end a request that another life of the service decided on.

        Where several services share nothing, none can tell whether another lives; each ends its own then.
        """
        if self._config.sharing is None:
            return self._alone
        decider, peers = owner_of(reservation_id), self._peers
        if decider in peers:
            return False
        heirs: set[str] = {peers.own, *peers}
        return min(heirs, key=lambda name: hash_of(name, reservation_id)) == peers.own


class _Line:
    """One collector's way: the queue, what works on it, the exporters."""

    def __init__(
        self,
        settings: OpenTelemetry,
        *,
        headers: Mapping[str, str],
        engines: dict[str, str],
        instance: str,
        seed: int,
    ) -> None:
        self.settings = settings
        self.engines = engines
        self.pipeline = Pipeline(queue_max=settings.queue_max, interval_s=settings.export_interval_ms / 1000)
        self._headers = headers
        self._instance = instance
        self._seed = seed
        self._otlp: Otlp | None = None

    def start(self) -> None:
        """Load the SDK and begin; takes half a second the first time."""
        from extproc.observe.tracing.otlp import Otlp

        settings, names = self.settings, RELEASES[self.settings.semconv]
        otlp = self._otlp = Otlp(settings, names, headers=self._headers, instance=self._instance)
        spans = Spans(names, engines=self.engines, rng=Random(self._seed))
        figures = SpanMetrics(names, otlp.record, engines=self.engines)
        self.pipeline.start(
            build=spans.of if settings.traces else None,
            send=otlp.send if settings.traces else None,
            measure=figures.measure if settings.metrics else None,
        )

    def stop(self) -> None:
        """Send what waits, as far as a few seconds go."""
        self.pipeline.stop(LAST_SPANS_S)
        if self._otlp is not None:
            self._otlp.close(LAST_METRICS_S)


def engines_of(config: Config) -> dict[str, str]:
    """The engine of each model and of each pool; a pool's name counts where both have the same."""
    models = {model: pool.engine for pool in config.pools for model in pool.models}
    return {**models, **{pool.name: pool.engine for pool in config.pools}}


def export_headers(settings: OpenTelemetry) -> dict[str, str]:
    """The headers of exports, those out of files and the environment included. Raises ConfigError.

    Also where the packages are missing that OTLP needs: nothing of this section works without them.
    """
    problems: list[Problem] = []
    if extras.missing("otel"):
        problems.append(Problem("", None, "otel", extras.needed("otel", by="it")))
    headers = dict(settings.headers)
    if settings.headers_file is not None:
        name = "otel.headers_file"
        try:
            text = Path(settings.headers_file).read_text(encoding="utf-8")[:HEADERS_BYTES_MAX]
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            problems.append(Problem(settings.headers_file, None, name, f"cannot be read: {reason}"))
        else:
            _read_headers(text, settings.headers_file, name, headers, problems)
    if settings.headers_env is not None:
        where = f"${settings.headers_env}"
        name, text = "otel.headers_env", os.environ.get(settings.headers_env, "")
        if text:
            _read_headers(text, where, name, headers, problems)
        else:
            problems.append(Problem(where, None, name, "is not set; export it, or remove headers_env"))
    if settings.ca_file is not None and not os.access(settings.ca_file, os.R_OK):
        problems.append(Problem(settings.ca_file, None, "otel.ca_file", "cannot be read"))
    if problems:
        raise ConfigError(problems)
    return headers


def _read_headers(text: str, where: str, name: str, headers: dict[str, str], problems: list[Problem]) -> None:
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key, colon, value = line.partition(":")
        if not colon or not key.strip() or not key.strip().isascii():
            # The line itself is not shown: it may be the secret.
            problems.append(Problem(where, number, name, "write each header as 'name: value'"))
            continue
        headers[key.strip().lower()] = value.strip()


def hash_of(name: str, reservation_id: str) -> int:
    """A number by which services agree on one of them for a request."""
    return xxh3_64_intdigest(f"{name} {reservation_id}".encode())

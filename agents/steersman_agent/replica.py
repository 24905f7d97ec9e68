"""The book of one replica: evidence in, its view out. Pure: replies come as values, seconds are handed in.

Owns which page is asked when, how figures and configuration combine, and how often to look.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, Final

from steersman_agent.config import AgentConfig, ReplicaSettings
from steersman_agent.engines import EngineAdapter, adapter
from steersman_agent.figures import About, ReplicaView, Scrape
from steersman_agent.kv_book import KvBook, merged
from steersman_agent.probe import Prober
from steersman_agent.rates import CounterRate
from steersman_agent.reply import PageReply, Reply
from steersman_agent.state import Channel, ReplicaState, Symptom, shown, worst

#: How often an engine is asked what it serves while nothing suggests that it changed.
ABOUT_S: Final = 30.0
#: … and while it serves the wrong model.
ABOUT_WRONG_S: Final = 1.0
#: A detail is cut at this many characters.
DETAIL_CHARACTERS_MAX: Final = 200
#: A server without a metrics page answers one of these: no trouble, only no figures.
_NO_SUCH_PAGE: Final = frozenset({404, 405, 501})
_NOT_SERVING: Final = frozenset(
    {ReplicaState.UNKNOWN, ReplicaState.LOADING, ReplicaState.GONE, ReplicaState.HUNG}
)


class ReplicaBook:
    """Everything known of one replica."""

    def __init__(self, settings: ReplicaSettings, config: AgentConfig) -> None:
        self.settings = settings
        self.engine: EngineAdapter = adapter(settings.engine)
        self.timeout_s = (settings.timeout_ms or self.engine.timeout_ms) / 1000
        self.prober = Prober(interval_s=config.probe_ms / 1000, timeout_s=self.timeout_s)
        self.draining = settings.address in config.drain
        self.gpu_uuids: tuple[str, ...] = ()
        #: One for each rank whose KV events are heard.
        self.kv_books: tuple[KvBook, ...] = ()
        self.no_metrics = False
        self._zone = settings.zone if settings.zone is not None else config.zone
        self._region = config.region
        self._fast_s, self._idle_s = config.poll_ms / 1000, config.poll_idle_ms / 1000
        self._health_s = config.health_ms / 1000
        self._metrics = Channel("metrics")
        self._health = Channel("health")
        self._model = Channel("model")
        self._scrape: Scrape | None = None
        self._scraped_s: float | None = None
        self._about = About()
        self._about_s = float("-inf")
        self._prefill, self._decode = CounterRate(), CounterRate()
        self._poll_s = self._fast_s
        #: Processes seen behind the address, less the first.
        self._starts = 0

    # Evidence.

    def on_metrics(self, reply: Reply, now_s: float) -> None:
        """`/metrics` was asked."""
        if not isinstance(reply, PageReply):
            self._metrics.feed(reply.signal, now_s, reply.detail)
            if reply.signal is Symptom.REFUSED:
                self._forget(now_s)
            self._set_pace(busy=False)
            return
        if reply.status in _NO_SUCH_PAGE:
            self.no_metrics, self._scrape, self._scraped_s = True, None, None
            self._metrics.feed(Symptom.ANSWERED, now_s)
            self.prober.observe((), now_s, work=False)
            self._set_pace(busy=False)
            return
        if not reply.good:
            signal = self.engine.health(reply.status)
            self._metrics.feed(signal, now_s, f"answered with status {reply.status}")
            self._set_pace(busy=False)
            return
        try:
            scrape = self.engine.scrape(reply.body)
        except ValueError as error:
            self._metrics.feed(Symptom.UNWELL, now_s, f"not Prometheus text: {error}")
            self._set_pace(busy=False)
            return
        if _began_anew(self._scrape, scrape):
            # Too quick to be met while nobody listened: what it serves is asked again at the next look.
            self._starts += 1
            self._about_s = float("-inf")
            self._prefill, self._decode = CounterRate(), CounterRate()
        changed = self._scrape is not None and (
            (scrape.running, scrape.waiting) != (self._scrape.running, self._scrape.waiting)
        )
        self.no_metrics, self._scrape, self._scraped_s = False, scrape, now_s
        self._metrics.feed(Symptom.ANSWERED, now_s)
        self._prefill.add(scrape.prompt_tokens, now_s)
        self._decode.add(scrape.output_tokens, now_s)
        moved = self.prober.observe(scrape.progress, now_s, work=scrape.work)
        self._set_pace(busy=scrape.work or changed or moved)

    def on_health(self, reply: Reply, now_s: float) -> None:
        """`/health` was asked."""
        if isinstance(reply, PageReply):
            detail = f"answered with status {reply.status}"
            self._health.feed(self.engine.health(reply.status), now_s, detail)
        else:
            self._health.feed(reply.signal, now_s, reply.detail)

    def on_about(self, replies: Mapping[str, Reply], now_s: float) -> None:
        """`engine.about_paths` were asked. Silence and trouble tell nothing; a missing page, no models."""
        pages: dict[str, Any] = {}
        for path, reply in replies.items():
            if not isinstance(reply, PageReply) or reply.status >= 500:
                return
            if reply.good:
                try:
                    pages[path] = json.loads(reply.body)
                except (ValueError, RecursionError):
                    continue  # an engine's page may hold anything, nested as deeply as it fits
        self._about, self._about_s = self.engine.about(pages), now_s
        serves = {*self._about.models, *(self._about.adapters or ())}
        missing = [model for model in self.settings.models if model not in serves]
        if missing and serves:
            detail = f"it serves {_some(self._about.models)}, and is configured for {_some(missing)}"
            self._model.feed(Symptom.WRONG_MODEL, now_s, detail)
        else:
            self._model.feed(Symptom.ANSWERED, now_s)

    def _forget(self, now_s: float) -> None:
        """Nobody listens: whatever comes next is another process, with a model yet to be seen."""
        self._starts += self._scrape is not None
        self._scrape, self._scraped_s = None, None
        self._about, self._about_s = About(), float("-inf")
        self._model.reset(now_s)
        self.prober.reset(now_s)
        self._prefill, self._decode = CounterRate(), CounterRate()

    # When to look.

    def _set_pace(self, *, busy: bool) -> None:
        """Fast while there is work, change or doubt; otherwise twice as slow each time, down to idle."""
        if busy or self._metrics.heading:
            self._poll_s = self._fast_s
        else:
            self._poll_s = min(2 * self._poll_s, self._idle_s)

    @property
    def metrics_pause_s(self) -> float:
        """Pause until `/metrics` is asked again."""
        return self._poll_s

    @property
    def health_pause_s(self) -> float:
        """Pause until `/health` is asked again."""
        return self._fast_s if self._health.heading else self._health_s

    def about_due(self, now_s: float) -> bool:
        """Whether to ask what it serves."""
        wrong = self._model.state is ReplicaState.WRONG_MODEL
        return now_s - self._about_s >= (ABOUT_WRONG_S if wrong else ABOUT_S)

    def prompt_due(self, now_s: float) -> bool:
        """Whether to send the prompt; not to one that does not even answer."""
        if self._metrics.state in _NOT_SERVING or self._health.state in _NOT_SERVING:
            return False
        return self.prober.due(now_s)

    def prompt(self) -> tuple[str, dict[str, Any]]:
        """Path and body of the prompt."""
        models = self._about.models or self.settings.models
        return self.engine.prompt(models[0] if models else None)

    # What is known.

    @property
    def state(self) -> ReplicaState:
        """The state to report."""
        return self._judge()[0]

    def _judge(self) -> tuple[ReplicaState, str]:
        named = worst((self._metrics, self._health, self._model, self.prober.channel))
        state, detail = named.state, named.detail
        if state in (ReplicaState.READY, ReplicaState.DEGRADED) and (
            self._metrics.state is ReplicaState.UNKNOWN
            or (self.settings.models and self._model.state is ReplicaState.UNKNOWN)
        ):
            return ReplicaState.UNKNOWN, "not yet looked at in full"
        final = shown(state, draining=self.draining)
        if final is ReplicaState.DRAINING:
            detail = "drained by configuration" + (f"; {detail}" if detail else "")
        return final, detail[:DETAIL_CHARACTERS_MAX]

    def view(self) -> ReplicaView:
        """The replica as it is reported."""
        settings, scrape, about = self.settings, self._scrape or Scrape(), self._about
        state, detail = self._judge()
        capacity = settings.kv_capacity_tokens or scrape.kv_capacity_tokens or about.kv_capacity_tokens
        return ReplicaView(
            address=settings.address,
            pool=settings.pool,
            zone=self._zone,
            region=self._region,
            engine=settings.engine,
            state=state,
            detail=detail,
            models=about.models or settings.models,
            revision=about.revision,
            adapters=scrape.adapters or (),
            loaded_adapters=scrape.loaded_adapters,
            served_adapters=about.adapters,
            waiting=scrape.waiting,
            running=scrape.running,
            kv_used_tokens=scrape.kv_used_tokens,
            kv_capacity_tokens=capacity,
            max_concurrent=settings.max_concurrent or about.max_concurrent,
            prefill_tokens_per_s=self._prefill.per_s(work=scrape.work),
            decode_tokens_per_s=self._decode.per_s(work=scrape.work),
            scraped_s=self._scraped_s,
            probe_ttft_ms=self.prober.ttft_ms,
            probed_s=self.prober.answered_s,
            probe_failures=self.prober.failures,
            gpu_uuids=self.gpu_uuids,
            engine_starts=self._starts,
            prefix_queried_tokens=scrape.prefix_queried_tokens,
            prefix_hit_tokens=scrape.prefix_hit_tokens,
            kv=merged(self.kv_books, time.monotonic()),
        )


def _began_anew(before: Scrape | None, now: Scrape) -> bool:
    """Whether a counter of tokens fell: they only grow as long as an engine lives."""
    if before is None:
        return False
    pairs = ((before.prompt_tokens, now.prompt_tokens), (before.output_tokens, now.output_tokens))
    # Gone altogether, as TGI's before its first request, is fallen too.
    return any(was and (is_now is None or is_now < was) for was, is_now in pairs)


def _some(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:2]) + (", …" if len(names) > 2 else "")

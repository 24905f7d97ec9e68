"""The running service's semantic cache: its process, its settings by the configuration, where it is kept.

Owns when there is one: where the section `cache` is there and a tenant has `cache.semantic`. Who is answered
from it is the response cache's.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING, Any

from extproc import extras
from extproc.cache.purging import AnswerOrigin, PurgeOrder
from extproc.cache.sealed import AnswerSeal
from extproc.cache.semantic.questions import SemanticCache
from extproc.cache.semantic.worker import EmbeddingWorker
from extproc.config.cache import SemanticConfig
from extproc.config.load import ConfigError, Problem
from extproc.config.model import Config
from extproc.config.secret import answer_keys
from extproc.observe.metrics.snapshot import SemanticSeen
from extproc.service.cache import CachePart
from extproc.service.parts import Part
from extproc.service.semantic_kept import KeptWords, kept_words

if TYPE_CHECKING:
    from extproc.cache.redis.questions import RedisQuestions

log = logging.getLogger(__name__)

#: Scopes shown in the status, those with most questions.
SCOPES_SHOWN_MAX = 100


class SemanticPart(Part):
    """The semantic cache of one service; no process is started before a tenant has it."""

    name = "semantic"

    def __init__(
        self,
        config: Config,
        caching: CachePart,
        *,
        instance: str,
        clock: Callable[[], int],
        chance: Random | None = None,
    ) -> None:
        self._caching, self._clock, self._config = caching, clock, config
        self._instance = instance
        # Numbers of checks are drawn from it: no two services may have the same.
        self._chance = chance or Random(secrets.randbits(128))
        #: What keeps questions for other services, or for the next start; None where nothing does.
        self.store: RedisQuestions | None = None
        self.kept: KeptWords | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self.worker: EmbeddingWorker | None = None
        self.questions: SemanticCache | None = None
        self._old: list[EmbeddingWorker] = []
        if wanted(config):
            unmet(config)
        self.apply(config)

    async def start(self) -> None:
        """Take what another service process left; begin the one that embeds, which loads its model."""
        if self.kept is not None and self.questions is not None:
            self.kept.load(self.questions, self._unwanted)
        self.step(now_ns=self._clock())

    async def stop(self) -> None:
        """End it, and keep what was learned."""
        if self.kept is not None and self.questions is not None:
            self.kept.last(self.questions)
        for each in (*self._old, *([self.worker] if self.worker is not None else [])):
            await each.stop()
        self._old.clear()
        if self.store is not None:
            await self.store.close()
        await asyncio.gather(*self._closing)

    def step(self, *, now_ns: int) -> None:
        """Have the process there, and what keeps it. Questions are stepped with the cache they belong to."""
        for each in self._old:
            each.retire()
        self._old.clear()
        if self.worker is not None:
            self.worker.step()
        if self.store is not None and not self.store.started:
            self.store.start(self._unwanted)
        if self.kept is not None and self.questions is not None:
            self.kept.step(self.questions, now_ns=now_ns)

    @property
    def waiting(self) -> bool:
        """Whether something is to be written."""
        return self.kept is not None and self.kept.waiting

    def write(self) -> None:
        """Write it."""
        if self.kept is not None:
            self.kept.write()

    def _unwanted(self, scope: str, whose: AnswerOrigin) -> bool:
        """Whether nobody may be given this: its tenant, its pool or its place in a group is gone."""
        return self._caching.unwanted(scope, whose) or whose.tenant not in wanted(self._config)

    def apply(self, config: Config) -> None:
        """A new configuration holds: another model is another process; nobody wants it, and it ends."""
        before, self._config = self._config, config
        cache = self._caching.cache
        section = config.cache.semantic if config.cache is not None else None
        if cache is None or section is None or not wanted(config):
            self._end()
        elif self.worker is None or (
            before.cache is not None
            and (before.cache.semantic.model, before.cache.semantic.tokenizer)
            != (section.model, section.tokenizer)
        ):
            self._end()
            self.worker = EmbeddingWorker(model=section.model, tokenizer=section.tokenizer)
            self.questions = SemanticCache(
                self.worker,
                budget_s=section.embed_budget_ms / 1e3,
                entries_max=section.entries_max,
                bytes_max=section.bytes_max,
                keep_ns=int(section.keep_s * 1e9),
                chance=self._chance,
                clock=self._clock,
            )
            self.questions.turned = _said
            self.worker.begun = self.questions.begun
            self._place(config, section)
        if self.questions is not None and section is not None:
            self.questions.budget_s = section.embed_budget_ms / 1e3
            self.questions.keep_ns = int(section.keep_s * 1e9)
            self.questions.entries_max, self.questions.bytes_max = section.entries_max, section.bytes_max
            if self.store is not None:
                self.store.seal = AnswerSeal(answer_keys(config.cache))
                self.store.keep_s = section.keep_s
            self._forget(before)
        if cache is not None:
            cache.semantic = self.questions

    def _place(self, config: Config, section: SemanticConfig) -> None:
        """Where what is learned is kept: in Redis with the answers, else on the disk."""
        cache, sharing, questions = config.cache, config.sharing, self.questions
        assert cache is not None
        assert questions is not None
        model_id = _model_id(section)
        if cache.store == "redis":
            assert sharing is not None
            from extproc.cache.redis.questions import RedisQuestions

            self.store = questions.store = RedisQuestions(
                sharing.redis,
                prefix=sharing.prefix,
                name=self._instance,
                seal=AnswerSeal(answer_keys(cache)),
                model_id=model_id,
                books=questions,
                keep_s=section.keep_s,
                budget_s=cache.store_budget_ms / 1e3,
                clock=self._clock,
            )
        else:
            self.kept = kept_words(config, model_id=model_id, clock=self._clock)

    def _forget(self, before: Config) -> None:
        """Who does not want it any more leaves nothing behind."""
        assert self.questions is not None
        had, has = wanted(before), wanted(self._config)
        left = had - has
        if left:
            self.questions.purge([PurgeOrder(tenant=name) for name in sorted(left)])

    def _end(self) -> None:
        if self.worker is not None:
            self._old.append(self.worker)
        if self.store is not None and self.store.started:
            closing = asyncio.get_running_loop().create_task(self.store.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        self.worker = self.questions = self.store = self.kept = None

    def status(self) -> dict[str, Any]:
        """For `steersman status` and `steersman cache stats`; empty where there is none."""
        questions, worker = self.questions, self.worker
        if questions is None or worker is None:
            return {}
        requests: dict[str, dict[str, int]] = {}
        for (tenant, outcome), count in sorted(questions.looked.items()):
            requests.setdefault(tenant, {})[outcome] = count
        scopes = sorted(questions.figures().items(), key=lambda item: -item[1]["questions"])
        return {
            "up": worker.up,
            "kept": "redis" if self.store is not None else "file" if self.kept is not None else "memory",
            "away": self.store is not None and not self.store.connected,
            "store_refused": {} if self.store is None else dict(self.store.refused),
            "questions": sum(len(scope.entries) for scope in questions.scopes.values()),
            "bytes": questions.size,
            "bytes_max": questions.bytes_max,
            "evicted": questions.evicted,
            "process": dict(worker.counts),
            "requests": requests,
            "refused": dict(questions.refused),
            "checks": dict(questions.checks),
            "scopes": dict(scopes[:SCOPES_SHOWN_MAX]),
        }

    def seen(self) -> SemanticSeen:
        """For the metrics."""
        questions, worker = self.questions, self.worker
        if questions is None or worker is None:
            return SemanticSeen()
        return SemanticSeen(
            requests=dict(questions.looked),
            refused=dict(questions.refused),
            checks=dict(questions.checks),
            questions=sum(len(scope.entries) for scope in questions.scopes.values()),
            off=sum(scope.off for scope in questions.scopes.values()),
            up=worker.up,
            on=True,
        )


def wanted(config: Config) -> set[str]:
    """The tenants that have it."""
    if config.cache is None:
        return set()
    return {
        tenant.name
        for tenant in config.tenants
        if tenant.cache is not None and tenant.cache.semantic is not None
    }


def _model_id(section: SemanticConfig) -> str:
    """What embeds, by its files' names; "" for the extra's own."""
    if not (section.model or section.tokenizer):
        return ""
    return sha256(f"{section.model}\n{section.tokenizer}".encode()).hexdigest()[:16]


def unmet(config: Config) -> None:
    """Raise ConfigError where the extra is not installed."""
    name = min(wanted(config))
    if extras.missing("semantic"):
        line = extras.needed("semantic", by="it")
        raise ConfigError([Problem("", None, f"tenants[{name}].cache.semantic", line)])


def _said(scope: str, off: bool, checks: int, wrong: int) -> None:
    """A scope's error has passed its bound, or is within it again."""
    if off:
        log.warning(
            "semantic cache: off for %s: of %d answers that would have been given %d were wrong",
            scope,
            checks,
            wrong,
        )
    else:
        log.info("semantic cache: on again for %s (%d wrong of %d)", scope, wrong, checks)

"""The part that counts prompts: reads tokenizers, counts what waits, and learns from what engines tell.

Owns the time that counting takes. A decision asks `Calibration.counter`, which knows or does not; files are
read and texts are counted in threads, engines are asked beside the requests, within the pool's share of time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from extproc.config.model import Config
from extproc.config.tokenizers import PoolTokenizer
from extproc.core.decide import RoutingRequest
from extproc.core.events import Observer, Settled
from extproc.core.fleet import Fleet, Pool
from extproc.core.outcome import End, Reservation, Routed
from extproc.core.promptcount import PromptCount
from extproc.engines import traits_of
from extproc.observe.metrics.snapshot import TokensSeen
from extproc.service.parts import Part
from extproc.tokens.asked import ANSWER_BYTES_MAX, TOKENIZE_PATH, answered, believed, question
from extproc.tokens.counter import PoolCounter
from extproc.tokens.tokenizer import PROBES, FileTokenizer, TokenizerError, bias_of, load
from extproc.upstream import PLAIN, ReplicaAccess, read_bounded, tls_trouble

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

#: Characters counted in one go: a few milliseconds of a thread.
BATCH_CHARACTERS: Final = 4_096
#: How often a file is looked at, and a tokenizer that could not be used is tried again.
LOOK_S: Final = 5.0
#: An engine's patience for one text.
ASK_TIMEOUT_S: Final = 5.0
#: Requests whose counts are awaited; above it the oldest teaches nothing.
AWAITED_MAX: Final = 50_000

#: A file as it was read: its size and when it was changed.
_Stamp = tuple[int, int]


class _Source:
    """Where one pool's counts come from."""

    def __init__(self, settings: PoolTokenizer, counter: PoolCounter) -> None:
        self.settings, self.counter = settings, counter
        self.stamp: _Stamp | None = None
        self.tokenizer: FileTokenizer | None = None
        self.looked = -LOOK_S
        self.told = ""
        self.asked = 0
        self.wake = asyncio.Event()
        #: Each counts by itself: one whose engine hangs keeps nobody else waiting.
        self.task: asyncio.Task[None] | None = None
        counter.wake = self.wake.set


class TokensPart(Part, Observer):
    """Counts for every pool that has a tokenizer. `way` is how an address is asked, and by which
    name."""

    name = "tokens"

    def __init__(
        self,
        config: Config,
        fleet: Fleet,
        *,
        way: Callable[[str], tuple[ReplicaAccess, str]] = lambda _: (PLAIN, ""),
    ) -> None:
        self._fleet, self._way = fleet, way
        self._sources: dict[str, _Source] = {}
        self._awaited: OrderedDict[str, PromptCount] = OrderedDict()
        self._session: aiohttp.ClientSession | None = None
        self._running = False
        self.apply(config)

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Itself, where anything is counted."""
        return (self,) if self._sources else ()

    def apply(self, config: Config) -> None:
        """A new configuration: another tokenizer, or another engine, counts anew."""
        before, self._sources = self._sources, {}
        for pool in config.pools:
            settings = pool.tokenizer
            there = self._fleet.pools.get(pool.name)
            if there is None:
                continue
            if settings is None:
                there.calibration.counter = None
                continue
            source = before.get(pool.name)
            if source is None or (source.settings.path, source.settings.source) != (
                settings.path,
                settings.source,
            ):
                source = _Source(
                    settings, PoolCounter(bytes_max=settings.bytes_max, error_max=settings.error_max)
                )
            source.settings, source.looked = settings, -LOOK_S
            counter = source.counter
            counter.error_max, counter.inline_bytes = settings.error_max, settings.inline_bytes
            counter.context_tokens = settings.context_tokens
            counter.known.bytes_max = settings.bytes_max
            self._sources[pool.name] = source
            there.calibration.counter = counter
            source.wake.set()
        for name, source in before.items():
            if self._sources.get(name) is not source and source.task is not None:
                source.task.cancel()
        if not self._sources:
            self._awaited.clear()
        self._begin()

    async def start(self) -> None:
        """Begin to count."""
        self._running = True
        self._begin()

    async def stop(self) -> None:
        """Count no more."""
        self._running = False
        for source in self._sources.values():
            task, source.task = source.task, None
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _begin(self) -> None:
        for name, source in self._sources.items() if self._running else ():
            if source.task is None:
                source.task = asyncio.get_running_loop().create_task(self._run(name, source))

    def placed(self, routing: RoutingRequest, routed: Routed, *, now_ns: int) -> None:  # noqa: ARG002 (an observer's)
        """It goes to an engine, which may tell what it counted."""
        counted = routing.work.counted
        if counted is None or routing.permits != 1:
            return
        self._awaited[routing.id] = counted
        if len(self._awaited) > AWAITED_MAX:
            self._awaited.popitem(last=False)

    def settled(self, event: Settled, *, now_ns: int) -> None:  # noqa: ARG002 (an observer's)
        """A request has ended: its engine's count teaches."""
        outcome = event.outcome
        counted = self._awaited.pop(outcome.reservation.id, None)
        source = self._sources.get(outcome.reservation.pool)
        if counted is None or source is None or outcome.end is not End.OK or not outcome.prompt_tokens:
            return
        source.counter.ended(counted, outcome.prompt_tokens)

    def expired(self, reservation: Reservation, *, now_ns: int) -> None:  # noqa: ARG002 (an observer's)
        """A request's end never came."""
        self._awaited.pop(reservation.id, None)

    def left(
        self,
        reservation_id: str,
        routing: RoutingRequest | None,  # noqa: ARG002 (an observer's)
        *,
        gave_up: bool,  # noqa: ARG002
        now_ns: int,  # noqa: ARG002
    ) -> None:
        """Its client left before Envoy heard of it."""
        self._awaited.pop(reservation_id, None)

    def status(self) -> dict[str, object]:
        """By pool: whether its tokenizer is gone by, and how far off counts and estimates are."""
        found: dict[str, object] = {}
        for name, source in self._sources.items():
            counter, pool = source.counter, self._fleet.pools.get(name)
            estimate = pool.calibration.errors.share if pool is not None else None
            found[name] = {
                "from": source.settings.path or "engine",
                "problem": counter.problem or counter.distrusted,
                "error": _rounded(counter.errors.share),
                "estimate_error": _rounded(estimate),
                "answers": counter.errors.count,
                "prompts": dict(counter.prompts),
                "texts": dict(counter.texts),
                "known": len(counter.known),
                "bytes": counter.known.size,
                "waiting": counter.waiting,
                "template": counter.overhead.plain(),
            }
        return found

    def seen(self) -> TokensSeen:
        """For the metrics."""
        errors: dict[tuple[str, str], float] = {}
        for name, pool in self._fleet.pools.items():
            if (share := pool.calibration.errors.share) is not None:
                errors[name, "estimate"] = share
        prompts, texts = {}, {}
        for name, source in self._sources.items():
            counter = source.counter
            if (share := counter.errors.share) is not None:
                errors[name, "tokenizer"] = share
            prompts.update({(name, how): count for how, count in counter.prompts.items()})
            texts.update({(name, how): count for how, count in counter.texts.items()})
        return TokensSeen(
            errors,
            prompts,
            texts,
            {
                name: not (each.counter.problem or each.counter.distrusted)
                for name, each in self._sources.items()
            },
            {name: each.counter.known.size for name, each in self._sources.items()},
        )

    async def _run(self, name: str, source: _Source) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await source.wake.wait()
            source.wake.clear()
            try:
                await self._turn(name, source)
            except Exception as error:  # noqa: BLE001 (without this task nothing would be counted again)
                self._unusable(name, source, f"counting failed: {error!r}")
            if source.counter.waiting:
                source.wake.set()

    async def _turn(self, name: str, source: _Source) -> None:
        """One pool's turn: its tokenizer is looked at now and then, and a few of its texts are counted."""
        if time.monotonic() - source.looked >= LOOK_S:
            source.looked = time.monotonic()
            await self._look(name, source)
        counter = source.counter
        distrusted = counter.distrusted
        if (counter.problem or distrusted) != source.told:
            self._tell(name, source, counter.problem or distrusted)
        texts = counter.take(BATCH_CHARACTERS) if not counter.problem else {}
        if not texts:
            return
        begun = time.monotonic()
        try:
            told = await self._counts(name, source, list(texts.values()))
        except (OSError, ValueError, TimeoutError) as error:
            # The texts are met again, or are not worth it.
            self._unusable(name, source, f"its engine's {TOKENIZE_PATH} cannot be used: {error}")
            return
        if self._sources.get(name) is source:
            counter.counted(dict(zip(texts, told, strict=True)))
        await asyncio.sleep((time.monotonic() - begun) * (1.0 / source.settings.cpu_share - 1.0))

    async def _look(self, name: str, source: _Source) -> None:
        """Read a file that has changed; ask an engine again that could not be."""
        path = source.settings.path
        if path is None:
            if source.counter.problem:
                try:
                    told = await self._counts(name, source, PROBES)
                except (OSError, ValueError, TimeoutError) as error:
                    self._unusable(name, source, f"its engine's {TOKENIZE_PATH} cannot be used: {error}")
                else:
                    source.counter.begin(bias_of(told), None)
            return
        stamp = await asyncio.to_thread(_stamp, Path(path))
        if stamp == source.stamp and stamp is not None:
            return
        source.stamp = stamp
        try:
            source.tokenizer = await asyncio.to_thread(load, Path(path))
        except TokenizerError as error:
            source.tokenizer = None
            self._unusable(name, source, str(error))
            return
        if self._sources.get(name) is source:
            source.counter.begin(source.tokenizer.bias, source.tokenizer.counts)

    async def _counts(self, name: str, source: _Source, texts: Sequence[str]) -> list[int]:
        if source.tokenizer is not None:
            return await asyncio.to_thread(source.tokenizer.counts, texts)
        return [await self._ask(name, source, text) for text in texts]

    async def _ask(self, name: str, source: _Source, text: str) -> int:
        """A text's tokens by the least busy replica. Raises OSError, ValueError, TimeoutError."""
        import aiohttp

        pool = self._fleet.pools.get(name)
        address = _idlest(pool)
        if pool is None or not address:
            raise ValueError("no replica is ready")
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=ASK_TIMEOUT_S)
            self._session = aiohttp.ClientSession(timeout=timeout, trust_env=False)
        source.asked += 1
        access, host = self._way(address)
        how = access.asking(host)
        how["headers"]["content-type"] = "application/json"
        url = f"{access.scheme}://{address}{access.path_prefix}{TOKENIZE_PATH}"
        body = question(text, traits_of(pool.engine), pool.models[0])
        asking = self._session.post(url, data=body, allow_redirects=False, **how)
        try:
            async with asking as answer:
                found = await read_bounded(answer.content, ANSWER_BYTES_MAX)
                if found is None:
                    raise ValueError(f"answers more than {ANSWER_BYTES_MAX} bytes")
                return believed(answered(answer.status, found), text)
        except aiohttp.ClientError as error:
            raise ValueError(f"{address}: {tls_trouble(error) or error}") from error

    def _unusable(self, name: str, source: _Source, problem: str) -> None:
        source.counter.end(problem)
        self._tell(name, source, problem)

    def _tell(self, name: str, source: _Source, problem: str) -> None:
        if problem == source.told:
            return
        source.told = problem
        if problem:
            log.warning("pool %s: prompts are estimated, its tokenizer is not gone by: %s", name, problem)
        else:
            log.info("pool %s: prompts are counted with its tokenizer", name)


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _idlest(pool: Pool | None) -> str:
    ready = [each for each in pool.endpoints if each.ready] if pool is not None else []
    return min(ready, key=lambda each: each.requests).address if ready else ""


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)

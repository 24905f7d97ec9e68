"""LoRA adapters by calls to the engine: looks at what each replica has, loads what requests wait for.

Owns the calls and their pace: one at a replica, few in a pool, longer pauses after failures. What to call is
core/adapter_calls.py's. A replica is looked at before anything is called there, and again after each failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from extproc import engines
from extproc.config.adapters import AdapterLoading, path_of
from extproc.config.model import Config
from extproc.core.adapter_calls import TURN_NS, AdapterCall, adapter_calls, first_waiting, wanted
from extproc.core.decide import RoutingRequest
from extproc.core.endpoint import Endpoint
from extproc.core.errors import wanted_room
from extproc.core.events import Observer, Settled
from extproc.core.fleet import Pool
from extproc.core.outcome import Reject
from extproc.core.scheduler import Scheduler
from extproc.service.parts import Part
from extproc.upstream import ReplicaAccess, tls_trouble

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

#: How often a replica is asked what it serves, and its patience for that.
LOOK_S: Final = 10.0
LOOK_TIMEOUT_S: Final = 2.0
#: Looks at once, over all pools.
LOOKS_TOGETHER_MAX: Final = 32
MODELS_PATH: Final = "/v1/models"
#: Of an answer that is read, and of an engine's words that are shown.
ANSWER_BYTES_MAX: Final = 1024 * 1024
SAID_MAX: Final = 200
#: Replicas and failures that the status shows.
SHOWN_MAX: Final = 20
#: The pause after a call that failed, doubled with each further one.
PAUSE_S, PAUSE_S_MAX = 1.0, 60.0
#: Calls that failed and are remembered; the oldest are forgotten first.
FAILED_MAX: Final = 1_000
#: A request that could not wait stands for demand so long.
REFUSED_NS: Final = 2_000_000_000
NOT_FOUND: Final = 404


class AdapterCallError(Exception):
    """A call that did not do what it should, in words that say what to look at."""


@dataclass(slots=True)
class FailedCall:
    """Loads of an adapter at a replica that failed: how often in a row, with what, when the next may be."""

    times: int
    said: str
    at_ns: int
    until_ns: int


class AdaptersPart(Part, Observer):
    """Loads and unloads where `pools[].adapters.load` says so. `way` is how an address is asked, and by
    which name."""

    name = "adapters"

    def __init__(
        self,
        config: Config,
        scheduler: Scheduler,
        *,
        clock: Callable[[], int],
        way: Callable[[str], tuple[ReplicaAccess, str]],
        failed: Callable[[Exception, str], None],
    ) -> None:
        self._scheduler, self._clock, self._way, self._failed = scheduler, clock, way, failed
        self._settings: dict[str, AdapterLoading] = {}
        #: Addresses with a call or a look under way, and the adapters (pool, name) that are being loaded.
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._coming: dict[str, tuple[str, str]] = {}
        self._looked: dict[str, int] = {}
        self._rests: OrderedDict[tuple[str, str, str], FailedCall] = OrderedDict()
        #: Requests that were turned away for want of an adapter (pool, name): when the last was, and one.
        self._refused: dict[tuple[str, str], tuple[int, RoutingRequest]] = {}
        #: Replicas whose list of models could not be read, and why: nothing is loaded there.
        self._unseen: dict[str, str] = {}
        #: By pool, call (load, unload, look) and result (ok, failed).
        self.calls: Counter[tuple[str, str, str]] = Counter()
        self._task: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None
        self._running = False
        self.apply(config)

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Itself, where anything is called."""
        return (self,) if self._settings else ()

    def apply(self, config: Config) -> None:
        """A new configuration; what is under way goes on."""
        self._settings = {
            pool.name: pool.adapters.load
            for pool in config.pools
            if pool.adapters is not None and pool.adapters.load is not None
        }
        #: No other service is named. Without Redis one hears of the others' requests only when they end.
        self._alone = len(config.gateway.services) <= 1
        self._rests.clear()  # a path may have been mended
        self._begin()

    async def start(self) -> None:
        """Begin to look and to call."""
        self._running = True
        self._begin()

    async def stop(self) -> None:
        """Call no more; a call under way is given up."""
        self._running = False
        tasks = [*self._busy.values(), *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._task = None
        if self._session is not None:
            await self._session.close()
            self._session = None

    def status(self) -> dict[str, object]:
        """Figures; `failing` are the loads that failed last, the engine's words with them."""
        now_ns = self._clock()
        return {
            "calls": {f"{pool}.{call}.{result}": n for (pool, call, result), n in sorted(self.calls.items())},
            "loading": [
                {"address": address, "pool": pool, "adapter": name}
                for address, (pool, name) in self._coming.items()
            ],
            "unseen": dict(list(self._unseen.items())[:SHOWN_MAX]),
            "failing": [
                {
                    "pool": pool,
                    "address": address,
                    "adapter": name,
                    "times": failed.times,
                    "said": failed.said,
                    "again_s": round(max(0, failed.until_ns - now_ns) / 1e9, 1),
                }
                for (pool, address, name), failed in list(self._rests.items())[-SHOWN_MAX:]
            ],
        }

    # What requests tell.

    def refused(self, routing: RoutingRequest, reject: Reject, *, now_ns: int) -> None:
        """Who cannot wait shows as well what is wanted."""
        pool = self._scheduler.fleet.pools.get(routing.pool)
        if routing.pool not in self._settings or pool is None or pool.adapters is None:
            return
        if routing.model in pool.adapters.names and wanted_room(reject.code):
            key = routing.pool, routing.model
            last_ns, first = self._refused.get(key, (now_ns, routing))
            self._refused[key] = now_ns, first if now_ns - last_ns < REFUSED_NS else routing

    def settled(self, event: Settled, *, now_ns: int) -> None:  # noqa: ARG002 (an observer's)
        """An engine that answers 404 for an adapter may have lost it: it is looked at again."""
        outcome = event.outcome
        reservation = outcome.reservation
        if outcome.status == NOT_FOUND and reservation is not None and reservation.pool in self._settings:
            self._looked.pop(outcome.served_by or "", None)

    # The pace.

    def _begin(self) -> None:
        if self._running and self._settings and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(TURN_NS / 1e9)
            try:
                self.turn(now_ns=self._clock())
            except Exception as error:  # noqa: BLE001 (the next turn is another chance)
                self._failed(error, "choosing adapters")
                await asyncio.sleep(PAUSE_S)

    def turn(self, *, now_ns: int) -> None:
        """Begin the looks that are due and the calls that are wanted."""
        first = self._first(now_ns)
        for name, settings in self._settings.items():
            pool = self._scheduler.fleet.pools.get(name)
            if pool is not None and pool.adapters is not None and pool.adapters.by_call:
                self._look_around(pool, now_ns)
                self._call_for(pool, settings, first.get(name, {}), now_ns)
        known = {each.address for each in self._scheduler.fleet.endpoints}
        for address in [each for each in self._looked if each not in known]:
            del self._looked[address]
            self._unseen.pop(address, None)

    def _first(self, now_ns: int) -> dict[str, dict[str, RoutingRequest]]:
        """By pool and adapter: the first request that waits for it, or was turned away for want of it."""
        names = {
            name: pool.adapters.names
            for name in self._settings
            if (pool := self._scheduler.fleet.pools.get(name)) is not None and pool.adapters is not None
        }
        waiting = (held.payload[0] for held in self._scheduler.dispatcher.waiting.values())
        first = first_waiting(waiting, names)
        for (pool_name, model), (last_ns, routing) in list(self._refused.items()):
            if now_ns - last_ns > REFUSED_NS:
                del self._refused[pool_name, model]
            elif model in names.get(pool_name, ()):
                first[pool_name].setdefault(model, routing)
        return first

    def _look_around(self, pool: Pool, now_ns: int) -> None:
        for each in pool.endpoints:
            at_ns, pause_s = self._looked.get(each.address), LOOK_S if _seen(each) else LOOK_TIMEOUT_S
            if len(self._busy) - len(self._coming) >= LOOKS_TOGETHER_MAX:
                break
            due = at_ns is None or now_ns - at_ns >= pause_s * 1e9
            if due and each.ready and each.address not in self._busy:
                self._looked[each.address] = now_ns
                self._start(each.address, self._look(pool.name, each.address))

    def _call_for(
        self, pool: Pool, settings: AdapterLoading, first: Mapping[str, RoutingRequest], now_ns: int
    ) -> None:
        free = settings.together_max - sum(of == pool.name for of, _ in self._coming.values())
        if not first or free <= 0:
            return
        calls = adapter_calls(
            pool.endpoints,
            wanted(first, now_ns=now_ns),
            busy=self._busy.keys() | {each.address for each in pool.endpoints if not _seen(each)},
            coming={name for of, name in self._coming.values() if of == pool.name},
            rests=lambda address, name: self._resting(pool.name, address, name, now_ns),
            now_ns=now_ns,
            alone=self._alone and self._scheduler.peers.deciders == 1,
        )
        for call in calls[:free]:
            self._coming[call.address] = (pool.name, call.load)
            endpoint = self._endpoint(pool.name, call.address)
            if call.unload and endpoint is not None and endpoint.adapters is not None:
                # Before anything else runs: a request that is placed for it meanwhile would find nothing.
                endpoint.adapters.goes(call.unload)
            self._start(call.address, self._carry_out(pool, settings, call))

    def _resting(self, pool: str, address: str, name: str, now_ns: int) -> bool:
        """Whether a load failed there, or elsewhere a moment ago: a wrong path is wrong at all replicas."""
        return any(
            now_ns < (failed.until_ns if at == address else failed.at_ns + int(PAUSE_S * 1e9))
            for (of, at, what), failed in self._rests.items()
            if of == pool and what == name
        )

    def _start(self, address: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._busy[address] = task
        task.add_done_callback(lambda ended: self._ended(address, ended))

    def _ended(self, address: str, task: asyncio.Task[None]) -> None:
        self._busy.pop(address, None)
        self._coming.pop(address, None)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._failed(error, f"adapters of {address}")

    # The calls.

    async def _look(self, pool: str, address: str) -> None:
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                status, page = await self._ask("GET", address, MODELS_PATH)
            served = served_names(page) if status == 200 else None
            why = "" if served is not None else f"{MODELS_PATH} answered {status}: {_said(page) or 'nothing'}"
        except (AdapterCallError, TimeoutError) as error:
            served, why = None, str(error) or f"no answer within {LOOK_TIMEOUT_S:g} s"
        if served is None:
            self._unseen[address] = why
        else:
            self._unseen.pop(address, None)
        self.calls[pool, "look", "failed" if served is None else "ok"] += 1
        endpoint = self._endpoint(pool, address)
        if served is not None and endpoint is not None and endpoint.adapters is not None:
            endpoint.adapters.registered(served, now_ns=self._clock())
            self._scheduler.dispatcher.pump(pool, now_ns=self._clock(), at=endpoint)

    async def _carry_out(self, pool: Pool, settings: AdapterLoading, call: AdapterCall) -> None:
        row, at, key = engines.traits_of(pool.engine), call.address, (pool.name, call.address, call.load)
        doing = "load"
        try:
            if call.unload:
                doing = "unload"
                await self._call(at, row.unload_adapter, {"lora_name": call.unload}, settings.timeout_s)
                self.calls[pool.name, "unload", "ok"] += 1
                doing = "load"
            body = {"lora_name": call.load, "lora_path": path_of(settings, call.load)}
            await self._call(at, row.load_adapter, body, settings.timeout_s)
        except AdapterCallError as error:
            self.calls[pool.name, doing, "failed"] += 1
            self._rest(key, f"{doing}: {error}")
            self._looked.pop(at, None)
            if (endpoint := self._endpoint(pool.name, at)) is not None and endpoint.adapters is not None:
                endpoint.adapters.doubted()
            return
        self.calls[pool.name, "load", "ok"] += 1
        for resting in [each for each in self._rests if each[0] == pool.name and each[2] == call.load]:
            del self._rests[resting]
        endpoint = self._endpoint(pool.name, at)
        if endpoint is not None and endpoint.adapters is not None:
            endpoint.adapters.came(call.load, now_ns=self._clock())
            log.info("adapter %r was loaded at %s of pool %r", call.load, at, pool.name)
            self._scheduler.dispatcher.pump(pool.name, now_ns=self._clock(), at=endpoint)

    def _rest(self, key: tuple[str, str, str], said: str) -> None:
        before = self._rests.pop(key, None)
        times = 1 if before is None else before.times + 1
        pause_s = min(PAUSE_S_MAX, PAUSE_S * 2 ** min(times - 1, 16))
        now_ns = self._clock()
        self._rests[key] = FailedCall(times, said, now_ns, now_ns + int(pause_s * 1e9))
        if len(self._rests) > FAILED_MAX:
            self._rests.popitem(last=False)
        pool, address, name = key
        if before is None or before.said != said:
            log.warning(
                "adapter %r at %s of pool %r: %s; again in %.0f s", name, address, pool, said, pause_s
            )

    def _endpoint(self, pool: str, address: str) -> Endpoint | None:
        return self._scheduler.fleet.endpoint(pool, address)

    async def _call(self, address: str, path: str, body: dict[str, str], timeout_s: float) -> None:
        """Raises AdapterCallError unless it is so now: done, or already as it should be."""
        try:
            async with asyncio.timeout(timeout_s):
                status, page = await self._ask("POST", address, path, body)
        except TimeoutError:
            raise AdapterCallError(f"no answer within {timeout_s:g} s (adapters.load.timeout_s)") from None
        said = _said(page)
        if status == 200 or (status in (400, NOT_FOUND) and _as_it_is(path, said)):
            return
        hint = ""
        if status == NOT_FOUND and "not found" in said.lower():
            hint = "; it may lack VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
        raise AdapterCallError(f"{path} answered {status}: {said or 'nothing'}{hint}")

    async def _ask(
        self, method: str, address: str, path: str, body: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        import aiohttp  # late: most services call no engine

        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=False, timeout=aiohttp.ClientTimeout(total=None))
        access, host = self._way(address)
        how = access.asking(host)
        how["headers"]["content-type"] = "application/json"
        url = f"{access.scheme}://{address}{access.path_prefix}{path}"
        data = None if body is None else json.dumps(body)
        asking = self._session.request(method, url, data=data, allow_redirects=False, **how)
        try:
            async with asking as answer:
                page = b""
                while len(page) < ANSWER_BYTES_MAX and (piece := await answer.content.readany()):
                    page += piece
                return answer.status, page
        except (aiohttp.ClientError, OSError) as error:
            raise AdapterCallError(tls_trouble(error) or str(error) or type(error).__name__) from error


def _seen(endpoint: Endpoint) -> bool:
    """Whether it is known what its engine has."""
    return endpoint.adapters is not None and endpoint.adapters.served is not None


def served_names(page: bytes) -> tuple[str, ...] | None:
    """The ids in OpenAI's model list; None for what is none. Raises nothing."""
    try:
        told = json.loads(page)["data"]
        return tuple(each["id"] for each in told if isinstance(each["id"], str)) or None
    except (ValueError, TypeError, LookupError, RecursionError):
        return None


def _as_it_is(path: str, said: str) -> bool:
    """Whether a refusal says that it is so already: loaded (by another service), or not there any more."""
    said = said.lower()
    if path.endswith("/unload_lora_adapter"):
        return "cannot be found" in said or "not loaded" in said or "does not exist" in said
    return "already" in said and "loaded" in said


def _said(page: bytes) -> str:
    """An engine's words, in short: vLLM's `error.message`, SGLang's `error_message`, or the text."""
    text = page[: 16 * SAID_MAX].decode("utf-8", "replace")
    with contextlib.suppress(ValueError, RecursionError):
        text = next(_words(json.loads(page)), text)
    return "".join(each if each.isprintable() else " " for each in text)[:SAID_MAX].strip()


def _words(told: Any) -> Iterator[str]:
    if isinstance(told, dict):
        for name in ("error_message", "message", "detail"):
            if isinstance(told.get(name), str):
                yield told[name]
        yield from _words(told.get("error"))

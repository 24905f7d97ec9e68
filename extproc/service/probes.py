"""The service's own looks at replicas of which no agent speaks: a GET of their health page now and then.

Owns the connections and the pace. What a look leads to is core/reach.py's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from extproc.config.model import Config
from extproc.core.fleet import Fleet
from extproc.core.reach import ALIVE, Look
from extproc.service.parts import Part
from extproc.service.upstreams import LookFailedError
from steersman_agent.engines import adapter
from steersman_agent.state import Symptom

log = logging.getLogger(__name__)

#: The health page of every engine that we know.
HEALTH_PATH = "/health"
#: Looks at once. A silent replica holds one for its timeout.
CONCURRENT_MAX = 256
#: A replica on which a request failed is looked at again after so long at the earliest.
AGAIN_NS = 200_000_000

Ask = Callable[[str, str, float], Awaitable[int | None]]


def found(status: int | None, engine: str) -> Look:
    """What an answer says. A page that is not there, or wants a key, is an answer of a living engine."""
    if status is None:
        return Look.SILENT
    if engine and adapter(engine).health(status) is Symptom.LOADING:
        return Look.LOADING
    if status >= 500 and status != 501:
        return Look.UNWELL
    return Look.ANSWERED if 200 <= status < 300 else Look.ALIVE


class ProbesPart(Part):
    """The part that looks."""

    name = "probes"

    def __init__(self, config: Config, fleet: Fleet, *, clock: Callable[[], int], asking: Ask) -> None:
        self._fleet, self._clock, self._ask = fleet, clock, asking
        self._settings = config.probes
        self._looking: dict[str, asyncio.Task[None]] = {}
        #: Failed attempts on each when it was last looked at.
        self._failures: dict[str, int] = {}
        self.looks = 0

    def apply(self, config: Config) -> None:
        """New settings."""
        self._settings = config.probes

    def step(self, *, now_ns: int) -> None:
        """Begin the looks that are due."""
        # Newcomers are looked at wherever agents may bring some.
        unspoken = self._fleet.looks(newcomers=not self._settings.enabled)
        interval_s = max(self._settings.interval_s, len(unspoken) / self._settings.per_second_max)
        due = []
        for address, looked_ns, failures in unspoken:
            failed = failures > self._failures.get(address, 0)
            pause_ns = AGAIN_NS if failed else interval_s * 1e9
            if address not in self._looking and (looked_ns is None or now_ns - looked_ns >= pause_ns):
                due.append((not failed, looked_ns or 0, address, failures))
        # What failed goes first, then who waits longest.
        for _, _, address, failures in sorted(due)[: CONCURRENT_MAX - len(self._looking)]:
            self._failures[address] = failures
            task = asyncio.get_running_loop().create_task(self._look(address))
            self._looking[address] = task
            task.add_done_callback(partial(self._ended, address))
        if len(self._failures) > len(unspoken):
            known = {address for address, _, _ in unspoken}
            self._failures = {each: count for each, count in self._failures.items() if each in known}

    async def stop(self) -> None:
        """End the looks under way."""
        tasks = list(self._looking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def status(self) -> dict[str, object]:
        """Figures."""
        return {"on": self._settings.enabled, "looks": self.looks, "under_way": len(self._looking)}

    async def _look(self, address: str) -> None:
        try:
            status = await self._ask(address, HEALTH_PATH, self._settings.timeout_s)
        except ConnectionRefusedError:
            self._found(address, Look.REFUSED)
            return
        except LookFailedError as failed:
            self._found(address, failed.look, failed.why)
            return
        pool = self._fleet.pools.get(self._fleet.owner(address) or "")
        self._found(address, found(status, pool.engine if pool is not None else ""))

    def _found(self, address: str, look: Look, why: str = "") -> None:
        self.looks += 1
        before, after = self._fleet.looked(address, look, now_ns=self._clock(), why=why)
        if before != after:
            log.log(
                logging.INFO if after is None or after in ALIVE else logging.WARNING,
                "%s %s%s",
                address,
                why or look.value,
                f"; before, it {before.value}" if before is not None else "",
            )

    def _ended(self, address: str, task: asyncio.Task[None]) -> None:
        self._looking.pop(address, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("looking at %s failed", address, exc_info=error)

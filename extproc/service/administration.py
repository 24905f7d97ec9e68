"""The admin port of the running service: hands the page and the API what they show and may order.

Owns the hand-over, and that a service without the port pays nothing for it. What is listened on is fixed at
the start; tokens, names and bounds follow the configuration.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extproc import __version__
from extproc.admin.live_series import LiveSeries
from extproc.admin.sources import MissingError, Order, RefusedError, Sources
from extproc.config.load import ConfigError
from extproc.config.model import Config
from extproc.core.events import Observer
from extproc.core.scheduler import Scheduler
from extproc.core.tenant import Tenant
from extproc.history.experiments import start_edits, stop_edits, written
from extproc.history.surgery import EditError
from extproc.history.versions import HistoryError
from extproc.observe.stats import Stats
from extproc.service.parts import Part
from extproc.service.scale_view import ScaleView
from extproc.wire.server import BindError

if TYPE_CHECKING:
    from extproc.admin.server import AdminServer

log = logging.getLogger(__name__)

#: Who writes, as the history has it.
WHO = "admin port"


class Administration(Part):
    """The part that people look at.

    `brief` is the status without what grows; `parts` are all parts, of which some have something to show;
    `file` is where changes are written, None while they cannot be.
    """

    name = "admin"

    def __init__(
        self,
        config: Config,
        scheduler: Scheduler,
        stats: Stats,
        *,
        tenants: Callable[[], Mapping[str, Tenant]],
        brief: Callable[[], dict[str, Any]],
        orders: Mapping[str, Order],
        parts: Callable[[], Sequence[Part]],
        scaling: ScaleView,
        cache: Callable[[], dict[str, Any]],
        serving: Callable[[], bool],
        file: Callable[[], Path | None],
        note: Callable[..., None],
        failed: Callable[[Exception, str], None],
        clock: Callable[[], int],
    ) -> None:
        self._config, self._clock = config, clock
        self._parts, self._file, self._failed = parts, file, failed
        self.server: AdminServer | None = None
        self.url = ""
        self._live_series = LiveSeries(
            clock=clock,
            wall_clock=time.time,
            gauge=lambda: (len(scheduler.ledger), len(scheduler.dispatcher.queue)),
        )
        self._sources = Sources(
            version=__version__,
            scheduler=scheduler,
            stats=stats,
            live_series=self._live_series,
            tenants=tenants,
            brief=brief,
            clock=clock,
            wall_clock=time.time,
            serving=serving,
            orders=orders,
            start_experiment=self._start_experiment,
            stop_experiment=self._stop_experiment,
            report=self._report,
            alerts=self._alerts,
            scaling=scaling.view,
            scaling_now=scaling.live,
            cache_now=cache,
            exposition=self._exposition,
            note=note,
        )

    @property
    def observers(self) -> tuple[Observer, ...]:
        """What the page shows of requests."""
        return (self._live_series,) if self._config.admin is not None else ()

    async def start(self) -> None:
        """Listen, where the configuration has an `admin` section. Raises BindError."""
        settings = self._config.admin
        if settings is None:
            return
        from extproc.admin.server import AdminServer

        server = AdminServer(settings, self._sources, failed=self._failed)
        try:
            self.url = await server.start()
        except ssl.SSLError as error:
            raise BindError(f"admin.tls: certificate and key cannot be used: {error}") from error
        except FileNotFoundError as error:
            raise BindError(f"admin.tls: {error.filename or 'a file'}: {error.strerror}") from error
        except OSError as error:
            raise BindError(
                f"cannot listen on {settings.listen}: it is taken or not this machine's; "
                "free it or change admin.listen"
            ) from error
        self.server = server
        log.info("admin page at %s", self.url)
        if not settings.loopback and settings.tls is None:
            log.warning(
                "admin.listen is more than loopback, and tokens cross the network in the clear: set admin.tls"
            )

    async def stop(self) -> None:
        """Let the pages go."""
        if self.server is not None:
            await self.server.stop()

    def step(self, *, now_ns: int) -> None:
        """The second's figures."""
        if self.server is not None:
            self._live_series.step(now_ns=now_ns)

    def apply(self, config: Config) -> None:
        """Other tokens, names and bounds."""
        self._config = config
        if self.server is not None and config.admin is not None:
            self.server.apply(config.admin)

    def status(self) -> dict[str, object]:
        """Where it is, and how many look."""
        if self.server is None:
            return {"url": None}
        return {"url": self.url, "pages": self.server.pages, "dropped": self.server.hub.dropped}

    async def _report(self, query: dict[str, str]) -> dict[str, Any]:
        found: dict[str, Any] = await self._ask("report", "analytics", query)
        return found

    async def _alerts(self) -> dict[str, Any]:
        found: dict[str, Any] = await self._ask("view", "alerts")
        return found

    async def _exposition(self, accept: str) -> tuple[bytes, str]:
        found: tuple[bytes, str] = await self._ask("exposition", "metrics", accept)
        return found

    async def _ask(self, what: str, name: str, *given: object) -> Any:
        """What a part shows. MissingError where there is no such part."""
        for part in self._parts():
            call: Callable[..., Any] | None = getattr(part, what, None)
            if part.name == name and call is not None:
                answer = call(*given)
                return await answer if inspect.isawaitable(answer) else answer
        raise MissingError(f"this service has no {name}; the configuration switches them on")

    async def _start_experiment(self, name: str, section: dict[str, Any], why: str) -> dict[str, Any]:
        edits = partial(start_edits, name=name, section=section)
        return await self._write(edits, why=why, command=f"experiment start {name}")

    async def _stop_experiment(self, name: str, how: dict[str, Any], why: str) -> dict[str, Any]:
        edits = partial(stop_edits, name=name, keep=how["keep"])
        return await self._write(edits, why=why, command=f"experiment stop {name}")

    def _write(self, edits: Any, *, why: str, command: str) -> Awaitable[dict[str, Any]]:
        return asyncio.to_thread(self._written, edits, why=why, command=command)

    def _written(self, edits: Any, *, why: str, command: str) -> dict[str, Any]:
        """In a thread: it waits for the disk."""
        file = self._file()
        if file is None:
            raise RefusedError("this service's configuration is no file that can be written from here")
        try:
            done = written(file, edits, why=why, command=command, who=WHO)
        except ConfigError as error:
            problems = tuple(f"{each.path}: {each.message}".removeprefix(": ") for each in error.problems)
            raise RefusedError(
                "the configuration would have mistakes", status=422, problems=problems
            ) from None
        except (EditError, HistoryError, ValueError) as error:
            raise RefusedError(str(error)) from None
        except OSError as error:
            raise RefusedError(f"{file}: cannot be written: {error.strerror}") from None
        return {"version": done.entry.version, "file": str(file)}

"""The demo from start to end: replicas, gateway, traffic, picture.

Owns their order and what is said to the person who started it. The same supervisor as `up` runs the
parts; the traffic runs in this process, where its clients measure.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from extproc.config.load import load
from extproc.core.series import shown
from extproc.demo import running, wave
from extproc.demo.cards import Cards
from extproc.demo.clients import TenantClients
from extproc.demo.parts import RESTARTS, Parts
from extproc.demo.replicas import CAPTION, PORTS_NEEDED, DemoFleet, curl_line, lay_out
from extproc.demo.tenancy import BY_NAME, FAMILY, POOLS, TENANTS
from extproc.demo.traffic import Traffic, TrafficFigures
from extproc.demo.trouble import EVERY_S, OFF, Trouble
from extproc.demo.workload import DemoWorkload
from extproc.history.follow import Follow
from extproc.supervise.asking import ServiceSilentError
from extproc.supervise.child import ChildFailedError
from extproc.supervise.gateway import GatewayFailedError, GatewayOptions, SupervisedGateway
from extproc.supervise.page import opened_page
from extproc.supervise.ports import free_ports
from extproc.supervise.signals import Signals, first_of
from extproc.terminal import tables
from extproc.terminal.live import Events, going_on, show_picture

LINE_EVERY_S = 3.0
#: How long the agents may take to be heard of and their replicas to be told to Envoy.
HEARD_S_MAX = 60.0
#: How often the file that `demo-fault` reads follows the processes, and its notes are looked for.
ANNOUNCE_S = 0.2
#: How long the service's books may lag behind the clients at a smoke test's end.
SETTLE_S_MAX = 5.0
SMOKE_S_MAX = 300.0


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """How to run it."""

    envoy: str
    run_dir: Path
    speed: float
    seed: int
    pictured: bool
    #: Whether a fault is laid on every now and then.
    faults: bool = True
    for_s: float | None = None


class Demo:
    """One run of it."""

    def __init__(self, options: DemoOptions, work: DemoWorkload) -> None:
        self.options = options
        self.work = work
        self.events = Events()
        self.console = Console()
        self.fleet: DemoFleet = lay_out(
            options.run_dir, free_ports(PORTS_NEEDED), speed=options.speed, seed=options.seed
        )
        self.cards = Cards(self.fleet)

    async def run(self) -> None:
        """Until Ctrl-C, or for as long as was asked."""
        await self._with_everything(self._forever, faults=self.options.faults)

    async def smoke(self) -> dict[str, Any] | None:
        """200 requests; the summary, or None when stopped before."""
        return await self._with_everything(self._smoke)

    async def _with_everything(self, body: Any, *, faults: bool = False) -> dict[str, Any] | None:
        options = self.options
        gateway = SupervisedGateway(
            load(self.fleet.config),
            self.fleet.config,
            options=GatewayOptions(
                envoy=options.envoy,
                run_dir=options.run_dir,
                concurrency=1,
                policy=RESTARTS,
                page=opened_page(),
            ),
            report=self.events,
        )
        parts = Parts(self.fleet, run_dir=options.run_dir, report=self.events)

        def force() -> None:
            parts.kill()
            gateway.kill()

        signals = Signals(force=force)
        clients: dict[str, TenantClients] = {}
        with signals, running.announced(options.run_dir, self.events) as file:
            beside = [
                asyncio.create_task(self.cards.run()),
                asyncio.create_task(self._announce(file, gateway, parts)),
                # An experiment that is started from the page is written into the demo's file.
                asyncio.create_task(Follow(self.fleet.config, gateway.reload).run()),
            ]
            try:
                self._greet(gateway, faults=faults)
                await signals.unless_stopped(self._start(gateway, parts))
                if signals.stop.is_set():
                    return None
                models = [*(serving.model for serving in POOLS), FAMILY, wave.MODEL]
                for tenant, key in self.fleet.keys.items():
                    clients[tenant] = TenantClients(gateway.url, key=key, models=models)
                if faults:
                    trouble = Trouble(
                        demo=partial(running.described, self.fleet, gateway, parts, run_dir=options.run_dir),
                        notes=running.Notes(options.run_dir),
                        say=self.events,
                    )
                    beside.append(asyncio.create_task(trouble.run()))
                traffic = Traffic({name: its.send for name, its in clients.items()}, seed=options.seed)
                return await self._until_stopped(signals, gateway, parts, body(gateway, traffic))
            finally:
                for task in beside:
                    task.cancel()
                await asyncio.gather(*beside, return_exceptions=True)
                await asyncio.gather(*(its.close() for its in clients.values()), return_exceptions=True)
                await gateway.stop()
                await parts.stop()
                self.events("stopped all of it")

    async def _start(self, gateway: SupervisedGateway, parts: Parts) -> None:
        self.cards.write()
        parts.begin()
        starting = asyncio.create_task(gateway.start())
        try:
            await parts.ready()
            await starting
        except ChildFailedError as error:
            raise GatewayFailedError(str(error)) from None
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        await self._heard(gateway)

    async def _heard(self, gateway: SupervisedGateway) -> None:
        """Until every agent was heard, and Envoy knows the replica that one of them registered."""
        deadline_s = time.monotonic() + HEARD_S_MAX
        wanted = {replica.address for replica in self.fleet.replicas}
        while True:
            with contextlib.suppress(ServiceSilentError):
                endpoints = (await gateway.status())["endpoints"]
                if wanted == {
                    one["address"] for one in endpoints if one["ready"] and one["state"] == "ready"
                }:
                    break
            if time.monotonic() > deadline_s:
                raise GatewayFailedError(
                    f"the agents' reports did not arrive within {HEARD_S_MAX:g} s; "
                    f"see agent-*.log and service.log in {self.options.run_dir}"
                )
            await asyncio.sleep(0.05)
        for replica in self.fleet.replicas:
            if replica.registered:
                self.events(f"{replica.number} {replica.name} was in no list: {replica.node} registered it")

    async def _until_stopped(
        self, signals: Signals, gateway: SupervisedGateway, parts: Parts, body: Coroutine[Any, Any, Any]
    ) -> dict[str, Any] | None:
        """The body's result; None when a stop came first; GatewayFailedError when a part gave up."""
        failed = asyncio.create_task(gateway.failed())
        parts_failed = asyncio.create_task(parts.failed())
        working = asyncio.create_task(body)
        try:
            await first_of(failed, parts_failed, working, signals.stop.wait())
            if signals.stop.is_set():
                return None
            if working.done():
                result: dict[str, Any] | None = working.result()
                return result
            raise GatewayFailedError(failed.result() if failed.done() else parts_failed.result())
        finally:
            for task in (failed, parts_failed, working):
                task.cancel()
            await asyncio.gather(failed, parts_failed, working, return_exceptions=True)

    async def _announce(self, file: Path, gateway: SupervisedGateway, parts: Parts) -> None:
        """Keep what `demo-fault` reads true, and pass on what it noted."""
        said: running.RunningDemo | None = None
        notes = running.Notes(self.options.run_dir)
        while True:
            now = running.described(self.fleet, gateway, parts, run_dir=self.options.run_dir)
            # A full disk costs the faults, not the demo.
            with contextlib.suppress(OSError):
                if now != said:
                    running.announce(file, now)
                    said = now
            for line in notes.new():
                self.events(line)
            await asyncio.sleep(ANNOUNCE_S)

    async def _forever(self, gateway: SupervisedGateway, traffic: Traffic) -> None:
        figures = traffic.figures
        began_s = time.monotonic()
        notes = [
            note.replace("SIMULATED", "[yellow]SIMULATED[/]")
            for note in self._notes(faults=self.options.faults)
        ]
        if gateway.page_url:
            notes.append(f"[dim]page to look at: [/]{gateway.page_url}")
        notes.append("[dim]figures: as clients see them   break something: [/]steersman demo-fault --list")
        bitten = len(notes)

        def draw(status: dict[str, Any], width: int, height: int) -> RenderableType:
            notes[bitten:] = [f"[yellow]{line}[/]" for line in _meant(figures)]
            return tables.screen(
                tables.status_view(
                    status,
                    width=width,
                    height=height - len(notes),
                    seen=_times(figures),
                    labels=self.fleet.labels,
                ),
                title=f"[bold]steersman demo[/]  {gateway.url}",
                right=f"{tables.clock(time.monotonic() - began_s)}   Ctrl-C stops all of it",
                notes=notes,
                events=[*list(self.events.lines)[-2:], *_errors(figures)[-1:]],
            )

        watching = (
            going_on(show_picture(self.console, gateway.status, draw, self.events), self.events)
            if self.options.pictured
            else self._lines(figures, began_s)
        )
        ending = asyncio.sleep(self.options.for_s) if self.options.for_s else asyncio.Event().wait()
        try:
            speed = self.options.speed
            sending = traffic.replay(self.work, speed=speed), traffic.wave(speed=speed)
            await first_of(*sending, watching, ending)
        finally:
            self._say(_line(figures, time.monotonic() - began_s))

    async def _smoke(self, gateway: SupervisedGateway, traffic: Traffic) -> dict[str, Any]:
        began_s = time.monotonic()
        lines = asyncio.create_task(self._lines(traffic.figures, began_s))
        try:
            async with asyncio.timeout(SMOKE_S_MAX):
                await traffic.smoke(self.work)
        finally:
            lines.cancel()
            await asyncio.gather(lines, return_exceptions=True)
        for error in _errors(traffic.figures):
            print(error, file=sys.stderr)
        used = await self._endpoints_used(gateway, traffic.figures)
        ways = ", ".join(sorted({f"{way.client} {way.route}" for way in traffic.figures.ways}))
        self._say(f"{time.monotonic() - began_s:.1f} s through {ways}; streamed and not")
        for line in _meant(traffic.figures):
            self._say(line)
        return traffic.figures.summary(endpoints_used=used)

    async def _endpoints_used(self, gateway: SupervisedGateway, figures: TrafficFigures) -> int:
        """Endpoints that served a request, once the access log's records are all in."""
        answered = sum(tenant.ok for tenant in figures.tenants.values())
        deadline_s = time.monotonic() + SETTLE_S_MAX
        while True:
            endpoints = (await gateway.status())["endpoints"]
            # A client that closes at `[DONE]` may be gone before the stream's end: it was served.
            served = [one["ok"] + one["client_gone"] for one in endpoints]
            if sum(served) >= answered or time.monotonic() > deadline_s:
                return sum(count > 0 for count in served)
            await asyncio.sleep(0.1)

    async def _lines(self, figures: TrafficFigures, began_s: float) -> None:
        while True:
            await asyncio.sleep(LINE_EVERY_S)
            self._say(_line(figures, time.monotonic() - began_s))

    def _greet(self, gateway: SupervisedGateway, *, faults: bool) -> None:
        if not self.options.pictured:
            for note in self._notes(faults=faults):
                self._say(note)
        self._say(f"serving at {gateway.url} once it is up. Try it:")
        self._say(curl_line(gateway.url, self.fleet.keys[TENANTS[0].name]))
        if gateway.page_url:
            self._say(f"page to look at: {gateway.page_url}")

    def _notes(self, *, faults: bool) -> list[str]:
        count, speed = len(self.fleet.replicas), self.options.speed
        return [
            f"{count} SIMULATED replicas ({CAPTION}), {speed:g}× as fast as life",
            f"workload: {self.work.source}",
            f"pool {wave.POOL}: none at rest, up to {wave.REPLICAS_MAX} on a wave every {wave.PERIOD_S:g} s",
            *([f"a fault every {EVERY_S:g} s, said when it comes; {OFF} turns this off"] if faults else []),
        ]

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # a terminal that was closed must not keep the rest from ending
            self.console.print(line, soft_wrap=True, markup=False, highlight=False)


def _errors(figures: TrafficFigures) -> list[str]:
    """The kinds of failures that clients saw, the most frequent last."""
    return [f"failed {count}×: {error}" for error, count in reversed(figures.errors.most_common())]


def _meant(figures: TrafficFigures) -> list[str]:
    """Who was refused as it is meant to be, by what, and the last wait that it was told."""
    lines = []
    for name, tenant in figures.tenants.items():
        if tenant.refused:
            told = f", Retry-After {tenant.retry_after_s:g} s" if tenant.retry_after_s is not None else ""
            lines.append(f"{name}: {tenant.refused} refused (429), quota of {BY_NAME[name].bites}{told}")
    return lines


def _line(figures: TrafficFigures, ran_s: float) -> str:
    """What the clients saw so far, in one line."""
    parts = [tables.clock(ran_s)]
    for name, times in _times(figures).items():
        tenant = figures.tenants[name]
        refused = f"refused by its quota {tenant.refused}, " if tenant.refused else ""
        parts.append(
            f"{name}: sent {tenant.sent}, ok {tenant.ok}, {refused}failed {tenant.failed}, "
            f"TTFT p50 {tables.ms(times['ttft_p50_ms'])} p99 {tables.ms(times['ttft_p99_ms'])} ms"
        )
    return " · ".join(parts)


def _times(figures: TrafficFigures) -> dict[str, dict[str, Any]]:
    """Failures and times to first token as the clients saw them."""
    result = {}
    for name, tenant in figures.tenants.items():
        times = sorted(tenant.ttft_s)
        result[name] = {
            "failed": tenant.failed,
            "meant": bool(BY_NAME[name].bites),
            "ttft_p50_ms": shown(times, 0.50, scale=1e3),
            "ttft_p99_ms": shown(times, 0.99, scale=1e3),
        }
    return result

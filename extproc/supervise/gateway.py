"""A whole gateway: the service and an Envoy before it, as supervised children.

Owns their order (service first, Envoy last; stopped the other way round), the run folder's files and
the reload. The children run from a copy of the last good configuration: a file that is edited badly
and a crash at the same time do not add up to an outage.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from extproc.config.load import ConfigError, load
from extproc.config.model import Config
from extproc.config.places import address_of
from extproc.config.restart import restart_needed
from extproc.supervise import ports
from extproc.supervise.asking import EnvoyAdmin, ServiceLink, reachable
from extproc.supervise.child import Child, ChildFailedError, ChildSpec, run_once
from extproc.supervise.envoy import envoy_argv
from extproc.supervise.output import Echo, Output
from extproc.supervise.page import OpenedPage, page_url
from extproc.supervise.restarts import FOR_EVER, RestartPolicy

#: Rendering Envoy's bootstrap: imports of two seconds on a slow core, then thousands of endpoints.
RENDER_S_MAX = 60.0
#: How long each part may take to be ready the first time.
#: A busy or slow machine may take long; a child that ends is seen at once, whatever this is.
READY_S_MAX = 120.0
#: How long a part may take to end beyond its drain before it is killed.
STOP_S_MAX = 3.0


class GatewayFailedError(Exception):
    """The gateway cannot be started or kept running; the message says why."""


@dataclass(frozen=True, kw_only=True)
class GatewayOptions:
    """How to run it. `echo` takes the children's lines; they go to `run_dir`'s logs in any case."""

    envoy: str
    run_dir: Path
    concurrency: int = 2
    envoy_log_level: str = "warning"
    verbose: bool = False
    echo: Echo | None = None
    #: How fast both come back, and how often Envoy may die.
    policy: RestartPolicy | None = None
    #: The admin port where the configuration has none; no port then when left out.
    page: OpenedPage | None = None
    #: Where quotas are kept if the configuration does not say; nowhere when left out.
    state_dir: Path | None = None


def steersman_argv(*arguments: str) -> list[str]:
    """This very program as a child. `-P`: what lies in the working folder is not imported."""
    return [sys.executable, "-P", "-m", "extproc.cli", *arguments]


class SupervisedGateway:
    """Envoy and the service for one configuration."""

    def __init__(
        self, config: Config, file: Path, *, options: GatewayOptions, report: Callable[[str], None]
    ) -> None:
        self.options = options
        self.config = self._completed(config)
        self.file = file
        self.report = report
        self.url = f"http://{reachable(config.gateway.listen)}"
        self.link = ServiceLink(address_of(config.service.listen[0], config.service.run_dir))
        # While it is away Envoy does what `failure_mode` says, and running streams go on: it stays.
        policy = options.policy
        self.service = self._child(
            self._service_spec(), FOR_EVER if policy is None else replace(policy, restarts_max=None)
        )
        self.envoy = self._child(self._envoy_spec(), policy)

    async def start(self) -> None:
        """Start both and wait until both are ready. Raises GatewayFailedError; `stop` is due in any case."""
        if wrong := ports.problems(self.config):
            raise GatewayFailedError("\n".join(wrong))
        self._keep_config()
        rendering = asyncio.create_task(self._render())
        try:
            self.service.begin()
            await self.service.ready()
            await rendering
            self.envoy.begin()
            await self.envoy.ready()
        except ChildFailedError as error:
            raise GatewayFailedError(str(error)) from None
        finally:
            rendering.cancel()
            await asyncio.gather(rendering, return_exceptions=True)

    async def failed(self) -> str:
        """Wait until one of them cannot be kept running (Envoy: the service is tried for ever); says why."""
        watching = [asyncio.create_task(child.failed()) for child in (self.service, self.envoy)]
        try:
            done, _ = await asyncio.wait(watching, return_when=asyncio.FIRST_COMPLETED)
            return "; ".join(str(task.exception()) for task in done)
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)

    async def stop(self) -> None:
        """Envoy drains and ends, then the service. Bounded; safe to call twice."""
        await self.envoy.stop()
        await self.service.stop()
        await self.link.close()

    def kill(self) -> None:
        """End both now; a `stop` under way returns soon after."""
        self.envoy.kill()
        self.service.kill()

    async def reload(self) -> bool:
        """Read the user's file again and hand it to the service; a bad one changes nothing."""
        try:
            new = self._completed(await asyncio.to_thread(load, self.file))
        except ConfigError as error:
            for problem in error.problems:
                self.report(f"reload refused, the last good configuration stays: {problem}")
            return False
        if changed := restart_needed(self.config, new, live=True):
            self.report(
                f"reload refused, the last good configuration stays: needs a restart: {', '.join(changed)}"
            )
            return False
        self.config = new
        await asyncio.to_thread(self._keep_config)
        self.service.signal(signal.SIGHUP)
        self.report(f"reloaded {self.file}")
        return True

    async def status(self) -> dict[str, Any]:
        """The service's figures. Raises ServiceSilentError."""
        return await self.link.status()

    @property
    def page_url(self) -> str:
        """Where a person finds the page; "" where there is none. The token of this run may stand in it."""
        return page_url(self.config, self.options.page)

    def _completed(self, config: Config) -> Config:
        """With what this run brings where the file says nothing: the page, and where quotas are kept."""
        if self.options.page is not None:
            config = self.options.page.given(config)
        if self.options.state_dir is not None and config.state.dir is None:
            state = config.state.model_copy(update={"dir": str(self.options.state_dir)})
            config = config.model_copy(update={"state": state})
        return config

    @property
    def _kept(self) -> Path:
        return self.options.run_dir / "steersman.yaml"

    @property
    def _bootstrap(self) -> Path:
        return self.options.run_dir / "envoy.json"

    def _keep_config(self) -> None:
        """Write the checked configuration where the children read it, whole or not at all.

        As JSON, which is read fifty times as fast: what the user wrote, without comments and defaults.
        """
        text = json.dumps(self.config.model_dump(mode="json", exclude_unset=True), indent=1)
        new = self._kept.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(text, encoding="utf-8")
        new.replace(self._kept)

    async def _render(self) -> None:
        """In a process of its own: beside the service's start, and envoy-data-plane stays out of here."""
        argv = steersman_argv("envoy-config", "-f", str(self._kept), "--format", "json", "--mode", "ads")
        try:
            code, said = await run_once([*argv, "-o", str(self._bootstrap)], s_max=RENDER_S_MAX)
        except TimeoutError:
            raise GatewayFailedError(
                f"rendering Envoy's configuration took longer than {RENDER_S_MAX:g} s"
            ) from None
        if code != 0:
            raise GatewayFailedError(f"Envoy's configuration could not be rendered:\n{said}")

    def _service_spec(self) -> ChildSpec:
        verbose = ["--verbose"] if self.options.verbose else []
        return ChildSpec(
            name="service",
            argv=steersman_argv(
                "serve", "--kept-of", str(self.file.absolute()), "-f", str(self._kept), *verbose
            ),
            ready=self.link.serving,
            ready_s_max=READY_S_MAX,
            stop_s_max=self.config.service.drain_s + _replicas_stop_s(self.config) + STOP_S_MAX,
        )

    def _envoy_spec(self) -> ChildSpec:
        admin = EnvoyAdmin(self.config.gateway.envoy_admin)
        options = self.options
        return ChildSpec(
            name="envoy",
            argv=envoy_argv(
                options.envoy,
                self._bootstrap,
                concurrency=options.concurrency,
                log_level=options.envoy_log_level,
            ),
            ready=admin.ready,
            ready_s_max=READY_S_MAX,
            drain=admin.drain,
            drain_s_max=self.config.service.drain_s,
            stop_s_max=STOP_S_MAX,
        )

    def _child(self, spec: ChildSpec, policy: RestartPolicy | None) -> Child:
        return Child(
            spec,
            output=Output(spec.name, file=self.options.run_dir / f"{spec.name}.log", echo=self.options.echo),
            report=self.report,
            rng=Random(os.urandom(8)),
            policy=policy,
        )


def _replicas_stop_s(config: Config) -> float:
    """How long the replicas that the service has started may take to end."""
    launchers = (pool.scaling.launcher for pool in config.pools if pool.scaling is not None)
    return max((each.stop_timeout_s for each in launchers if each is not None), default=0.0)

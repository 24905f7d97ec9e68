"""The demo's own processes beside the gateway: a process a simulated replica, an agent a node.

Owns how they are run and come back; the same supervisor keeps them as keeps the gateway's.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from extproc.demo.replicas import DemoFleet, listens
from extproc.supervise.child import Child, ChildFailedError, ChildSpec
from extproc.supervise.gateway import steersman_argv
from extproc.supervise.output import Output
from extproc.supervise.restarts import RestartPolicy

READY_S_MAX = 120.0
STOP_S_MAX = 2.0
#: A replica that was killed loads its model again for so long.
LOAD_S = 4.0
#: Whoever kills parts on purpose shall not end the demo by it.
DEATHS_MAX = 50
RELOADS = RestartPolicy(first_s=LOAD_S, factor=1.0, longest_s=LOAD_S, jitter=0.0, restarts_max=DEATHS_MAX)
RESTARTS = RestartPolicy(longest_s=2.0, restarts_max=DEATHS_MAX)


class Parts:
    """Replicas and agents by name. `begin`, `ready`, `stop` always."""

    def __init__(self, fleet: DemoFleet, *, run_dir: Path, report: Callable[[str], None]) -> None:
        def child(spec: ChildSpec, policy: RestartPolicy) -> Child:
            output = Output(spec.name, file=run_dir / f"{spec.name.replace(' ', '-')}.log")
            return Child(spec, output=output, report=report, rng=Random(os.urandom(8)), policy=policy)

        self.replicas = {
            replica.name: child(
                ChildSpec(
                    name=replica.name,
                    argv=steersman_argv("sim-replica", *fleet.replica_options(replica)),
                    ready=partial(listens, replica),
                    ready_s_max=READY_S_MAX,
                    stop_s_max=STOP_S_MAX,
                ),
                RELOADS,
            )
            for replica in fleet.replicas
        }
        self.agents = {
            node.name: child(
                ChildSpec(
                    name=f"agent {node.name}",
                    argv=[sys.executable, "-P", "-m", "steersman_agent", "-f", str(node.agent)],
                    # Nobody can ask an agent; what it says is seen at the service.
                    ready=_lives,
                    stop_s_max=STOP_S_MAX,
                ),
                RESTARTS,
            )
            for node in fleet.nodes
        }

    @property
    def _all(self) -> list[Child]:
        return [*self.replicas.values(), *self.agents.values()]

    def begin(self) -> None:
        """Start all of them."""
        for child in self._all:
            child.begin()

    async def ready(self) -> None:
        """Wait until each was ready once. Raises ChildFailedError."""
        for child in self._all:
            await child.ready()

    async def failed(self) -> str:
        """Wait until one of them cannot be kept running; says why."""
        watching = [asyncio.create_task(child.failed()) for child in self._all]
        try:
            await asyncio.wait(watching, return_when=asyncio.FIRST_EXCEPTION)
            return "; ".join(
                str(task.exception())
                for task in watching
                if task.done() and isinstance(task.exception(), ChildFailedError)
            )
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)

    async def stop(self) -> None:
        """End all of them. Bounded; safe to call twice."""
        await asyncio.gather(*(child.stop() for child in self._all))

    def kill(self) -> None:
        """End all of them now; a `stop` under way returns soon after."""
        for child in self._all:
            child.kill()


async def _lives() -> bool:
    return True

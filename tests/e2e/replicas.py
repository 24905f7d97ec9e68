"""Simulated replicas on an event loop of their own, for tests that are plain functions."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gateway import ASK_S, free_ports

from extproc.sim.listening import ReplicaSpec, RunningReplicas, start_replicas


class Replicas:
    """Context manager: the replicas of some specs, and their control routes."""

    def __init__(self, specs: Sequence[ReplicaSpec]) -> None:
        # While one is dead no outgoing connection may take its port.
        self._specs = [replace(spec, port=spec.port or free_ports(1)[0]) for spec in specs]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="replicas", daemon=True)
        self._running: RunningReplicas | None = None
        self.addresses: list[str] = []

    def __enter__(self) -> Replicas:
        self._thread.start()
        self._running = self._await(start_replicas(self._specs))
        self.addresses = self._running.addresses
        return self

    def __exit__(self, *_: object) -> None:
        if self._running is not None:
            self._await(self._running.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _await(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def kill(self, index: int) -> None:
        """Let one die; its port refuses from then on."""
        assert self._running is not None
        self._await(self._running.kill(self._specs[index].name))

    def revive(self, index: int) -> None:
        """Start a killed one afresh on its port."""
        assert self._running is not None
        self._await(self._running.revive(self._specs[index].name))

    def state(self, index: int) -> dict[str, Any]:
        """A replica's gauges."""
        with urllib.request.urlopen(f"http://{self.addresses[index]}/sim/state", timeout=ASK_S) as answer:
            state: dict[str, Any] = json.loads(answer.read())
            return state

    def fault(self, index: int, **fault: Any) -> None:
        """Script a fault on a replica."""
        request = urllib.request.Request(
            f"http://{self.addresses[index]}/sim/fault",
            data=json.dumps(fault).encode(),
            headers={"content-type": "application/json"},
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=ASK_S) as answer:
            answer.read()


def specs(count: int, **settings: Any) -> list[ReplicaSpec]:
    """Equal fast replicas: ten times faster than life unless told."""
    settings.setdefault("time_scale", 10.0)
    settings.setdefault("model_id", "tiny-chat")
    return [ReplicaSpec(name=f"{settings['model_id']}-{i}", seed=i, **settings) for i in range(count)]

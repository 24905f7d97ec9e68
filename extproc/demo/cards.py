"""What the nodes' simulated GPUs show: figures that follow the replicas' work, and the faults laid on them.

Owns the scripts of the fake NVML (agents/steersman_agent/nvml_fake.py). Faults come from a file beside each,
one object of NVML's keys a card, which `steersman demo-fault` replaces whole; nobody else writes either file.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp

from extproc.demo.replicas import DemoFleet, DemoNode, DemoReplica
from steersman_agent.nvml_fake import write_script

#: How often faults are looked for, and how often figures move.
LOOK_S, MOVE_S = 0.1, 0.5
ASK_S_MAX: Final = 0.4
MEMORY_BYTES: Final = 85_520_809_984
#: An engine takes nine tenths of the memory for weights and KV at its start, and keeps it.
MEMORY_USED: Final = 0.9
IDLE_W, IDLE_C, HOT_C = 0.14, 34.0, 68.0
#: How far temperature goes in one move towards where it is heading.
WARMING: Final = 0.1
#: Sequences at which a card is as good as full.
BUSY_SEQUENCES: Final = 24


def read_faults(path: Path, *, cards: int) -> list[dict[str, Any]]:
    """The faults on a node's cards; none where the file is missing or broken."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = []
    known = [each if isinstance(each, dict) else {} for each in found] if isinstance(found, list) else []
    return [*known, *({} for _ in range(cards))][:cards]


class Cards:
    """All nodes' cards. `write` once before the agents start, then `run`."""

    def __init__(self, fleet: DemoFleet) -> None:
        self._fleet = fleet
        self._work: dict[str, int] = {}
        self._warm: dict[str, float] = {}
        self._seen: dict[str, list[dict[str, Any]]] = {}

    def write(self) -> None:
        """Write every node's script as things stand."""
        for node in self._fleet.nodes:
            self._write(node)

    async def run(self) -> None:
        """Until cancelled: figures move, faults show at once."""
        timeout = aiohttp.ClientTimeout(total=ASK_S_MAX)
        loop = asyncio.get_running_loop()
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
            while True:
                self._work = {
                    replica.name: work
                    for replica, work in zip(
                        self._fleet.replicas,
                        await asyncio.gather(*(_work(session, each) for each in self._fleet.replicas)),
                        strict=True,
                    )
                }
                self.write()
                until_s = loop.time() + MOVE_S
                while loop.time() < until_s:
                    await asyncio.sleep(LOOK_S)
                    for node in self._fleet.nodes:
                        if self._faults(node) != self._seen[node.name]:
                            self._write(node)

    def _faults(self, node: DemoNode) -> list[dict[str, Any]]:
        return read_faults(node.faults, cards=len(self._of(node)))

    def _of(self, node: DemoNode) -> Sequence[DemoReplica]:
        return [replica for replica in self._fleet.replicas if replica.node == node.name]

    def _write(self, node: DemoNode) -> None:
        faults = self._faults(node)
        gpus = [self._figures(node, replica) | faults[replica.gpu] for replica in self._of(node)]
        # A full disk stops the figures; it must not stop the demo.
        with contextlib.suppress(OSError):
            write_script(node.cards, {"gpus": gpus})
        self._seen[node.name] = faults

    def _figures(self, node: DemoNode, replica: DemoReplica) -> dict[str, Any]:
        share = min(1.0, self._work.get(replica.name, 0) / BUSY_SEQUENCES)
        used = 0.55 + 0.45 * share if share else 0.0
        card = node.card
        warm = self._warm.get(replica.name, IDLE_C)
        warm += WARMING * (IDLE_C + (HOT_C - IDLE_C) * used - warm)
        self._warm[replica.name] = warm
        return {
            "uuid": f"GPU-sim-{replica.name}",
            "name": card.name,
            "utilization_percent": round(100 * used),
            "memory_used_bytes": int(MEMORY_BYTES * MEMORY_USED),
            "memory_total_bytes": MEMORY_BYTES,
            "temperature_c": round(warm),
            "power_w": round(card.limit_w * (IDLE_W + (0.9 - IDLE_W) * used), 1),
            "power_limit_w": card.limit_w,
            "sm_clock_mhz": card.clock_mhz,
            "sm_clock_max_mhz": card.clock_mhz,
            "throttle": [] if used else ["gpu_idle"],
        }


async def _work(session: aiohttp.ClientSession, replica: DemoReplica) -> int:
    """Sequences that a replica works on; 0 for one that does not answer."""
    try:
        async with session.get(f"http://{replica.address}/sim/state") as answer:
            state = await answer.json()
            return 0 if state["hung"] else int(state["running"])
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError):
        return 0

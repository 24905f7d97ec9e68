"""What a service costs that nobody asks anything: 100 endpoints without agents, looked at by probes.

It runs in this process as `steersman serve` runs it. The endpoints are ports of this machine where nobody
listens. CPU is the process's, threads included.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator

import uvloop
from gateway import free_ports
from rows import Row

from extproc.config.model import Config
from extproc.service.app import App

ENDPOINTS = 100
STILL_S, SECONDS = 2.0, 10.0
AIM = 5.0


def run() -> Iterator[Row]:
    """Yield percents of a core."""
    yield Row(f"idle: a service of {ENDPOINTS} endpoints", uvloop.run(_idle()), "% core", AIM)


async def _idle() -> float:
    [port] = free_ports(1)
    config = Config.model_validate(
        {
            "gateway": {"auth": "none"},
            "service": {"listen": [f"127.0.0.1:{port}"]},
            "pools": [
                {
                    "name": "chat",
                    "models": ["m"],
                    "endpoints": [{"address": f"127.0.0.{i + 1}:9"} for i in range(ENDPOINTS)],
                }
            ],
        }
    )
    app = App(config)
    await app.start()
    gc.freeze()
    running = asyncio.create_task(app.run())
    await asyncio.sleep(STILL_S)
    began, cpu = time.monotonic(), time.process_time()
    await asyncio.sleep(SECONDS)
    used = (time.process_time() - cpu) / (time.monotonic() - began)
    app.stop()
    await running
    return used * 100

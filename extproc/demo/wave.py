"""The demo's pool that grows and shrinks: no replica at rest, up to four on a wave of requests.

Owns its figures and the wave. The service starts and stops the replicas itself (`scaling.launcher`); they
are simulated like the others. A smoke test sends no wave, so none of them is started then.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable
from random import Random
from typing import Any, Final

from extproc.demo.workload import BATCH, DemoArrival

POOL, MODEL = "elastic", "tiny-wave"
REPLICAS_MAX: Final = 4
#: Requests that a replica takes at once: so few that a small wave needs four replicas.
PERMITS: Final = 1
#: Seconds from wave to wave, how long one lasts, and its requests a second at the crest, at life's pace.
PERIOD_S, LASTS_S, CREST_PER_S = 240.0, 120.0, 2.0
#: Of each request.
INPUT_TOKENS, OUTPUT_TOKENS = 200, 60
#: How long nobody must have asked until the last replica goes, and fewer been enough until one does.
ZERO_AFTER_S, DOWN_AFTER_S = 30, 15
#: What a simulated replica takes to start, before that was measured.
LOAD_S: Final = 5


def rate(at_s: float) -> float:
    """Requests a second at a moment of the wave: half a sine, then nothing."""
    within_s = at_s % PERIOD_S
    return CREST_PER_S * math.sin(math.pi * within_s / LASTS_S) if within_s < LASTS_S else 0.0


def pool(*, speed: float, hardware: str) -> dict[str, Any]:
    """Its part of the demo's configuration. `hardware` is the simulator's name of a card and a model."""
    options = {
        "name": f"{POOL}-{{port}}",
        "port": "{port}",
        "model": MODEL,
        "hardware": hardware,
        "time-scale": str(speed),
        "noise": "0.03",
        "max-concurrent-requests": str(PERMITS),
    }
    command = [sys.executable, "-P", "-m", "extproc.cli", "sim-replica"]
    command += [part for name, value in options.items() for part in (f"--{name}", value)]
    return {
        "name": POOL,
        "models": [MODEL],
        "price_per_hour": 2.0,
        "scaling": {
            "min_replicas": 0,
            "max_replicas": REPLICAS_MAX,
            "load_time_s": LOAD_S,
            "down_after_s": DOWN_AFTER_S,
            "zero_after_s": ZERO_AFTER_S,
            "launcher": {
                "command": [
                    *command,
                    *(part for name, value in options.items() for part in (f"--{name}", value)),
                ],
                "max_concurrent": PERMITS,
                "stop_timeout_s": 2,
            },
        },
    }


async def waves(send: Callable[[DemoArrival], None], *, speed: float, seed: int) -> None:
    """Send a request of the wave whenever one is due, until cancelled."""
    loop, rng = asyncio.get_running_loop(), Random(seed)
    began_s = loop.time()
    while True:
        at_s = loop.time() - began_s
        # Thinned: a candidate at the crest's rate is one with the chance of the moment's share of it.
        await asyncio.sleep(rng.expovariate(CREST_PER_S * speed))
        if rng.random() * CREST_PER_S < rate(at_s):
            send(DemoArrival(at_s, BATCH, INPUT_TOKENS, OUTPUT_TOKENS))

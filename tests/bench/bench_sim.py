"""The simulator: how long a request takes to simulate, and what an Azure hour would at 8 and 200 replicas."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from rows import Row

from extproc.lab.campaign import CampaignRun
from extproc.lab.campaign.play import play
from extproc.lab.campaign.streams import TRACES_ENV, stood_in

LOAD = 0.9
#: Requests of the hour at 8 replicas; at more they are as many times more.
HOUR_REQUESTS, HOUR_REPLICAS = 19_366, 8
#: Replicas, arrivals of the shortened run, seconds that an hour may take.
RUNS = ((8, 6_000, None), (200, 20_000, 300.0))


def run() -> Iterator[Row]:
    """Yield microseconds a request and, extrapolated from the shortened run, seconds an hour."""
    traces = Path(os.environ.get(TRACES_ENV, "../shared/traces"))
    name = "stand-in" if stood_in("azure-conversation", traces) else "Azure conversation"
    for replicas, requests, aim in RUNS:
        case = CampaignRun(
            stream="azure-conversation",
            fleet="8b",
            load=LOAD,
            strategy="steer",
            seed=1,
            limit=requests,
            replicas=replicas,
        )
        began = time.process_time()
        played = play(case, traces)
        each = (time.process_time() - began) / played.cell.figures.requests
        where = f"{name}, steer, {replicas} replicas at load {LOAD:g}"
        yield Row(f"sim: {where}", 1e6 * each, "µs a request")
        hour = each * HOUR_REQUESTS * replicas / HOUR_REPLICAS
        yield Row(f"sim: an hour of it, extrapolated from {requests:,} requests", hour, "s", aim)


if __name__ == "__main__":
    for row in run():
        print(row, flush=True)

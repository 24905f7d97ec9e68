"""A live edit under load: how soon it holds, how long a decision waits meanwhile, what is on the loop."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gateway import KEYS, wait_for
from lone_service import ACME, Client, Service, serving
from rows import Row

from extproc.config.load import load
from extproc.service.app import App
from extproc.service.reload import read_again

FEW, MANY = 1_000, 5_000
EDITS, TAKES = 3, 3
AIM_S, AIM_STALL_MS, AIM_LOOP_MS = 2.0, 250.0, 100.0
TIGHT = f"{ACME}  quota: {{requests_per_minute: 1}}\n"


def live(count: int) -> tuple[float, float]:
    """Seconds from an edit until a request is refused by it, the median; the longest wait of a decision."""
    seconds, longest_s = [], 0.0
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), tenants=count) as service:
        for _ in range(EDITS):
            with Client(service, KEYS["acme"]) as client:
                wait_for("load", lambda client=client: client.statuses[200] > 100)
                client.longest_s = 0.0
                begun_s = time.monotonic()
                service.edit(ACME, TIGHT)
                wait_for("the edit", lambda client=client: client.statuses[429])
                seconds.append(time.monotonic() - begun_s)
                service.edit(TIGHT, ACME)
                refused = client.statuses[200]
                wait_for(
                    "the way back", lambda client=client, refused=refused: client.statuses[200] > refused
                )
                longest_s = max(longest_s, client.longest_s)
    return sorted(seconds)[len(seconds) // 2], longest_s


def on_the_loop_ms(count: int) -> float:
    """CPU of putting a file in place whose every tenant has changed, the least of some."""
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder), tenants=count)
        service.channel.close()
        app = App(load(service.file))
        least = float("inf")
        for number in range(TAKES):
            service.edit(f"requests_per_minute: {60 + number}\n", f"requests_per_minute: {61 + number}\n")
            read = read_again(service.file, app.config, live=False)
            gc.collect()
            begun_s = time.thread_time()
            assert app._take(service.file, read)
            least = min(least, (time.thread_time() - begun_s) * 1e3)
    return least


def run() -> Iterator[Row]:
    """Yield seconds and milliseconds."""
    for count in (FEW, MANY):
        seconds, longest_s = live(count)
        yield Row(f"an edit under load, {count:,} tenants: holds after", seconds, "s", AIM_S)
        yield Row(
            f"the longest wait of a decision meanwhile, {count:,} tenants",
            longest_s * 1e3,
            "ms",
            AIM_STALL_MS,
        )
        yield Row(
            f"of a reload on the loop, {count:,} tenants, all changed",
            on_the_loop_ms(count),
            "ms",
            AIM_LOOP_MS,
        )

"""What sharing costs: CPU of one service among several, and how old the others' loads are.

`python tests/state/bench.py [--peers 3] [--endpoints 1000] [--churn 50] [--reports 0] [--uvloop]`; needs
redis-server. The same churn without sharing is measured beside it, so the difference is the share's.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

STAMP = ("p", "stamp")
STAMP_MS_MOD = 1_000_000_000


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000 % STAMP_MS_MOD


async def serve(options: argparse.Namespace, url: str, number: int, *, share: bool) -> dict[str, float]:
    """One service: churn each interval, publish reports, measure from the second second on."""
    from tests.state.conftest import Lag, Service

    rng = Random(number)
    service = Service(url, f"service-{number}", interval_ms=options.interval_ms)
    keys = [("pool", f"10.0.{i // 250}.{i % 250}:8080") for i in range(options.endpoints)]
    service.loads = dict.fromkeys(keys, (1, 1, 1000))
    ages: list[int] = []

    def on_peers(peers: Any) -> None:
        if begun and options.peers == 1 and STAMP in peers.changed and peers.load(*STAMP)[2]:
            ages.append((now_ms() - peers.load(*STAMP)[2]) % STAMP_MS_MOD)
        for key in peers.changed:
            peers.load(*key)

    begun, cpu = 0.0, 0.0
    service.share._on_peers = on_peers
    if share:
        await service.share.start()
    tick_s = options.interval_ms / 1000 / 5
    report = b"x" * 1500
    end = time.monotonic() + options.seconds + 2
    async with Lag() as lag:
        owed = 0.0
        while time.monotonic() < end:
            if not begun and time.monotonic() > end - options.seconds:
                begun, cpu, lag.worst_s = time.monotonic(), time.process_time(), 0.0
            for key in rng.sample(keys, max(options.churn // 5, 1)):
                service.loads[key] = (rng.randrange(1, 60), rng.randrange(1, 60), rng.randrange(1, 99_999))
            service.loads[STAMP] = (1, 1, max(now_ms(), 1))
            owed += options.reports * tick_s
            while owed >= 1:
                owed -= 1
                if share:
                    service.share.publish_report(f"node-{rng.randrange(100)}", report)
            await asyncio.sleep(tick_s)
        result = {
            "cpu_percent": 100 * (time.process_time() - cpu) / (time.monotonic() - begun),
            "lag_ms": 1000 * lag.worst_s,
            "deciders": service.share.peers.deciders,
        }
    ages.sort()
    if ages:
        result |= {"age_p50_ms": ages[len(ages) // 2], "age_p99_ms": ages[len(ages) * 99 // 100]}
    result |= {name: float(count) for name, count in service.share.counts.items()}
    await service.share.close()
    return result


def process(options: argparse.Namespace, url: str, number: int, share: bool, results: Any) -> None:
    if options.uvloop:
        import uvloop

        results.put((number, uvloop.run(serve(options, url, number, share=share))))
    else:
        results.put((number, asyncio.run(serve(options, url, number, share=share))))


def measure(options: argparse.Namespace, url: str, services: int, *, share: bool) -> dict[str, float]:
    """All services, each a process; returns the first one's figures."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    started = [
        context.Process(target=process, args=(options, url, number, share, results))
        for number in range(services)
    ]
    for one in started:
        one.start()
    found = dict(results.get(timeout=options.seconds + 30) for _ in started)
    for one in started:
        one.join()
    return found[0]


def main() -> None:
    """Print both figures."""
    sys.path.append(str(Path(__file__).parents[1] / "e2e"))
    from redis_harness import Redis

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=3)
    parser.add_argument("--endpoints", type=int, default=1000)
    parser.add_argument("--churn", type=int, default=50, help="endpoints that change each interval")
    parser.add_argument("--interval-ms", type=int, default=100)
    parser.add_argument("--reports", type=float, default=0, help="reports each service relays per second")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        with Redis(Path(directory)) as server:
            alone = measure(options, server.url, 1, share=False)
            shared = measure(options, server.url, options.peers + 1, share=True)
    for name, result in (("without sharing", alone), ("sharing", shared)):
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in result.items()))


if __name__ == "__main__":
    main()

"""What planning costs: a step of the service's schedule with many pools, a request's counting, a forecast.

Steps are in CPU time of the thread: other processes of the machine are not in them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from functools import partial
from random import Random

from rows import Row, best_us, percentile

from extproc.config.model import Config
from extproc.core.scaling.values import WorkSample
from extproc.service.app import App
from extproc.service.scaling import ScalingPart

POOLS, REPLICAS, REQUESTS_PER_S = 20, 50, 50
S = 1_000_000_000


def _config(pools: int, replicas: int) -> Config:
    return Config.model_validate(
        {
            "gateway": {"auth": "none"},
            "scaling": {"simulate": False},
            "pools": [
                {
                    "name": f"p{i}",
                    "models": [f"m{i}"],
                    "endpoints": [
                        {"address": f"10.{i}.{j // 250}.{j % 250 + 1}:80"} for j in range(replicas)
                    ],
                    "scaling": {"max_replicas": 200},
                }
                for i in range(pools)
            ],
        }
    )


def _steps_ms(part: ScalingPart, seconds: int, now_ns: list[int]) -> list[float]:
    """CPU milliseconds of each quarter of a second's step, under a load in every pool."""
    rng, took = Random(1), []
    for quarter in range(4 * seconds):
        now_ns[0] += S // 4
        for pool in part.pools.values():
            pool.demand.came(REQUESTS_PER_S // 4, at_s=now_ns[0] / 1e9)
            if quarter < 40:
                for _ in range(20):
                    pool.demand.ended(
                        WorkSample("standard", rng.randrange(100, 3_000), 0, rng.randrange(500))
                    )
        began = time.thread_time()
        part.step(now_ns=now_ns[0])
        took.append(1e3 * (time.thread_time() - began))
    return took


def run(seconds: int = 120) -> Iterator[Row]:
    """The figures."""
    for pools, replicas in ((POOLS, REPLICAS), (1, POOLS * REPLICAS)):
        now_ns = [1_000 * S]
        app = App(_config(pools, replicas), clock=lambda at=now_ns: at[0])  # type: ignore[misc]
        part = app.scaling
        part._wall_s = lambda at=now_ns: at[0] / 1e9  # type: ignore[assignment, misc]
        gc.collect()
        gc.freeze()  # as `steersman serve` does
        took = _steps_ms(part, seconds, now_ns)
        what = f"{pools} pools of {replicas} replicas" if pools > 1 else f"one pool of {replicas} replicas"
        yield Row(f"scaling, {what}: a step, 99th percentile", percentile(took, 0.99), "ms", 20.0)
        yield Row(f"scaling, {what}: a step, the longest", max(took), "ms", 20.0)
        if pools > 1:
            pool, at_s = part.pools["p0"], now_ns[0] / 1e9
            counting = best_us(partial(pool.demand.came, at_s=at_s))
            yield Row("scaling: counting a request", counting, "µs", 5.0)
            yield Row("scaling: a forecast", best_us(partial(pool.forecaster.band, 80.0)), "µs", 1_000.0)


if __name__ == "__main__":
    for row in run():
        print(row)

"""The balancing scenario on a virtual clock: `python tests/bench/balance/virtual.py --seeds 30`.

Plays what `make bench-balance` plays with the scheduler alone: no Envoy, no service, no noise of the machine,
and half a second of CPU a run. For learners and strategies, of which three seeds in real time tell little.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from statistics import fmean, stdev

sys.path[:0] = [str(Path(__file__).parent)]

from scenario import (  # noqa: E402 (its folder comes onto sys.path first)
    BLOCK_TOKENS,
    ENGINES,
    FLAKY_SHARE,
    REPLICAS,
    SHAPES,
    SLOTS,
    STRAGGLER,
    TENANTS,
    asks,
    most_output,
)

from extproc.core.endpoint import Member  # noqa: E402
from extproc.core.series import quantile  # noqa: E402
from extproc.engines import DEFAULT  # noqa: E402
from extproc.sim.arrival import Arrival, Workload  # noqa: E402
from extproc.sim.world import Setting, parse_fleet, run  # noqa: E402
from extproc.sim.world.fleets import SimFleet  # noqa: E402
from extproc.sim.world.world import Delays  # noqa: E402

CELLS = (("parallel", "uniform"), ("parallel", "hetero"), ("parallel", "flaky"), ("serial", "uniform"))
#: About what Envoy, the service and their connections take one way.
DELAYS = Delays(hop_ms=1.0, event_ms=1.0, event_jitter_ms=1.0)


@dataclass(frozen=True, slots=True)
class UntoldFleet(SimFleet):
    """One of which the gateway is told no card and no memory, as in the bench; `slots` if any (0: none)."""

    slots: int = 0

    def members(self, *, permits: int | None = None) -> list[Member]:
        """What it is told of each."""
        told = SimFleet.members(self, permits=self.slots or permits)
        return [member._replace(hardware="", kv_capacity_tokens=0) for member in told]


def fleet_of(engine: str, shape: str, *, slots: int = 0) -> UntoldFleet:
    """The bench's replicas; the odd one is the last. `slots`: the `max_concurrent` that is configured."""
    mock = ENGINES[engine]
    base = f"{mock.hardware}:parallel={mock.parallel}:batch={SLOTS}:kv_tokens={mock.kv_tokens}:agent=false"
    plain = f"{base}:slowdown={mock.slowdown}"
    odd = {
        "hetero": f"{base}:slowdown={STRAGGLER * mock.slowdown}",
        "flaky": f"{plain}:errors={FLAKY_SHARE}",
    }.get(shape, plain)
    fleet = parse_fleet(f"{REPLICAS - 1}*{plain},1*{odd}")
    return UntoldFleet(fleet.name, fleet.groups, slots=slots)


def workload_of(engine: str, shape: str, seed: int) -> Workload:
    """The bench's prompts: a prefix of the tenant's, and a tail that nobody else has."""
    mock, found = ENGINES[engine], []
    wanted = asks(mock, seed=seed, shape=shape, rate_per_s=mock.rate_per_s, requests=mock.requests)
    for ask in wanted:
        whole, shared = ask.prompt_tokens // BLOCK_TOKENS, ask.prefix_tokens // BLOCK_TOKENS
        blocks = (
            *(hash((ask.tenant, i)) for i in range(shared)),
            *(hash((TENANTS + ask.serial, i)) for i in range(whole - shared)),
        )
        at_ns, limit = int(ask.at_s * 1e9), most_output(shape)
        found.append(Arrival(at_ns, "acme", ask.prompt_tokens, ask.output_tokens, limit, blocks))
    return Workload(f"{engine} {shape}", found, BLOCK_TOKENS, ("acme",))


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualCase:
    """One run: `slots` are configured as the replicas' `max_concurrent` (0: not), `kind` as their engine."""

    engine: str = "parallel"
    shape: str = "uniform"
    strategy: str = "steer"
    seed: int = 1
    slots: int = 0
    kind: str = DEFAULT


def virtually(case: VirtualCase) -> tuple[float, float, float, float]:
    """p50 and p99 in ms, the hit share, how many got nothing."""
    fleet = fleet_of(case.engine, case.shape, slots=case.slots)
    setting = Setting(
        strategy=case.strategy, seed=case.seed, model_error=0.0, delays=DELAYS, engine=case.kind
    )
    served = run(workload_of(case.engine, case.shape, case.seed), fleet, setting).served
    good = [each for each in served if each.outcome == "ok"]
    ttft = sorted((each.first_ns - each.arrival.at_ns) / 1e6 for each in good)
    hit = sum(each.cached_tokens for each in good) / sum(each.arrival.prompt_tokens for each in good)
    return quantile(ttft, 0.5), quantile(ttft, 0.99), hit, float(len(served) - len(good))


def main() -> None:
    """Play the cells, one line each: the mean over the seeds and its standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=30, help="1 to so many")
    parser.add_argument("--engine", choices=ENGINES)
    parser.add_argument("--shape", choices=[shape for shape in SHAPES if shape != "hard"])
    parser.add_argument("--strategy", default="steer")
    parser.add_argument("--slots", type=int, default=0, help="configured as max_concurrent; 0: not")
    parser.add_argument("--kind", default=DEFAULT, help="as which the pool's engine is configured")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    cells = [(asked.engine or "parallel", asked.shape or "uniform")] if asked.engine or asked.shape else CELLS
    with Pool(asked.workers) as pool:
        for engine, shape in cells:
            cases = [
                VirtualCase(
                    engine=engine,
                    shape=shape,
                    strategy=asked.strategy,
                    seed=seed,
                    slots=asked.slots,
                    kind=asked.kind,
                )
                for seed in range(1, asked.seeds + 1)
            ]
            rows = list(zip(*pool.map(virtually, cases, chunksize=1), strict=True))
            told = [
                f"{name} {fmean(row):.{digits}f}"
                + (f" ± {stdev(row) / len(row) ** 0.5:.{digits}f}" if len(row) > 1 else "")
                for name, digits, row in zip(
                    ("p50 ms", "p99 ms", "hit", "not served"), (0, 0, 3, 1), rows, strict=True
                )
            ]
            print(f"{engine:<9}{shape:<9}" + "  ".join(told), flush=True)


if __name__ == "__main__":
    main()

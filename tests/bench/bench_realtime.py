"""`make bench-realtime`: the discrete-event simulation against the same minute in real time.

One minute of the Azure conversation trace (a made-up stand-in where the trace is absent), at a share of what
four replicas can bear, (a) through the discrete-event world and (b) through the real Envoy, `steersman serve`
and the HTTP replicas at life's speed: equal arrivals, lengths, timings and defaults, no noise. Compared are
the p50 and p90 of the first token; from (b) the path's fixed cost is taken, which an idle request measures.
All simulated; timings from splitwise-sim / vidur.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "balance"), str(HERE.parent / "e2e")]

from client import Load, Seen, generate_bytes  # noqa: E402 (its folders come onto sys.path first)
from gateway import KEYS  # noqa: E402
from play import on_loop  # noqa: E402
from rows import percentile  # noqa: E402
from scenario import BYTES_PER_TOKEN, text  # noqa: E402
from stand import Replicas, steersman  # noqa: E402

from extproc.lab.workload import Workload, load, poisson  # noqa: E402
from extproc.sim.arrival import NS_PER_S  # noqa: E402
from extproc.sim.capacity import capacity  # noqa: E402
from extproc.sim.timing import hardware_named  # noqa: E402
from extproc.sim.world import Setting, parse_fleet, run  # noqa: E402
from extproc.sim.world.world import Delays  # noqa: E402

HARDWARE, REPLICAS = "a100-80g/llama-3-8b", 4
CARD, KV_TOKENS = "NVIDIA A100-SXM4-80GB", 450_000
TRACE = "azure2023_conv.csv.gz"
#: The trace's minute begins here: it is a busy hour's, and its first seconds are not.
START_S, SECONDS = 600.0, 60.0
PROMPT_MAX, LIMIT_TOKENS = 7_000, 1_024
#: What the two may differ by, and the predictions' medians after so many requests from cold.
DIFFERS_MAX = 0.10
TTFT_ERROR_MAX, COMPLETION_ERROR_MAX, PREDICTED_MIN = 0.15, 0.25, 500
IDLE_REQUESTS, IDLE_TOKENS = 9, 16
#: Decision to replica and replica to service, on one machine's loopback.
DELAYS = Delays(hop_ms=0.5, event_ms=1.0, report_interval_ms=0.0)


def workload(share: float, *, seed: int, folder: Path) -> tuple[str, Workload]:
    """A minute at a share of the fleet's capacity, and what it is."""
    path = folder / TRACE
    fleet = parse_fleet(f"{REPLICAS}*{HARDWARE}")
    if path.exists():
        name = "Azure conversation"
        found = load(path, seed=seed, start_s=START_S, duration_s=20 * SECONDS, max_total_tokens=8_000)
    else:
        name = "synthetic"
        found = poisson(10.0, seed=seed, duration_s=5 * SECONDS, max_total_tokens=8_000)
    arrivals = tuple(
        replace(
            each,
            prompt_tokens=min(each.prompt_tokens, PROMPT_MAX),
            output_tokens=min(each.output_tokens, LIMIT_TOKENS),
            max_new_tokens=LIMIT_TOKENS,
            blocks=(),
        )
        for each in found.arrivals
    )
    found = replace(found, arrivals=arrivals)
    rated = found.rescaled(share * capacity(fleet.shares, found))
    minute = tuple(each for each in rated.arrivals if each.at_ns < SECONDS * NS_PER_S)
    return name, replace(rated, arrivals=minute)


def discrete(minute: Workload, *, seed: int) -> list[float]:
    """First tokens in the discrete-event world, milliseconds from arrival."""
    setting = Setting(strategy="steer", seed=seed, step_noise=0.0, model_error=0.0, delays=DELAYS)
    result = run(minute, parse_fleet(f"{REPLICAS}*{HARDWARE}"), setting)
    return [(each.first_ns - each.arrival.at_ns) / 1e6 for each in result.served if each.outcome == "ok"]


def requests_of(minute: Workload, *, seed: int) -> list[tuple[float, bytes]]:
    """The same arrivals as HTTP requests of the same lengths."""
    return [
        (
            each.at_ns / NS_PER_S,
            _request(text(f"{seed}/{serial}", each.prompt_tokens), each.output_tokens),
        )
        for serial, each in enumerate(minute.arrivals)
    ]


def _request(prompt: str, output_tokens: int) -> bytes:
    body = {"inputs": prompt, "parameters": {"max_new_tokens": LIMIT_TOKENS, "details": True}}
    return generate_bytes(json.dumps(body).encode(), key=KEYS["acme"], output_tokens=output_tokens)


async def _play(port: int, requests: list[tuple[float, bytes]]) -> tuple[list[Seen], list[Seen]]:
    """Some alone, one after the other; then all."""
    client = Load(port)
    try:
        alone = [
            (await client.play([(0.0, _request(text(f"idle/{i}", IDLE_TOKENS), 2))]))[0]
            for i in range(IDLE_REQUESTS)
        ]
        return alone, await client.play(requests)
    finally:
        client.close()


def main() -> None:
    """Play each load both ways and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--load", type=float, nargs="*", default=[0.5, 0.8])
    parser.add_argument("--traces", type=Path, default=Path(os.environ.get("TRACES", "/nonexistent")))
    asked = parser.parse_args()
    hardware = hardware_named(HARDWARE)
    # What an idle request waits for in the simulation; the rest is the path's.
    engine_ms = hardware.prefill_ms(IDLE_TOKENS) + DELAYS.hop_ms
    spec = {
        "hardware": HARDWARE,
        "bytes_per_token": BYTES_PER_TOKEN,
        "max_input_tokens": 15_000,
        "max_total_tokens": 16_384,
    }
    for share in asked.load:
        name, minute = workload(share, seed=asked.seed, folder=asked.traces)
        expected = discrete(minute, seed=asked.seed)
        requests = requests_of(minute, seed=asked.seed)
        with Replicas([{**spec, "seed": i} for i in range(REPLICAS)]) as replicas:
            with steersman(replicas.addresses, hardware=CARD, kv_capacity_tokens=KV_TOKENS) as gateway:
                alone, seen = on_loop(lambda port=gateway.port, sent=requests: _play(port, sent))
                status = gateway.status()
        fixed_ms = percentile([(each.first_s or 0.0) * 1e3 for each in alone], 0.5) - engine_ms
        found = [each.first_s * 1e3 - fixed_ms for each in seen if each.ok and each.first_s is not None]
        failed = sum(not each.ok for each in seen)
        late_ms = percentile([each.late_s * 1e3 for each in seen], 0.9)
        print(
            f"# {name}, load {share:g}: {len(requests)} requests in {SECONDS:g} s, "
            f"{REPLICAS} × {HARDWARE}, path {fixed_ms:.1f} ms, client late p90 {late_ms:.1f} ms, "
            f"not answered: {failed} of {len(seen)} here, {len(minute.arrivals) - len(expected)} there, "
            f"load average {os.getloadavg()[0]:.1f}"
        )
        for quantile in (0.5, 0.9):
            there, here = percentile(expected, quantile), percentile(found, quantile)
            ratio = here / there
            met = "met" if abs(ratio - 1.0) <= DIFFERS_MAX else "MISSED"
            print(
                f"TTFT p{quantile * 100:g}: discrete-event {there:7.1f} ms, real time {here:7.1f} ms, "
                f"ratio {ratio:.3f}  (within {DIFFERS_MAX:.0%}: {met})"
            )
        _predictions(status["predictions"])


def _predictions(said: dict[str, float | None]) -> None:
    """How far the service's own predictions were off in the end."""
    for what, most in (("ttft", TTFT_ERROR_MAX), ("completion", COMPLETION_ERROR_MAX)):
        error = said[f"{what}_error_median"]
        if error is None:
            continue
        judged = (
            ("met" if error <= most else "MISSED") if (said["count"] or 0) >= PREDICTED_MIN else "too few"
        )
        print(f"median error of the predicted {what}: {error:.1%}  (at most {most:.0%}: {judged})")


if __name__ == "__main__":
    main()

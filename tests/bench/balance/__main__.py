"""`make bench-balance`: Steersman against other routers' figures, in real time.

Four simulated replicas (timings from splitwise-sim / vidur, never TGI measured) with 8 slots and an LRU
prefix cache, through the real Envoy and `steersman serve` with one default configuration. Beside it in the
same run: the same Envoy alone with LEAST_REQUEST, and our own `least_request`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent / "e2e")]

from play import PLAIN, Case, Played, play  # noqa: E402 (its folders come onto sys.path first)
from scenario import (  # noqa: E402
    HARDWARE,
    KV_TOKENS,
    OUTPUT_MEDIAN,
    PREFIX_TOKENS,
    RATE_PER_S,
    REPLICAS,
    REQUESTS,
    SHAPES,
    SLOTS,
    TENANTS,
)

BALANCERS = {"steer": "", "least_request": "least_request", "plain": PLAIN}
#: Other routers, measured before on replicas of their own: hit, TTFT p99 ms uniform, hetero, failed flaky.
FACTS = (
    ("vllm-router sticky_least_loaded", ".84", "209", "8,629", "–"),
    ("sglang cache_aware", ".84", "242", "792", "0"),
    ("SMG cache_aware", ".79", "287", "778", "0"),
    ("production-stack prefixaware", ".83", "321", "12,057", "132"),
    ("Envoy LEAST_REQUEST", ".46", "273", "949", "148"),
    ("SMG least_load (10 s polling)", ".45", "3,049", "15,288", "0"),
)
HIT_MIN = 0.84
P99_MS_MAX = {"uniform": 200.0, "hetero": 600.0}


def main() -> None:
    """Play every balancer and shape asked for, one after the other, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=RATE_PER_S, help="requests/s")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--shape", nargs="*", choices=SHAPES, default=["uniform", "hetero", "flaky"])
    parser.add_argument("--balancer", nargs="*", choices=[*BALANCERS], default=[*BALANCERS])
    parser.add_argument("--kv-tokens", type=int, default=KV_TOKENS, help="a replica's KV memory")
    parser.add_argument("--parallel", type=int, default=1, help="prompts that a replica takes side by side")
    parser.add_argument("--output-median", type=int, default=OUTPUT_MEDIAN, help="tokens")
    parser.add_argument("--slowdown", type=float, default=1.0, help="of every replica")
    parser.add_argument("--hardware", default=HARDWARE, help="`steersman sim-replica --hardware list`")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    asked = parser.parse_args()
    print(
        f"# {REPLICAS} simulated replicas ({asked.hardware}, {SLOTS} slots, {asked.kv_tokens:,} KV tokens), "
        f"{TENANTS} tenants with prefixes of {PREFIX_TOKENS[0]:,} to {PREFIX_TOKENS[1]:,} tokens, "
        f"{asked.requests} requests at {asked.rate:g}/s, seed {asked.seed}"
    )
    print(
        f"{'':32}{'shape':>10}{'hit':>6}{'p50':>7}{'p90':>7}{'p99 ms':>8}{'failed':>8}{'shed':>6}  by replica"
    )
    rows = []
    for shape in asked.shape:
        for name in asked.balancer:
            case = Case(
                balancer=BALANCERS[name],
                shape=shape,
                seed=asked.seed,
                rate_per_s=asked.rate,
                requests=asked.requests,
                kv_tokens=asked.kv_tokens,
                hardware=asked.hardware,
                parallel=asked.parallel,
                slowdown=asked.slowdown,
                output_median=asked.output_median,
            )
            row = play(case)
            rows.append(row)
            print(_line(f"steersman {name}" if name != "plain" else PLAIN, row), flush=True)
    print("# other routers, measured before (hit, p99 uniform, p99 hetero, failed flaky of 887):")
    for row in FACTS:
        print(f"# {row[0]:<34}{row[1]:>5}{row[2]:>9}{row[3]:>9}{row[4]:>6}")
    print(f"# {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}; all simulated")
    if asked.json:
        asked.json.write_text(json.dumps([{**asdict(row), "seen": []} for row in rows], indent=2) + "\n")


def _line(name: str, row: Played) -> str:
    shape = row.case.shape
    told = (
        f"{name:<32}{shape:>10}{row.hit:>6.2f}{row.p50_ms:>7.0f}{row.p90_ms:>7.0f}{row.p99_ms:>8.0f}"
        f"{row.failed:>8}{row.shed:>6}  {row.at}"
    )
    if row.case.balancer == "":
        wants = [f"hit ≥ {HIT_MIN}: {_met(row.hit >= HIT_MIN)}", f"failed 0: {_met(not row.failed)}"]
        if shape in P99_MS_MAX:
            wants.append(f"p99 ≤ {P99_MS_MAX[shape]:g}: {_met(row.p99_ms <= P99_MS_MAX[shape])}")
        told += f"\n{'':10}({', '.join(wants)}; client late p99 {row.late_ms:.1f} ms"
        if row.errors:
            told += f"; predictions off by { ({k: v for k, v in row.errors.items() if k != 'counts'}) }"
        told += ")"
    return told


def _met(good: bool) -> str:
    return "met" if good else "MISSED"


main()

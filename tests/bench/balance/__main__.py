"""`make bench-balance`: Steersman beside other routers, in real time.

Four simulated replicas (timings from splitwise-sim / vidur, never TGI measured) with 8 slots and an LRU
prefix cache, through the real Envoy and `steersman serve` with one default configuration. Beside it in the
same run, before replicas of the same kind: the same Envoy alone with LEAST_REQUEST, our own `least_request`
and `least_work`, and with --peers the routers that the package index ships, in environments of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent / "e2e")]

from figures import bars_of, head, line, told, verdicts  # noqa: E402 (its folders come onto sys.path first)
from peers import PACKAGES, Peer, PeerMissingError, install  # noqa: E402
from play import PLAIN, Case, Played, play  # noqa: E402
from scenario import ENGINES, REPLICAS, SHAPES, SLOTS, TENANTS, Mock  # noqa: E402

from extproc.core.catalogue import STRATEGY_NAMES  # noqa: E402

STEER = "steer"
BALANCERS = (STEER, "least_work", "least_request", "plain")
#: The shapes of an engine that are played unless others are asked for.
USUAL = {
    "parallel": ("uniform", "hetero", "flaky"),
    "serial": ("uniform",),
    "tgi": ("uniform", "hetero", "flaky"),
}
#: Measured elsewhere, on another mock with side-by-side prefills at 70 requests/s and with serial ones at 40:
#: not served of 887 · TTFT p50 / p99 ms · hit, of alike, one slower, one failing; serial, of 490.
ELSEWHERE = (
    (
        "sglang cache_aware",
        "0 · 43 / 245 · .84",
        "0 · 42 / 3,200 · .83",
        "7 · 42 / 327 · .84",
        "0 · 43 / 736 · .81",
    ),
    ("vllm-router sticky", "0 · 40 / 202 · .84", "0 · 41 / 8,526 · .84", "4 · 41 / 331 · .84", "–"),
    (
        "llm-d default",
        "0 · 182 / 1,771 · .83",
        "0 · 51 / 6,512 · .84",
        "113 · 48 / 312 · .82",
        "0 · 51 / 817 · .81",
    ),
    ("SMG cache_aware", "0 · 48 / 653 · .66", "0 · 109 / 1,800 · .73", "0 · 50 / 749 · .60", "–"),
    (PLAIN, "0 · 74 / 273 · .47", "0 · 199 / 1,045 · .46", "156 · 198 / 219 · .45", "0 · 629 / 1,442 · .47"),
)


def main() -> None:
    """Play every engine, shape, rate and balancer asked for, one after the other, and print the table."""
    asked = _arguments()
    began_s, runs, judged = monotonic(), [], []
    arms = _arms(asked)
    for engine in asked.engine:
        mock = _mock(engine, asked)
        for rate in asked.rate or [mock.rate_per_s]:
            played = replace(mock, rate_per_s=rate)
            for shape in asked.shape or USUAL[engine]:
                print(f"\n## {_title(engine, played, shape, asked.seeds)}\n{head()}", flush=True)
                bars = bars_of(engine, shape, rate_per_s=rate, own_rate_per_s=ENGINES[engine].rate_per_s)
                for arm, agents in arms:
                    case = Case(balancer=arm, engine=engine, shape=shape, mock=played, agents=agents)
                    found = _seeds(case, asked.seeds)
                    if not found:
                        continue
                    runs += found
                    print(line(found), flush=True)
                    if arm == "":
                        print(told(found, bars), flush=True)
                        judged += [good for _, good in verdicts(found, bars)]
    if not asked.quick:
        print("\n# measured elsewhere, on another mock (alike; one slower; one failing; serial):")
        for name, *rows in ELSEWHERE:
            print(f"# {name:<22}" + "".join(f"{row:>26}" for row in rows))
    print(
        f"# {sum(judged)} of {len(judged)} bars met; {monotonic() - began_s:.0f} s, {os.cpu_count()} cores, "
        f"load average {os.getloadavg()[0]:.1f}; all simulated"
    )
    if asked.json:
        rows = [{**asdict(replace(run, seen=[])), "name": run.case.name} for run in runs]
        asked.json.write_text(json.dumps(rows, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="steer alone, the bars' cells, one seed: 2 minutes"
    )
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=["parallel", "serial"])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, help="default: the bars' own")
    parser.add_argument("--seeds", "--seed", nargs="+", type=int, default=[1])
    parser.add_argument("--rate", nargs="+", type=float, help="requests/s; default: the engine's own")
    parser.add_argument("--requests", type=int, help="a run; default: the engine's own")
    parser.add_argument("--balancer", nargs="+", choices=["plain", *STRATEGY_NAMES], default=[*BALANCERS])
    parser.add_argument("--agents", action="store_true", help="steer again with a real node agent")
    parser.add_argument(
        "--peers", nargs="*", choices=PACKAGES, help="these routers of the package index, or all of them"
    )
    parser.add_argument("--kv-tokens", type=int, help="a replica's KV memory")
    parser.add_argument("--parallel", type=int, help="prompts that a replica takes side by side")
    parser.add_argument("--output-median", type=int, help="tokens")
    parser.add_argument("--slowdown", type=float, help="of every replica")
    parser.add_argument("--hardware", help="`steersman sim-replica --hardware list`")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    asked = parser.parse_args()
    if asked.quick:
        asked.balancer = [STEER]
    return asked


def _mock(engine: str, asked: argparse.Namespace) -> Mock:
    named = ("kv_tokens", "parallel", "output_median", "slowdown", "hardware", "requests")
    return replace(ENGINES[engine], **{key: at for key in named if (at := getattr(asked, key)) is not None})


def _arms(asked: argparse.Namespace) -> list[tuple[str | Peer, bool]]:
    """Balancers, and whether an agent reports; a peer that cannot be installed is named and left out."""
    arms: list[tuple[str | Peer, bool]] = []
    for name in asked.balancer:
        # The default configuration names no strategy.
        strategy = {"plain": PLAIN, STEER: ""}.get(name, name)
        arms.append((strategy, False))
        if asked.agents and name == STEER:
            arms.append((strategy, True))
    for package in [] if asked.peers is None else asked.peers or PACKAGES:
        try:
            version = install(package)
        except PeerMissingError as error:
            print(f"# {package} is left out, it does not install: {error}", flush=True)
            continue
        print(f"# {package} {version}", flush=True)
        arms += [(Peer(package, policy), False) for policy in ("", *PACKAGES[package].policies)]
    return arms


def _seeds(case: Case, seeds: list[int]) -> list[Played]:
    try:
        return [play(replace(case, seed=seed)) for seed in seeds]
    except PeerMissingError as error:
        print(f"{case.name} is left out, it does not start: {error}", flush=True)
        return []


def _title(engine: str, mock: Mock, shape: str, seeds: list[int]) -> str:
    beside = "one prompt at a time" if mock.parallel == 1 else f"{mock.parallel} prompts side by side"
    return (
        f"{engine}, {shape}: {mock.requests} requests at {mock.rate_per_s:g}/s, seeds {seeds}. {REPLICAS} "
        f"simulated replicas ({mock.hardware}, {mock.slowdown:g} times as slow, {SLOTS} slots, {beside}, "
        f"{mock.kv_tokens:,} KV tokens), {TENANTS} tenants with prefixes of {mock.prefix_tokens[0]:,} to "
        f"{mock.prefix_tokens[1]:,} tokens"
    )


main()

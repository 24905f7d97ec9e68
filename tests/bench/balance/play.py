"""Plays one scenario through one balancer, and says what came of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from client import Load, Seen, generate_bytes
from gateway import KEYS
from rows import percentile
from scenario import (
    BLOCK_TOKENS,
    BYTES_PER_TOKEN,
    FLAKY_SHARE,
    HARDWARE,
    KV_TOKENS,
    OUTPUT_MEDIAN,
    RATE_PER_S,
    REPLICAS,
    REQUESTS,
    SLOTS,
    STRAGGLER,
    Ask,
    asks,
    most_output,
)
from stand import Replicas, plain, steersman

PLAIN = "envoy LEAST_REQUEST"
T = TypeVar("T")
#: The replica that is slow, or fails; where both, the one before it fails.
ODD = REPLICAS - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run: a balancer (`PLAIN`, "" for Steersman's default, or a strategy) and a scenario."""

    balancer: str
    shape: str = "uniform"
    seed: int = 1
    rate_per_s: float = RATE_PER_S
    requests: int = REQUESTS
    kv_tokens: int = KV_TOKENS
    hardware: str = HARDWARE
    #: 2 runs twice as fast as life, arrivals too; what clients see shrinks with it.
    time_scale: float = 1.0
    #: Prompts that a replica takes side by side, each as fast as alone; 1 is TGI.
    parallel: int = 1
    output_median: int = OUTPUT_MEDIAN
    #: Every replica's steps take so many times the hardware's.
    slowdown: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What came of a run, times in milliseconds.

    `hit` is the share of prompt tokens found in caches; `at` are requests by replica, `late_ms` how late the
    client was at p99, `errors` the medians of the service's own predictions and its counts.
    """

    case: Case
    hit: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    failed: int
    shed: int
    at: list[int]
    late_ms: float
    errors: dict[str, Any] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)


def replicas_of(case: Case) -> Replicas:
    """The case's replicas, not yet started."""
    spec = {
        "hardware": case.hardware,
        "time_scale": case.time_scale,
        "max_batch_size": SLOTS,
        "prefill_parallel": case.parallel,
        "slowdown": case.slowdown,
        "kv_capacity_tokens": case.kv_tokens,
        "block_tokens": BLOCK_TOKENS,
        "bytes_per_token": BYTES_PER_TOKEN,
    }
    specs: list[dict[str, Any]] = [{**spec, "seed": i} for i in range(REPLICAS)]
    if case.shape in ("hetero", "hard"):
        specs[ODD]["slowdown"] = STRAGGLER * case.slowdown
    return Replicas(specs)


def requests_of(case: Case, wanted: list[Ask]) -> list[tuple[float, bytes]]:
    """When and what the client sends."""
    limit = most_output(case.shape)
    return [
        (
            ask.at_s / case.time_scale,
            generate_bytes(
                json.dumps(
                    {
                        "inputs": ask.prompt(case.seed),
                        "parameters": {"max_new_tokens": limit, "details": True},
                    }
                ).encode(),
                key=KEYS["acme"],
                output_tokens=ask.output_tokens,
            ),
        )
        for ask in wanted
    ]


def play(case: Case) -> Played:
    """Start everything afresh, play, stop."""
    wanted = asks(
        seed=case.seed,
        shape=case.shape,
        requests=case.requests,
        rate_per_s=case.rate_per_s,
        output_median=case.output_median,
    )
    requests = requests_of(case, wanted)
    with replicas_of(case) as replicas:
        if case.shape in ("flaky", "hard"):
            replicas.fault(ODD if case.shape == "flaky" else ODD - 1, refuse_share=FLAKY_SHARE, status=503)
        if case.balancer == PLAIN:
            with plain(replicas.addresses) as port:
                seen = on_loop(lambda: _load(port, requests))
            errors = {}
        else:
            with steersman(replicas.addresses, strategy=case.balancer) as gateway:
                seen = on_loop(lambda: _load(gateway.port, requests))
                status = gateway.status()
                errors = {**status["predictions"], "counts": status["counts"]}
        states = replicas.state()
    served = sum(ask.prompt_tokens for ask, each in zip(wanted, seen, strict=True) if each.ok)
    ttft = [each.first_s * 1e3 for each in seen if each.ok and each.first_s is not None]
    shed = sum(each.shed for each in seen)
    return Played(
        case=case,
        hit=sum(state["cached_prompt_tokens"] for state in states) / max(1, served),
        p50_ms=percentile(ttft, 0.5),
        p90_ms=percentile(ttft, 0.9),
        p99_ms=percentile(ttft, 0.99),
        failed=sum(not each.ok for each in seen) - shed,
        shed=shed,
        at=[state["served"] for state in states],
        late_ms=percentile([each.late_s * 1e3 for each in seen], 0.99),
        errors=errors,
        seen=seen,
    )


async def _load(port: int, requests: list[tuple[float, bytes]]) -> list[Seen]:
    load = Load(port)
    try:
        return await load.play(requests)
    finally:
        load.close()


def on_loop(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run on uvloop where it is there."""
    try:
        from uvloop import new_event_loop as factory
    except ModuleNotFoundError:
        factory = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(make())

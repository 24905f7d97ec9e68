"""Plays one scenario through one balancer, and says what came of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from client import Load, Seen, completion_bytes
from cpu import cpu_s
from gateway import KEYS
from idle import Watch, shed_while_idle
from peers import KEY as PEER_KEY
from peers import Peer, balanced_by
from rows import percentile
from scenario import (
    BLOCK_TOKENS,
    BYTES_PER_TOKEN,
    ENGINES,
    FLAKY_SHARE,
    REPLICAS,
    SLOTS,
    STRAGGLER,
    Ask,
    Mock,
    asks,
    most_output,
)
from stand import MODEL, Front, Replicas, ours, plain

PLAIN = "envoy LEAST_REQUEST"
T = TypeVar("T")
#: The replica that is slow, or fails; where both, the one before it fails.
ODD = REPLICAS - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run: a balancer (`PLAIN`, "" for Steersman's default, a strategy, or a peer) and a scenario.

    `agents` lets a real node agent tell Steersman of the replicas.
    """

    balancer: str | Peer
    engine: str = "tgi"
    shape: str = "uniform"
    seed: int = 1
    mock: Mock = field(default_factory=lambda: ENGINES["tgi"])
    agents: bool = False
    #: 2 runs twice as fast as life, arrivals too; what clients see shrinks with it.
    time_scale: float = 1.0

    @property
    def name(self) -> str:
        """The balancer's, as tables name it."""
        if isinstance(self.balancer, Peer):
            return self.balancer.name
        if self.balancer == PLAIN:
            return PLAIN
        agents = " + agents" if self.agents else ""
        return f"steersman {self.balancer or 'steer'}{agents}"

    @property
    def failing(self) -> int | None:
        """The replica that answers 503 to a share."""
        return {"flaky": ODD, "hard": ODD - 1}.get(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What came of a run, times in milliseconds.

    `hit` is the share of prompt tokens found in caches; `at` are requests by replica, `late_ms` how late the
    client was at p99, `errors` the medians of the service's own predictions and its counts. `idle_shed` are
    the requests turned away while a replica had an empty slot, as sampled; `cpu_s` what the gateway cost.
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
    idle_shed: int = 0
    cpu_s: float = 0.0
    errors: dict[str, Any] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)

    @property
    def not_served(self) -> int:
        """Turned away or failed."""
        return self.failed + self.shed


def replicas_of(case: Case) -> Replicas:
    """The case's replicas, not yet started."""
    mock = case.mock
    spec = {
        "hardware": mock.hardware,
        "time_scale": case.time_scale,
        "max_batch_size": SLOTS,
        "prefill_parallel": mock.parallel,
        "slowdown": mock.slowdown,
        "kv_capacity_tokens": mock.kv_tokens,
        "block_tokens": BLOCK_TOKENS,
        "bytes_per_token": BYTES_PER_TOKEN,
    }
    specs: list[dict[str, Any]] = [{**spec, "seed": i} for i in range(REPLICAS)]
    if case.shape in ("hetero", "hard"):
        specs[ODD]["slowdown"] = STRAGGLER * mock.slowdown
    return Replicas(specs)


def requests_of(case: Case, wanted: list[Ask]) -> list[tuple[float, bytes]]:
    """When and what the client sends. Peers get a session besides, for policies that keep to one."""
    limit = most_output(case.shape)
    peer = isinstance(case.balancer, Peer)
    return [
        (
            ask.at_s / case.time_scale,
            completion_bytes(
                json.dumps(
                    {
                        "model": MODEL,
                        "prompt": ask.prompt(case.seed),
                        "max_tokens": limit,
                        "stream": True,
                        "stream_options": {"include_usage": True},
                    }
                ).encode(),
                key=PEER_KEY if peer else KEYS["acme"],
                session=f"tenant-{ask.tenant}" if peer else "",
            ),
        )
        for ask in wanted
    ]


def play(case: Case) -> Played:
    """Start everything afresh, play, stop."""
    mock = case.mock
    wanted = asks(mock, seed=case.seed, shape=case.shape, rate_per_s=mock.rate_per_s, requests=mock.requests)
    requests = requests_of(case, wanted)
    with replicas_of(case) as replicas, _front(case, replicas) as front:
        if case.failing is not None:
            replicas.fault(case.failing, refuse_share=FLAKY_SHARE, status=503)
        before, spent_s = replicas.state(), cpu_s(front.pids)
        with Watch(replicas.addresses) as watch:
            seen = on_loop(lambda: _load(front.port, requests))
        spent_s = cpu_s(front.pids) - spent_s
        errors = front.figures()
        states = replicas.state()
    served = sum(ask.prompt_tokens for ask, each in zip(wanted, seen, strict=True) if each.ok)
    # Where nothing was served no time is told.
    ttft = [each.first_s * 1e3 for each in seen if each.ok and each.first_s is not None] or [float("nan")]
    shed = [each.due_s + each.end_s for each in seen if each.shed and each.end_s is not None]
    count = sum(each.shed for each in seen)

    def moved(what: str) -> list[int]:
        return [int(after[what] - was[what]) for was, after in zip(before, states, strict=True)]

    return Played(
        case=case,
        hit=sum(moved("cached_prompt_tokens")) / max(1, served),
        p50_ms=percentile(ttft, 0.5),
        p90_ms=percentile(ttft, 0.9),
        p99_ms=percentile(ttft, 0.99),
        failed=sum(not each.ok for each in seen) - count,
        shed=count,
        at=moved("served"),
        late_ms=percentile([each.late_s * 1e3 for each in seen], 0.99),
        idle_shed=shed_while_idle(
            shed,
            watch.samples,
            slots=SLOTS,
            without=frozenset() if case.failing is None else frozenset({case.failing}),
        ),
        cpu_s=spent_s,
        errors=errors,
        seen=seen,
    )


def _front(case: Case, replicas: Replicas) -> AbstractContextManager[Front]:
    """What stands before the replicas, not yet started."""
    if isinstance(case.balancer, Peer):
        return balanced_by(case.balancer, replicas)
    if case.balancer == PLAIN:
        return plain(replicas.addresses)
    return ours(replicas.addresses, strategy=case.balancer, agents=case.agents)


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

"""traffic.py: pace, bounds and figures, with clients that are functions."""

from __future__ import annotations

import asyncio
import json

import pytest

from extproc.demo import traffic
from extproc.demo.clients import WAYS, Call, Seen
from extproc.demo.traffic import ERRORS_KEPT, IN_FLIGHT_MAX, Traffic
from extproc.demo.workload import BATCH, CHAT, Arrival, Workload, generated
from extproc.sim.text import count_tokens, forced_output_tokens


def test_smoke_sends_every_way_for_both_tenants_and_counts() -> None:
    """200 requests; one client's failures are counted and kept in words, the others go on."""

    async def send(call: Call, seen: Seen) -> None:
        await asyncio.sleep(0)
        if call.way.route == "/generate":
            raise RuntimeError(f"no {call.tenant}")
        seen.tokens = call.output_tokens
        if call.way.stream:
            seen.ttft_s = 0.005

    async def main() -> None:
        working = Traffic({CHAT: send, BATCH: send}, seed=1)
        await working.smoke(generated(seed=1))
        figures = working.figures
        summary = json.loads(json.dumps(figures.summary(endpoints_used=4)))
        # 11 ways × 2 tenants in turn: of 200, the ninth pair's way comes 18 times.
        assert summary == {
            "sent": 200,
            "ok": 182,
            "failed": 18,
            "tenants": 2,
            "endpoints_used": 4,
            "ttft_p50_ms": 5.0,
            "ttft_p99_ms": 5.0,
        }
        assert figures.ways == set(WAYS)
        assert len(figures.errors) == 2
        assert sum(tenant.in_flight for tenant in figures.tenants.values()) == 0

    asyncio.run(main())


def test_errors_kept_are_bounded() -> None:
    """A thousand different errors are a thousand failures and a few lines."""

    async def send(call: Call, seen: Seen) -> None:
        raise RuntimeError(call.prompt[:40])

    async def main() -> None:
        working = Traffic({CHAT: send, BATCH: send}, seed=1)
        await working.smoke(generated(seed=1), requests=300)
        assert working.figures.failed == 300
        assert len(working.figures.errors) == ERRORS_KEPT

    asyncio.run(main())


def test_a_replay_keeps_within_its_bound_and_leaves_nothing_running() -> None:
    """Clients that never come back hold IN_FLIGHT_MAX requests, no more; cancelling ends them."""

    async def send(call: Call, seen: Seen) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        work = Workload("all at once", tuple(Arrival(0.0, CHAT, 10, 5) for _ in range(500)), 1.0)
        working = Traffic({CHAT: send, BATCH: send}, seed=1)
        replaying = asyncio.create_task(working.replay(work, speed=1.0))
        for _ in range(2000):
            await asyncio.sleep(0)
        assert working.figures.tenants[CHAT].in_flight == IN_FLIGHT_MAX
        replaying.cancel()
        await asyncio.gather(replaying, return_exceptions=True)
        assert working.figures.tenants[CHAT].in_flight == 0

    asyncio.run(main())


@pytest.mark.parametrize(("prompt", "output"), [(8, 3), (900, 77), (99_999, 99_999)])
def test_a_call_has_the_arrivals_lengths_within_the_models(prompt: int, output: int) -> None:
    """Prompt length in the simulator's own count, output by its marker; both within what it takes."""
    call = Traffic({}, seed=1).call(Arrival(0.0, CHAT, prompt, output), next(iter(WAYS)))
    assert count_tokens(call.prompt, bytes_per_token=4) == min(prompt, traffic.INPUT_TOKENS_MAX)
    assert forced_output_tokens(call.prompt) == call.output_tokens == min(output, traffic.OUTPUT_TOKENS_MAX)

"""traffic.py: pace, bounds and figures, with clients that are functions."""

from __future__ import annotations

import asyncio
import json
from typing import ClassVar

import pytest

from extproc.core.families.difficulty import features
from extproc.core.families.score import DEFAULT
from extproc.core.reading import parse
from extproc.core.request import Request
from extproc.core.routes import find_route
from extproc.demo import traffic
from extproc.demo.clients import WAYS, Call, ClientSample
from extproc.demo.tenancy import BY_NAME, FAMILY, TRIAL_PER_MINUTE
from extproc.demo.traffic import EASY, ERRORS_KEPT, HARD, IN_FLIGHT_MAX, Traffic
from extproc.demo.workload import CHAT, TRIAL, DemoArrival, DemoWorkload, generated
from extproc.sim.text import count_tokens, forced_output_tokens


class QuotaError(Exception):
    """A refusal by quota, as openai's client shows one."""

    status_code = 429
    code = "quota_exceeded"
    headers: ClassVar = {"retry-after": "3"}


def test_smoke_sends_every_way_for_every_tenant_and_counts() -> None:
    """200 requests; one client's failures are counted and kept in words, the others go on."""

    async def send(call: Call, seen: ClientSample) -> None:
        await asyncio.sleep(0)
        if call.way.route == "/generate":
            raise RuntimeError(f"no {call.tenant}")
        seen.tokens = call.output_tokens
        if call.way.stream:
            seen.ttft_s = 0.005

    async def main() -> None:
        working = Traffic(dict.fromkeys(BY_NAME, send), seed=1)
        await working.smoke(generated(seed=1))
        figures = working.figures
        summary = json.loads(json.dumps(figures.summary(endpoints_used=4)))
        # 11 ways × 3 tenants in turn: of 200, /generate comes 18 times.
        assert summary == {
            "sent": 200,
            "ok": 182,
            "failed": 18,
            "refused": {},
            "tenants": 3,
            "endpoints_used": 4,
            "ttft_p50_ms": 5.0,
            "ttft_p99_ms": 5.0,
        }
        assert figures.ways == set(WAYS)
        assert len(figures.errors) == 3
        assert sum(tenant.in_flight for tenant in figures.tenants.values()) == 0

    asyncio.run(main())


def test_only_the_refusal_that_is_meant_is_no_failure() -> None:
    """The trial's quota is there to bite, and named; the same of another tenant is a failure."""

    async def send(call: Call, seen: ClientSample) -> None:
        raise QuotaError

    async def main() -> None:
        working = Traffic(dict.fromkeys(BY_NAME, send), seed=1)
        await working.smoke(generated(seed=1), requests=30)
        summary = working.figures.summary(endpoints_used=0)
        assert (summary["ok"], summary["failed"]) == (0, 20)
        assert summary["refused"] == {
            TRIAL: {"by": f"quota of {TRIAL_PER_MINUTE} requests a minute", "count": 10}
        }
        assert working.figures.tenants[TRIAL].retry_after_s == 3.0

    asyncio.run(main())


def test_the_family_is_asked_easy_and_hard_questions_on_its_own_routes_alone() -> None:
    """Half of its prompts are to get the cheap model, half the strong one; TGI's routes know no family."""
    working = Traffic({}, seed=1)
    arrival = DemoArrival(0.0, CHAT, 200, 50)
    openings = {EASY: 0, HARD: 0}
    for way in list(WAYS) * 40:
        call = working.call(arrival, way)
        if call.model == FAMILY:
            assert way.route.startswith("/v1/")
            openings[EASY if call.prompt.startswith(EASY) else HARD] += 1
            body = json.dumps(
                {"messages": [{"role": "user", "content": call.prompt}], "max_tokens": call.output_tokens}
            )
            route = find_route("POST", "/v1/chat/completions")
            assert route is not None
            request = parse(route, body.encode())
            assert isinstance(request, Request)
            assert (DEFAULT.score(features(request)) > 0.5) is call.prompt.startswith(HARD)
    assert min(openings.values()) > 20


def test_errors_kept_are_bounded() -> None:
    """A thousand different errors are a thousand failures and a few lines."""

    async def send(call: Call, seen: ClientSample) -> None:
        raise RuntimeError(call.prompt[:40])

    async def main() -> None:
        working = Traffic(dict.fromkeys(BY_NAME, send), seed=1)
        await working.smoke(generated(seed=1), requests=300)
        assert working.figures.failed == 300
        assert len(working.figures.errors) == ERRORS_KEPT

    asyncio.run(main())


def test_a_replay_keeps_within_its_bound_and_leaves_nothing_running() -> None:
    """Clients that never come back hold IN_FLIGHT_MAX requests, no more; cancelling ends them."""

    async def send(call: Call, seen: ClientSample) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        work = DemoWorkload("all at once", tuple(DemoArrival(0.0, CHAT, 10, 5) for _ in range(500)), 1.0)
        working = Traffic(dict.fromkeys(BY_NAME, send), seed=1)
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
    call = Traffic({}, seed=1).call(DemoArrival(0.0, CHAT, prompt, output), next(iter(WAYS)))
    assert count_tokens(call.prompt, bytes_per_token=4) == min(prompt, traffic.INPUT_TOKENS_MAX)
    assert forced_output_tokens(call.prompt) == call.output_tokens == min(output, traffic.OUTPUT_TOKENS_MAX)

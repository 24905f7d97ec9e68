"""Sends the workload through real clients and keeps what they saw.

Owns the pace, the bound on requests in flight and the clients' own figures. Whose request goes which
way is drawn from a seed.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from random import Random
from typing import Any, Final

from extproc.core.series import shown
from extproc.demo import wave
from extproc.demo.clients import WAYS, Call, ClientSample, Send, Way
from extproc.demo.refusals import Refusal, refusal
from extproc.demo.tenancy import BY_NAME, FAMILY, POOLS, TENANTS
from extproc.demo.workload import BATCH, CHAT, TRIAL, DemoArrival, DemoWorkload, gaps

#: Requests under way at once; above it arrivals wait, as behind a client's connection pool.
IN_FLIGHT_MAX: Final = 48
#: Smoke: requests, how many at once, and lengths that two slow cores get through.
SMOKE_REQUESTS, SMOKE_AT_ONCE = 200, 12
SMOKE_INPUT_TOKENS_MAX, SMOKE_OUTPUT_TOKENS_MAX = 1_500, 40
#: The simulated model takes 8,191 tokens; a chat's template takes some.
INPUT_TOKENS_MAX, OUTPUT_TOKENS_MAX = 6_000, 1_000
BYTES_PER_TOKEN: Final = 4
#: Times to first token kept per tenant, and errors shown.
TTFT_KEPT, ERRORS_KEPT = 4_096, 5
#: What a prompt for the family begins with, so that its models differ: an easy question, and a hard one.
EASY: Final = "Translate these words into French: "
HARD: Final = (
    "Prove step by step that this order of stops is the shortest, derive the bound by induction, compare it "
    "with the alternatives, and explain why it holds: "
)

#: How each tenant usually calls: interactive streams here, batches there.
USUAL: Final[Mapping[str, Sequence[Way]]] = {
    CHAT: [way for way in WAYS if way.route.startswith("/v1/") and (way.stream or way.client == "openai")],
    TRIAL: [way for way in WAYS if way.client == "openai"],
    BATCH: [way for way in WAYS if not way.route.startswith("/v1/")],
}

_MODELS: Final = tuple(serving.model for serving in POOLS)
_WORDS: Final = ("harbour", "tide", "keel", "rudder", "beacon", "chart", "fathom", "mast", "anchor", "swell")


@dataclass(slots=True)
class TenantFigures:
    """What one tenant's clients saw. `refused` is what is meant to be: by a quota that is there to bite."""

    sent: int = 0
    ok: int = 0
    refused: int = 0
    #: What the last of them was told to wait.
    retry_after_s: float | None = None
    failed: int = 0
    in_flight: int = 0
    tokens: int = 0
    ttft_s: deque[float] = field(default_factory=lambda: deque(maxlen=TTFT_KEPT))


class TrafficFigures:
    """What all clients saw."""

    def __init__(self) -> None:
        self.tenants = {name: TenantFigures() for name in BY_NAME}
        self.errors: Counter[str] = Counter()
        self.ways: set[Way] = set()

    @property
    def failed(self) -> int:
        """Requests that a client saw fail."""
        return sum(tenant.failed for tenant in self.tenants.values())

    def ended(self, call: Call, error: BaseException) -> None:
        """Count a request that was not answered: refused as it is meant to be, or failed."""
        figures = self.tenants[call.tenant]
        told = refusal(error)
        if told is not None and told.by_quota and BY_NAME[call.tenant].bites:
            figures.refused += 1
            self._told(figures, told)
        else:
            figures.failed += 1
            self.failure(call, error)

    @staticmethod
    def _told(figures: TenantFigures, told: Refusal) -> None:
        if told.retry_after_s is not None:
            figures.retry_after_s = told.retry_after_s

    def failure(self, call: Call, error: BaseException) -> None:
        """Keep an error in a few words; the kinds kept are bounded."""
        text = f"{call.way.client} {call.way.route}: {type(error).__name__}: {str(error)[:160]}"
        if text in self.errors or len(self.errors) < ERRORS_KEPT:
            self.errors[text] += 1

    def summary(self, *, endpoints_used: int) -> dict[str, Any]:
        """The smoke test's last line."""
        times = sorted(time for tenant in self.tenants.values() for time in tenant.ttft_s)
        return {
            "sent": sum(tenant.sent for tenant in self.tenants.values()),
            "ok": sum(tenant.ok for tenant in self.tenants.values()),
            "failed": self.failed,
            "refused": {
                name: {"by": f"quota of {BY_NAME[name].bites}", "count": tenant.refused}
                for name, tenant in self.tenants.items()
                if tenant.refused
            },
            "tenants": sum(tenant.sent > 0 for tenant in self.tenants.values()),
            "endpoints_used": endpoints_used,
            "ttft_p50_ms": shown(times, 0.50, scale=1e3),
            "ttft_p99_ms": shown(times, 0.99, scale=1e3),
        }


class Traffic:
    """The tenants at work. `send` maps a tenant to its clients."""

    def __init__(self, send: Mapping[str, Send], *, seed: int) -> None:
        self.figures = TrafficFigures()
        self._send = send
        self._rng, self._seed = Random(seed), seed
        self._text = " ".join(self._rng.choice(_WORDS) for _ in range(12_000))
        self._room = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._running: set[asyncio.Task[None]] = set()

    async def replay(self, work: DemoWorkload, *, speed: float) -> None:
        """Send arrivals when they are due, span after span, until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            for gap_s, arrival in cycle(gaps(work)):
                due_s = loop.time() + gap_s / speed
                await self._room.acquire()
                await asyncio.sleep(max(0.0, due_s - loop.time()))
                way = self._rng.choice(USUAL[arrival.tenant])
                self._begin(self.call(arrival, way), self._room)
        finally:
            await self._cancel_running()

    async def wave(self, *, speed: float) -> None:
        """Send the requests of the pool that grows and shrinks, until cancelled."""

        def send(arrival: DemoArrival) -> None:
            # Those that find no room here are not sent: a wave must not hold up the others.
            if len(self._running) < IN_FLIGHT_MAX:
                way = next(way for way in WAYS if way.client == "openai" and way.stream)
                task = asyncio.create_task(self._one(replace(self.call(arrival, way), model=wave.MODEL)))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

        await wave.waves(send, speed=speed, seed=self._seed)

    async def smoke(self, work: DemoWorkload, *, requests: int = SMOKE_REQUESTS) -> None:
        """Send so many requests of both tenants through every way, a few at once, and wait for all."""
        pairs = cycle([(tenant.name, way) for way in WAYS for tenant in TENANTS])
        limit = asyncio.Semaphore(SMOKE_AT_ONCE)
        try:
            for (tenant, way), arrival in islice(zip(pairs, cycle(work.arrivals), strict=False), requests):
                short = DemoArrival(
                    arrival.at_s,
                    tenant,
                    min(arrival.input_tokens, SMOKE_INPUT_TOKENS_MAX),
                    min(arrival.output_tokens, SMOKE_OUTPUT_TOKENS_MAX),
                )
                await limit.acquire()
                self._begin(self.call(short, way), limit)
            await asyncio.gather(*self._running)
        finally:
            await self._cancel_running()

    def call(self, arrival: DemoArrival, way: Way) -> Call:
        """A request of those lengths: words, and the marker that fixes the simulated answer's length."""
        model, opening = self._asked(arrival.tenant, way)
        output_tokens = min(arrival.output_tokens, OUTPUT_TOKENS_MAX)
        marker = f" [[sim:out={output_tokens}]]"
        size = min(arrival.input_tokens, INPUT_TOKENS_MAX) * BYTES_PER_TOKEN - len(marker) - len(opening)
        start = self._rng.randrange(len(self._text) - INPUT_TOKENS_MAX * BYTES_PER_TOKEN)
        prompt = opening + self._text[start : start + max(size, 1)] + marker
        return Call(tenant=arrival.tenant, way=way, model=model, prompt=prompt, output_tokens=output_tokens)

    def _asked(self, name: str, way: Way) -> tuple[str, str]:
        """The model that a tenant asks for, or the family, and what its prompt begins with."""
        tenant = BY_NAME[name]
        draw = self._rng.random()
        if draw < tenant.crossing:
            return next(other for other in _MODELS if other != tenant.model), ""
        if draw < tenant.crossing + tenant.family and way.route.startswith("/v1/"):
            return FAMILY, self._rng.choice((EASY, HARD))
        return tenant.model, ""

    def _begin(self, call: Call, room: asyncio.Semaphore) -> None:
        task = asyncio.create_task(self._one(call))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: room.release())

    async def _one(self, call: Call) -> None:
        figures = self.figures.tenants[call.tenant]
        seen = ClientSample()
        figures.sent += 1
        figures.in_flight += 1
        self.figures.ways.add(call.way)
        try:
            await self._send[call.tenant](call, seen)
            figures.ok += 1
        except Exception as error:  # noqa: BLE001 (three clients' own exceptions: each is a failed request)
            self.figures.ended(call, error)
        finally:
            figures.in_flight -= 1
            figures.tokens += seen.tokens
            if seen.ttft_s is not None:
                figures.ttft_s.append(seen.ttft_s)

    async def _cancel_running(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

"""A noisy neighbour on a full simulated replica, through the real Envoy: what it costs the others.

Closed loops, so that every tenant always wants more than its part. First come, first served is the same
queue and load under one tenant's key: one line, by arrival. Run this file to see the figures.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass, field
from random import Random

import aiohttp
import pytest
from gateway import Gateway, wait_for
from replicas import Replicas, specs

from extproc.core.tenant import hash_key

pytestmark = [pytest.mark.envoy, pytest.mark.slow]

#: Simulated permits; three clients a tenant are twelve for four places.
SLOTS, CLIENTS = 4, 3
#: "noisy" sends ten times what the three others do; "everybody" is the key of first come, first served.
GOOD = ("ada", "ben", "cyn")
TENANTS = ("noisy", *GOOD)
WARM_S, MEASURED_S, ALONE_S = 1.0, 5.0, 1.5
#: What a queue without an eye for tenants must at least do to the others, or nothing was shown.
FIRST_COME_HURTS = 1.5


@dataclass
class Run:
    """What came of a run: times to first token, and weighted tokens, of the measured part.

    `turns` are how many others' first tokens came between a request and its own: a wait that no busy machine
    makes longer.
    """

    ttft_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    turns: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    firsts: int = 0
    tokens: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    failed: list[str] = field(default_factory=list)

    def p99(self, *tenants: str) -> float:
        ordered = sorted(value for tenant in tenants for value in self.ttft_s[tenant])
        return ordered[int(0.99 * len(ordered))]

    def turns_p99(self, tenant: str) -> int:
        ordered = sorted(self.turns[tenant])
        return ordered[int(0.99 * len(ordered))]

    @property
    def jain(self) -> float:
        """(Σx)² / (n · Σx²) over the tenants' tokens: 1 is even."""
        values = [self.tokens[tenant] for tenant in TENANTS]
        return sum(values) ** 2 / (len(values) * sum(value * value for value in values))

    @property
    def total(self) -> float:
        return sum(self.tokens.values())


async def run(
    gateway: Gateway, clients: dict[str, int], *, seconds: float = MEASURED_S, shared_key: bool = False
) -> Run:
    """Each tenant's clients, one request after the other, until the time is over."""
    result = Run()
    begins = time.monotonic() + WARM_S
    ends = begins + seconds

    async def client(session: aiohttp.ClientSession, tenant: str, number: int) -> None:
        rng = Random(f"{tenant}-{number}")
        key = "sk-everybody" if shared_key else f"sk-{tenant}"
        while time.monotonic() < ends:
            tokens_in, tokens_out = rng.randrange(20, 120), rng.randrange(10, 30)
            text = f"{rng.random()} [[sim:out={tokens_out}]] ".ljust(4 * tokens_in, "x")
            body = {"inputs": text, "parameters": {"max_new_tokens": tokens_out}}
            sent, before = time.monotonic(), result.firsts
            headers = {"authorization": f"Bearer {key}"}
            async with session.post(f"{gateway.url}/generate_stream", json=body, headers=headers) as answer:
                if answer.status != 200:
                    result.failed.append(f"{answer.status} {await answer.text()}")
                    return
                came = 0
                async for line in answer.content:
                    if not line.startswith(b"data:"):
                        continue
                    if not came:
                        if begins <= sent:
                            result.ttft_s[tenant].append(time.monotonic() - sent)
                            result.turns[tenant].append(result.firsts - before)
                        result.firsts += 1
                    came += 1
                    if begins <= time.monotonic() <= ends:
                        result.tokens[tenant] += 2.0 + (tokens_in if came == 1 else 0)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
        await asyncio.gather(
            *(client(session, tenant, i) for tenant, count in clients.items() for i in range(count))
        )
    assert not result.failed, result.failed[:3]
    wait_for("quiet", gateway.quiet)
    return result


def load(noise: int) -> dict[str, int]:
    return {tenant: CLIENTS * (noise if tenant == "noisy" else 1) for tenant in TENANTS}


@pytest.mark.soak
def test_a_noisy_neighbour_costs_the_others_nothing() -> None:
    """Even service, the others' p99 within a fifth of a full replica's, and first come's throughput."""
    tenants = [
        {"name": name, "keys": [{"sha256": hash_key(f"sk-{name}")}]} for name in (*TENANTS, "everybody")
    ]
    with (
        Replicas(specs(1, time_scale=2.0)) as replicas,
        Gateway(
            {
                "chat": {
                    "models": ["tiny-chat"],
                    "addresses": [{"address": replicas.addresses[0], "max_concurrent": SLOTS}],
                }
            },
            tenants=tenants,
            # Nobody is lost: one tenant's requests go strictly by arrival.
            classes=[{"name": "standard", "hold_ms": 30_000, "ttft_ms": 600_000}],
        ) as gateway,
    ):
        alone = asyncio.run(run(gateway, {"ada": CLIENTS}, seconds=ALONE_S))
        usual = asyncio.run(run(gateway, load(1)))
        noisy = asyncio.run(run(gateway, load(10)))
        first_come = asyncio.run(run(gateway, load(10), shared_key=True))
        counts = gateway.status()["counts"]
    print(
        f"\np99 TTFT of the three: alone {alone.p99('ada'):.3f} s, full replica {usual.p99(*GOOD):.3f} s,"
        f" beside 10× {noisy.p99(*GOOD):.3f} s ({noisy.p99(*GOOD) / usual.p99(*GOOD):.2f}× of full,"
        f" {noisy.p99(*GOOD) / alone.p99('ada'):.1f}× of alone),"
        f" first come {first_come.p99(*GOOD):.3f} s; the noisy one's own {noisy.p99('noisy'):.3f} s"
        f"\nJain of weighted tokens {noisy.jain:.4f} (first come {first_come.jain:.4f});"
        f" tokens {noisy.total / first_come.total:.3f} of first come's;"
        f" requests measured {sum(map(len, noisy.ttft_s.values()))}, held {counts['held']}"
    )
    assert noisy.jain >= 0.98, dict(noisy.tokens)
    assert noisy.p99(*GOOD) <= 1.2 * usual.p99(*GOOD)
    assert first_come.p99(*GOOD) >= FIRST_COME_HURTS * usual.p99(*GOOD), "the load did not hurt anybody"
    assert noisy.total >= 0.97 * first_come.total
    assert counts["released"] == counts["held"], "nobody was shed"


if __name__ == "__main__":
    test_a_noisy_neighbour_costs_the_others_nothing()

"""What is heard late, or in another order than it happened, moves no prompt from its replica."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random

from extproc.core.endpoint import Member
from extproc.sim.arrival import Arrival, Workload
from extproc.sim.world import Setting, parse_fleet, run
from extproc.sim.world.fleets import SimFleet
from extproc.sim.world.world import Delays

BLOCK_TOKENS = 16
TENANTS, REQUESTS, RATE_PER_S = 48, 490, 40.0
#: Seeds whose first seconds chance made bad, with or without disorder, when learners took each other's priors
#: for evidence: .72 to .77 were found cached.
SEEDS = (4, 16, 25, 29)
#: Ends and first tokens are heard of up to so much later.
JITTER_MS = 2.0


@dataclass(frozen=True, slots=True)
class _Unknown(SimFleet):
    """One of which the gateway is told no card and no memory."""

    def members(self, *, permits: int | None = None) -> list[Member]:
        """What it is told of each."""
        told = SimFleet.members(self, permits=permits)
        return [member._replace(hardware="", kv_capacity_tokens=0) for member in told]


def prompts(seed: int) -> Workload:
    """As `make bench-balance` asks an engine that takes one prompt at a time: 48 tenants, Zipf."""
    rng = Random(f"{seed}/asks")
    shares = list(accumulate(1.0 / (k + 1) ** 0.9 for k in range(TENANTS)))
    prefixes = [rng.randint(900, 1_200) // BLOCK_TOKENS for _ in range(TENANTS)]
    at_s, found = 0.0, []
    for serial in range(REQUESTS):
        at_s += rng.expovariate(RATE_PER_S)
        tenant = rng.choices(range(TENANTS), cum_weights=shares)[0]
        own = rng.randint(1, 6)
        blocks = (
            *(hash((tenant, i)) for i in range(prefixes[tenant])),
            *(hash((TENANTS + serial, i)) for i in range(own)),
        )
        output = min(128, max(1, round(8 * rng.lognormvariate(0.0, 0.5))))
        tokens = BLOCK_TOKENS * len(blocks)
        found.append(Arrival(int(at_s * 1e9), "acme", tokens, output, 128, blocks))
    return Workload("one at a time", found, BLOCK_TOKENS, ("acme",))


def slots_known(seed: int) -> int:
    """How many of four engines with 8 slots are taken to have about 8, after 100 prompts in 1.4 s."""
    plain = parse_fleet("4*a100-80g/llama-3-8b:parallel=8:batch=8:kv_tokens=20000:slowdown=2.4:agent=false")
    asked = prompts(seed)
    hurried = [replace(each, at_ns=each.at_ns * 4 // 7) for each in asked.arrivals[:100]]
    workload = Workload(asked.name, hurried, asked.block_tokens, asked.tenants)
    setting = Setting(strategy="steer", seed=seed, model_error=0.0)
    result = run(workload, _Unknown(plain.name, plain.groups), setting)
    return sum(7 <= endpoint.slots.limit <= 9 for endpoint in result.scheduler.fleet.endpoints)


def hit(seed: int, jitter_ms: float) -> float:
    """The share of all prompt tokens that was found cached."""
    plain = parse_fleet("4*a100-80g/llama-3-8b:batch=8:kv_tokens=20000:slowdown=1.65:agent=false")
    setting = Setting(strategy="steer", seed=seed, model_error=0.0, delays=Delays(event_jitter_ms=jitter_ms))
    served = run(prompts(seed), _Unknown(plain.name, plain.groups), setting).served
    assert all(each.outcome == "ok" for each in served)
    return sum(each.cached_tokens for each in served) / sum(each.arrival.prompt_tokens for each in served)


def test_events_in_disorder_move_no_prompt_from_its_replica() -> None:
    """Ends and first tokens that overtake each other and decisions leave prefix hits within a point."""
    plain, shuffled = (sum(hit(seed, jitter) for seed in SEEDS) / len(SEEDS) for jitter in (0.0, JITTER_MS))
    assert abs(plain - shuffled) <= 0.01, (plain, shuffled)
    assert min(plain, shuffled) >= 0.785, (plain, shuffled)


def test_the_slots_of_engines_that_prefill_side_by_side_are_known_within_seconds() -> None:
    """By who was there when a late prefill began: by the streams that decode, 12 of these 48 were known."""
    known = [slots_known(seed) for seed in range(1, 13)]
    assert sum(known) >= 36, known

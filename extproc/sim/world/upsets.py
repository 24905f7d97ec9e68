"""What happens to replicas that nobody told the gateway of: stalls, changes of speed, others' requests.

Owns when, and whether a change of speed is known to the scheduler. The clock is the world's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any, Final

from extproc.core.fleet import Fleet
from extproc.core.predict.speed import Speed
from extproc.sim.arrival import Arrival
from extproc.sim.events import SimRequest
from extproc.sim.replica import SimReplica
from extproc.sim.world.conduct import Conduct

S_NS: Final = 1_000_000_000
#: A speed is known where what is predicted of a prompt and a step is within this share of the truth.
KNOWN_SHARE: Final = 0.2
#: The prompt, and the batch and its context, that it is judged by; tokens and sequences.
KNOWN_PROMPT, KNOWN_BATCH, KNOWN_CONTEXT = 1_000, 8, 8_000
#: How often it is looked whether a change of speed is known.
LOOK_NS: Final = 20_000_000


class Upsets:
    """Of one world's replicas. `at` schedules a call of the world's, `changed` says which was touched.

    `own_share` of the fleet's load is the workload's. `change_known_s` is the time from a change of speed
    until it was known, by address; None while it is not.
    """

    def __init__(
        self,
        conducts: Mapping[str, Conduct],
        replicas: Mapping[str, SimReplica],
        fleet: Fleet,
        arrivals: Sequence[Arrival],
        *,
        at: Callable[[int, Callable[[Any, int], None], Any], None],
        changed: Callable[[str], None],
        own_share: float,
        rng: Random,
    ) -> None:
        self.change_known_s: dict[str, float | None] = {}
        self._conducts, self._replicas, self._fleet = conducts, replicas, fleet
        self._at, self._touched = at, changed
        for address, conduct in conducts.items():
            if conduct.change != 1.0 and arrivals:
                span_ns = arrivals[-1].at_ns - arrivals[0].at_ns
                at(arrivals[0].at_ns + round(conduct.change_at * span_ns), self._change, address)
            own = Random(rng.random())
            asked = foreign_requests(arrivals, conduct.foreign / own_share / len(conducts), own)
            for at_ns, request in asked:
                at(at_ns, self._ask, (address, request))
        for number, (address, conduct) in enumerate(conducts.items()):
            if conduct.stall_s:
                # One after the other, as engines that nobody keeps in step do.
                first_s = conduct.stall_every_s * (number + 0.5) / len(conducts)
                at(round(first_s * S_NS), self._stall, (address, True))

    def _ask(self, what: tuple[str, SimRequest], now_ns: int) -> None:
        """Somebody else asks a replica; who is refused does not come again."""
        address, request = what
        self._replicas[address].submit(request, now_ns=now_ns)
        self._touched(address)

    def _stall(self, what: tuple[str, bool], now_ns: int) -> None:
        """Nothing moves, or it does again; and so on in each period."""
        address, begins = what
        self._replicas[address].set_fault(now_ns=now_ns, hang=begins)
        conduct = self._conducts[address]
        pause_s = conduct.stall_s if begins else conduct.stall_every_s - conduct.stall_s
        self._at(now_ns + round(pause_s * S_NS), self._stall, (address, not begins))
        self._touched(address)

    def _change(self, address: str, now_ns: int) -> None:
        """Its speed changes for good, and from now on is looked for."""
        replica = self._replicas[address]
        replica.set_fault(now_ns=now_ns, slowdown=replica.slowdown * self._conducts[address].change)
        self._touched(address)
        self.change_known_s[address] = None
        self._look((address, now_ns), now_ns)

    def _look(self, what: tuple[str, int], now_ns: int) -> None:
        address, changed_ns = what
        speed = next(one.speed for one in self._fleet.endpoints if one.address == address)
        if known(speed, self._replicas[address]):
            self.change_known_s[address] = (now_ns - changed_ns) / S_NS
        else:
            self._at(now_ns + LOOK_NS, self._look, what)


def foreign_requests(
    arrivals: Sequence[Arrival], per_own: float, rng: Random
) -> Iterator[tuple[int, SimRequest]]:
    """When somebody else asks one replica for what: Poisson, `per_own` for each arrival, of like lengths."""
    if not per_own or len(arrivals) < 2:
        return
    at, end_ns = float(arrivals[0].at_ns), arrivals[-1].at_ns
    mean_ns = (end_ns - at) / len(arrivals) / per_own
    number = 0
    while mean_ns > 0.0 and (at := at + rng.expovariate(1.0) * mean_ns) < end_ns:
        like = rng.choice(arrivals)
        number += 1
        yield (
            round(at),
            SimRequest(
                request_id=f"foreign-{number}",
                prompt_tokens=like.prompt_tokens,
                output_tokens=like.output_tokens,
                max_new_tokens=like.output_tokens,
                # Prefixes as ours are, and none of ours.
                blocks=tuple(("foreign", block) for block in like.blocks),
            ),
        )


def known(speed: Speed, replica: SimReplica) -> bool:
    """Whether what is predicted of a replica's speed is near the truth."""
    said = speed.prefill_ms(KNOWN_PROMPT) + speed.step_ms(KNOWN_BATCH, KNOWN_CONTEXT)
    hardware = replica.hardware
    truth = hardware.prefill_ms(KNOWN_PROMPT) + hardware.decode_ms(KNOWN_BATCH, KNOWN_CONTEXT)
    return abs(said / (truth * replica.slowdown) - 1.0) <= KNOWN_SHARE

"""A cell to be played: workload, fleet, load, strategy, seed; and what comes out of it.

Owns the values, their checks and the reading of `0.5..1.2` and `1..3`. Plays nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from json import dumps
from typing import Final

from extproc.core.strategies import parameters
from extproc.core.strategies.parameter import Value
from extproc.lab import strategies as registry
from extproc.lab.report import Cell
from extproc.sim.world import SimFleet, parse_fleet
from extproc.sim.world.run import registered

LOAD_STEP: Final = 0.1
LOADS_MAX: Final = 100
#: TGI's own limit: the 129th request is answered with an error inside a 200.
TGI_PERMITS: Final = 128
#: So many that an engine queues whatever comes, as vLLM and SGLang do.
QUEUE_PERMITS: Final = 1_024


class CaseError(ValueError):
    """Something about a cell that cannot be; the message names the part and the mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignRun:
    """One run to be played. `limit` 0 is the whole trace; `permits` and `replicas` 0 are the fleet's own.

    `load_of` is the fleet whose load it is ("": its own), so that fleets are compared at equal requests/s.
    """

    stream: str
    fleet: str
    load: float
    strategy: str
    seed: int
    limit: int = 0
    replicas: int = 0
    permits: int = 0
    parameters: tuple[tuple[str, Value], ...] = ()
    #: A response cache before the fleet: MiB (0: none), and seconds that its answers live.
    cache_mib: float = 0.0
    cache_ttl_s: float = 3_600.0
    load_of: str = ""

    @property
    def loaded_fleet(self) -> SimFleet:
        """The fleet that load 1 is of; FleetError."""
        return parse_fleet(self.load_of) if self.load_of else self.simulated_fleet

    @property
    def simulated_fleet(self) -> SimFleet:
        """Its fleet; FleetError."""
        fleet = parse_fleet(self.fleet)
        if self.replicas:
            fleet = fleet.scaled(self.replicas)
        return fleet.permitting(self.permits) if self.permits else fleet

    @property
    def workload(self) -> str:
        """Its column in a report."""
        name = self.stream.rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".csv").removesuffix(".jsonl")
        fleet = f"{self.fleet}×{self.replicas}" if self.replicas else self.fleet
        return f"{name} on {fleet}"

    def key(self, version: str) -> str:
        """A name for the file of its result, under a version of the code."""
        return sha256(dumps([asdict(self), version], sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """A case and its cell; `ttft_ms` are up to 200 quantiles of the first-token times of those answered.

    Of two sites `placed` says for which reasons requests went where they went, `there` which share of them
    the centre answered, 0 to 1.
    """

    case: CampaignRun
    cell: Cell
    ttft_ms: tuple[float, ...]
    requests_per_s: float
    placed: Mapping[str, int] = field(default_factory=dict)
    there: float = 0.0


def check_strategy(name: str, given: Mapping[str, Value]) -> None:
    """CaseError for a strategy that is not known, or a parameter that it has not."""
    try:
        registry.check_strategy(name, given)
    except ValueError as error:
        raise CaseError(str(error)) from error


def parameter_of(text: str) -> tuple[str, str, Value]:
    """`steer.queue_tokens=2048` as strategy, key and value of the key's type; CaseError."""
    head, equals, raw = text.partition("=")
    strategy, dot, key = head.partition(".")
    if not (equals and dot):
        raise CaseError(f"{text!r}: write STRATEGY.KEY=VALUE, such as steer.queue_tokens=2048")
    check_strategy(strategy, {})
    known = parameters(registered(strategy))
    if key not in known:
        raise CaseError(f"{text!r}: {strategy} has no {key!r}; it has {', '.join(known) or 'no parameters'}")
    kind = known[key][0]
    value: Value
    try:
        if kind is bool:
            value = {"true": True, "false": False}[raw]
        elif kind is int:
            value = int(raw)
        elif kind is float:
            value = float(raw)
        else:
            value = raw
    except (KeyError, ValueError):
        raise CaseError(f"{text!r}: {raw!r} is no {kind.__name__}") from None
    return strategy, key, value


def load_values(text: str) -> tuple[float, ...]:
    """`.5,.9`, `0.5..1.2` (in steps of .1) or `0.5..1.2:0.05`; CaseError."""
    loads: list[float] = []
    for part in text.split(","):
        first, dots, rest = part.partition("..")
        last, _, step = rest.partition(":")
        try:
            low = float(first)
            high, by = (float(last), float(step or LOAD_STEP)) if dots else (low, LOAD_STEP)
        except ValueError:
            raise CaseError(f"{part!r} is no load; write .9, .5,.9 or 0.5..1.2:0.1") from None
        if not (0 < low <= high <= 100 and by > 0) or (high - low) / by > LOADS_MAX:
            raise CaseError(f"{part!r}: loads ascend from above 0, at most {LOADS_MAX} of them")
        loads += [round(low + at * by, 6) for at in range(int((high - low) / by + 1e-6) + 1)]
    return tuple(dict.fromkeys(loads))


def seed_values(text: str) -> tuple[int, ...]:
    """`1,2` or `1..3`; CaseError."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dots, last = part.partition("..")
        if not first.strip().isdigit() or (dots and not last.strip().isdigit()):
            raise CaseError(f"{part!r} is no seed; write 1, 1,2 or 1..3")
        low, high = int(first), int(last or first)
        if not low <= high < low + 1000:
            raise CaseError(f"{part!r}: seeds ascend, at most 1000 of them")
        seeds += range(low, high + 1)
    return tuple(dict.fromkeys(seeds))

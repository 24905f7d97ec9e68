"""Which replicas a simulation has: `8*a100-80g/llama-3-8b,1*a100-80g/llama-3-8b:slowdown=3`.

Two sites are written with the way between them: `2*a100-80g/llama-3-8b,way=40,6*h100-80g/llama-3-8b` has two
replicas at the edge and six in the centre.

Owns the short form, the named fleets and what the gateway is told of each replica (its card, its memory,
its price). Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from random import Random
from typing import Any

from extproc.core.endpoint import Member
from extproc.sim.capacity import ReplicaShare
from extproc.sim.slots import ReplicaLimits
from extproc.sim.timing import HARDWARE, Hardware, hardware_named
from extproc.sim.world.conduct import Conduct
from extproc.sim.world.way import SiteWay, described, way_of

#: What NVML calls the cards of a timing model, how many make a replica, and what one costs an hour: list
#: prices of 2026 for a card, rounded, in USD; only their ratio matters.
CARDS = {
    "a100-80g": ("NVIDIA A100-SXM4-80GB", 1, 2.0),
    "h100-80g": ("NVIDIA H100 80GB HBM3", 1, 3.5),
    "h100-tp4": ("NVIDIA H100 80GB HBM3", 4, 3.5),
    "h100-tp8": ("NVIDIA H100 80GB HBM3", 8, 3.5),
    "a100-tp4": ("NVIDIA A100-SXM4-80GB", 4, 2.0),
    "a100-tp8": ("NVIDIA A100-SXM4-80GB", 8, 2.0),
}
#: Spot capacity costs this share.
SPOT_SHARE = 0.35
REPLICAS_MAX = 1_000

#: Engines that are not as modelled, all of one size.
UNLIKE = {
    "8b-parallel2": "8*a100-80g/llama-3-8b:parallel=2",
    "8b-parallel8": "8*a100-80g/llama-3-8b:parallel=8:batch=8",
    "8b-parallel8-shared": "8*a100-80g/llama-3-8b:parallel=8:batch=64:interference=1",
    "8b-parallel8-blind": "8*a100-80g/llama-3-8b:parallel=8:batch=8:agent=false",
    "8b-budget512": "8*a100-80g/llama-3-8b:budget=512",
    "8b-budget16k": "8*a100-80g/llama-3-8b:budget=16384",
    "8b-hidden": "8*a100-80g/llama-3-8b:batch=16:permits=1024:hidden=true",
    "8b-batch1": "8*a100-80g/llama-3-8b:batch=1:permits=1024",
    "8b-urgent": "8*a100-80g/llama-3-8b:batch=16:permits=1024:order=urgent",
    "8b-shortest": "8*a100-80g/llama-3-8b:batch=16:permits=1024:order=shortest",
    "8b-stalls": "8*a100-80g/llama-3-8b:stall_s=2",
    "8b-half-speed": "8*a100-80g/llama-3-8b:slowdown=2",
    "8b-double-speed": "8*a100-80g/llama-3-8b:slowdown=0.5",
    "8b-wrong-card": "4*a100-80g/llama-3-8b:told=h100-80g/llama-3-8b"
    ",4*h100-80g/llama-3-8b:told=a100-80g/llama-3-8b",
    "8b-no-cache": "8*a100-80g/llama-3-8b:cache=0",
    "8b-small-cache": "8*a100-80g/llama-3-8b:cache=0.1",
    "8b-small-cache-told": "8*a100-80g/llama-3-8b:cache=0.1:cached_told=true",
    "8b-random-cache": "8*a100-80g/llama-3-8b:cache=0.1:evict=random",
    "8b-foreign": "8*a100-80g/llama-3-8b:foreign=0.5",
    "8b-half-foreign": "4*a100-80g/llama-3-8b,4*a100-80g/llama-3-8b:foreign=0.5",
    "8b-no-usage": "8*a100-80g/llama-3-8b:usage=false",
    "8b-unheard": "8*a100-80g/llama-3-8b:heard=false",
    "8b-blind": "8*a100-80g/llama-3-8b:agent=false",
    "8b-late": "8*a100-80g/llama-3-8b:late_s=5",
    "8b-flaky": "7*a100-80g/llama-3-8b,1*a100-80g/llama-3-8b:errors=0.5",
    "8b-step-slower": "6*a100-80g/llama-3-8b,2*a100-80g/llama-3-8b:change=3",
    "8b-step-faster": "6*a100-80g/llama-3-8b,2*a100-80g/llama-3-8b:change=0.5",
}

NAMED = {
    "8b": "8*a100-80g/llama-3-8b",
    "8b-mixed": "5*a100-80g/llama-3-8b,3*h100-80g/llama-3-8b",
    "8b-straggler": "7*a100-80g/llama-3-8b,1*a100-80g/llama-3-8b:slowdown=3",
    **UNLIKE,
    "8b-tiers": "2*a100-80g/llama-3-8b,way=40,6*h100-80g/llama-3-8b",
    "70b": "8*a100-tp4/llama-2-70b",
    "70b-mixed": "5*a100-tp4/llama-2-70b,3*h100-tp4/llama-2-70b",
    "70b-straggler": "7*a100-tp4/llama-2-70b,1*a100-tp4/llama-2-70b:slowdown=3",
}


class FleetError(ValueError):
    """A fleet that cannot be read; the message names the part and the mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group(Conduct):
    """`count` replicas alike. `slowdown` 3 is a straggler; `permits` are the engine's, `batch` what it
    runs of them (0: all), in `parallel` lanes side by side, whose prefills cost each other `interference`
    (0..1). `budget` are the prompt tokens of a step. `order`, `cache` and `evict` are `ReplicaLimits`'
    queue_order, cache_share and eviction. `told` is the hardware that the gateway is told of ("": its own).
    `price` is what a replica costs an hour (0: its cards' list price). How it behaves besides is
    `Conduct`'s."""

    hardware: str
    count: int = 1
    slowdown: float = 1.0
    permits: int = 128
    batch: int = 0
    parallel: int = 1
    interference: float = 0.0
    budget: int = 4096
    order: str = "fifo"
    cache: float = 1.0
    evict: str = "lru"
    told: str = ""
    kv_tokens: int = 0
    spot: bool = False
    price: float = 0.0

    @property
    def timing(self) -> Hardware:
        """Its timing model."""
        return hardware_named(self.hardware)

    @property
    def cards(self) -> int:
        """How many replicas of one lane it is worth: lanes that share a card wholly are one."""
        return max(1, round(1 + (self.parallel - 1) * (1.0 - self.interference)))

    @property
    def kv(self) -> int:
        """Its KV tokens."""
        return self.kv_tokens or self.timing.kv_capacity_tokens

    def limits(self, *, block_tokens: int) -> ReplicaLimits:
        """The scheduler's limits."""
        return ReplicaLimits(
            kv_capacity_tokens=self.kv,
            max_concurrent_requests=self.permits,
            max_batch_size=self.batch or None,
            max_batch_prefill_tokens=self.budget,
            prefill_parallel=self.parallel,
            prefill_interference=self.interference,
            queue_order=self.order,
            cache_share=self.cache,
            eviction=self.evict,
            block_tokens=block_tokens,
        )


@dataclass(frozen=True, slots=True)
class SimFleet:
    """Groups of replicas; addresses are 10.0.0.1:80 and on, in the order of the groups.

    With a `way` the first `near` groups are the edge's, the others the centre's. `first` is the place of its
    first replica where it is a part of another fleet.
    """

    name: str
    groups: tuple[Group, ...]
    way: SiteWay | None = None
    near: int = 0
    first: int = 0

    @property
    def edge(self) -> SimFleet:
        """The edge's part, which may be empty."""
        return SimFleet(self.name, self.groups[: self.near])

    @property
    def centre(self) -> SimFleet:
        """The centre's part."""
        here = sum(group.count for group in self.groups[: self.near])
        return SimFleet(self.name, self.groups[self.near :], first=self.first + here)

    @property
    def replicas(self) -> list[tuple[str, Group]]:
        """Every replica with its address."""
        each = [group for group in self.groups for _ in range(group.count)]
        return [(f"10.0.{i // 250}.{i % 250 + 1}:80", group) for i, group in enumerate(each, self.first)]

    @property
    def shares(self) -> list[ReplicaShare]:
        """What the capacity is reckoned of."""
        return [
            ReplicaShare(
                hardware=group.timing,
                slowdown=group.slowdown,
                permits=max(1, (group.batch or group.permits) // group.cards),
                kv_capacity_tokens=group.kv // group.cards,
            )
            for _, group in self.replicas
            for _card in range(group.cards)
        ]

    def members(self, *, permits: int | None = None) -> list[Member]:
        """What the gateway is told of each; `permits` overrides the engine's."""
        members = []
        for address, group in self.replicas:
            card, count, price = CARDS.get((group.told or group.hardware).partition("/")[0], ("", 1, 0.0))
            price = group.price or price * count * (SPOT_SHARE if group.spot else 1.0)
            members.append(
                Member(
                    address,
                    max_concurrent=permits or group.permits,
                    hardware=card,
                    gpus=count,
                    kv_capacity_tokens=group.kv,
                    price_per_hour=price,
                    spot=group.spot,
                )
            )
        return members

    def prices(self) -> dict[str, float]:
        """Currency an hour, by address."""
        return {member.address: member.price_per_hour for member in self.members()}

    def scaled(self, replicas: int) -> SimFleet:
        """The same mix with `replicas` in all, at least one of each group; FleetError for fewer."""
        if not len(self.groups) <= replicas <= REPLICAS_MAX:
            raise FleetError(
                f"fleet {self.name!r} cannot have {replicas} replicas: {len(self.groups)} to {REPLICAS_MAX}"
            )
        own = sum(group.count for group in self.groups)
        counts = [max(1, group.count * replicas // own) for group in self.groups]
        rest = [
            group.count * replicas / own - count for group, count in zip(self.groups, counts, strict=True)
        ]
        while (missing := replicas - sum(counts)) != 0:
            # The largest remainder gains; where the floor of one took too much, the largest group pays.
            at = rest.index(max(rest)) if missing > 0 else counts.index(max(counts))
            counts[at] += 1 if missing > 0 else -1
            rest[at] -= 1.0 if missing > 0 else -1.0
        groups = (replace(group, count=count) for group, count in zip(self.groups, counts, strict=True))
        return replace(self, groups=tuple(groups))

    @property
    def cache_tokens(self) -> int:
        """What the first group's prefix cache holds."""
        return int(self.groups[0].kv * self.groups[0].cache)

    @property
    def own_share(self) -> float:
        """Which part of its load is the gateway's own, 0 to 1."""
        return 1.0 - sum(group.foreign * group.count for group in self.groups) / max(1, len(self.replicas))

    def permitting(self, permits: int) -> SimFleet:
        """The same fleet whose engines take so many requests at once."""
        return replace(self, groups=tuple(replace(group, permits=permits) for group in self.groups))

    def model_error(self, rng: Random, sigma: float) -> dict[str, float]:
        """A factor for each replica by which it is really slower than its kind."""
        return {address: max(0.5, rng.gauss(1.0, sigma)) for address, _ in self.replicas}


def parse_fleet(text: str) -> SimFleet:
    """A fleet from its name or its short form. Raises FleetError."""
    spec = NAMED.get(text, text)
    parts = [part.strip() for part in spec.split(",") if part.strip()]
    ways = [at for at, part in enumerate(parts) if part.startswith("way=")]
    groups = tuple(_group(part, text) for at, part in enumerate(parts) if at not in ways)
    if not groups:
        raise FleetError(f"fleet {text!r} is empty; write COUNT*HARDWARE[:KEY=VALUE…], or {_names()}")
    if sum(group.count for group in groups) > REPLICAS_MAX:
        raise FleetError(f"fleet {text!r}: at most {REPLICAS_MAX} replicas")
    if not ways:
        return SimFleet(text, groups)
    if len(ways) > 1 or ways[0] == len(parts) - 1:
        raise FleetError(f"fleet {text!r}: write one way, and the centre's replicas after it")
    try:
        return SimFleet(text, groups, way_of(parts[ways[0]]), near=ways[0])
    except ValueError as error:
        raise FleetError(f"fleet {text!r}: {error}") from None


def _group(part: str, text: str) -> Group:
    head, *settings = part.split(":")
    count, star, hardware = head.partition("*")
    if not star:
        count, hardware = "1", head
    if not count.strip().isdigit() or int(count) < 1:
        raise FleetError(f"fleet {text!r}: {count!r} is no number of replicas; write 8*{hardware}")
    if hardware not in HARDWARE:
        known = ", ".join(sorted(HARDWARE))
        raise FleetError(f"fleet {text!r}: unknown hardware {hardware!r}; there are {known}, and {_names()}")
    group = Group(hardware=hardware, count=int(count))
    known_keys = {f.name: type(getattr(group, f.name)) for f in fields(Group) if f.name not in _FIXED}
    for setting in settings:
        key, _, value = setting.partition("=")
        kind = known_keys.get(key)
        if kind is None:
            raise FleetError(f"fleet {text!r}: unknown setting {key!r}; there are {', '.join(known_keys)}")
        try:
            changed: dict[str, Any] = {key: value == "true" if kind is bool else kind(value)}
            group = replace(group, **changed)
        except ValueError:
            raise FleetError(f"fleet {text!r}: {key}={value} is no {kind.__name__}") from None
    if problems := _problems(group):
        raise FleetError(f"fleet {text!r}: {'; '.join(problems)}")
    return group


def _problems(group: Group) -> list[str]:
    found = group.problems()
    if min(group.slowdown, group.permits, group.parallel, group.budget) <= 0 or group.batch < 0:
        found.append("slowdown, permits, parallel and budget must be positive")
    if min(group.kv_tokens, group.price) < 0:
        found.append("kv_tokens and price must not be negative")
    if group.told and group.told not in HARDWARE:
        found.append(f"told: unknown hardware {group.told!r}; there are {', '.join(sorted(HARDWARE))}")
    if not found:
        try:
            group.limits(block_tokens=16)
        except ValueError as error:
            found.append(str(error))
    return found


_FIXED = frozenset({"hardware", "count"})


def _names() -> str:
    return "the named fleets " + ", ".join(NAMED)


def describe(fleet: SimFleet) -> Sequence[str]:
    """A line for each group, and one for the way where it has two sites."""
    ordinary = {f.name: f.default for f in fields(Group)}
    lines = [
        f"{g.count} × {g.hardware}"
        + (f", {g.slowdown:g}× slower" if g.slowdown != 1.0 else "")
        + "".join(
            f", {name} {str(value).lower() if isinstance(value, bool) else value}"
            for name, default in ordinary.items()
            if name not in _FIXED | {"slowdown"} and (value := getattr(g, name)) != default
        )
        for g in fleet.groups
    ]
    if fleet.way is not None:
        lines.insert(fleet.near, described(fleet.way))
    return lines

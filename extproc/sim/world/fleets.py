"""Which replicas a simulation has: `8*a100-80g/llama-3-8b,1*a100-80g/llama-3-8b:slowdown=3`.

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

NAMED = {
    "8b": "8*a100-80g/llama-3-8b",
    "8b-mixed": "5*a100-80g/llama-3-8b,3*h100-80g/llama-3-8b",
    "8b-straggler": "7*a100-80g/llama-3-8b,1*a100-80g/llama-3-8b:slowdown=3",
    "8b-parallel2": "8*a100-80g/llama-3-8b:parallel=2",
    "8b-parallel8": "8*a100-80g/llama-3-8b:parallel=8:batch=8",
    "70b": "8*a100-tp4/llama-2-70b",
    "70b-mixed": "5*a100-tp4/llama-2-70b,3*h100-tp4/llama-2-70b",
    "70b-straggler": "7*a100-tp4/llama-2-70b,1*a100-tp4/llama-2-70b:slowdown=3",
}


class FleetError(ValueError):
    """A fleet that cannot be read; the message names the part and the mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """`count` replicas alike. `slowdown` 3 is a straggler; `permits` are the engine's, `batch` what it
    runs of them (0: all), in `parallel` lanes side by side."""

    hardware: str
    count: int = 1
    slowdown: float = 1.0
    permits: int = 128
    batch: int = 0
    parallel: int = 1
    kv_tokens: int = 0
    spot: bool = False

    @property
    def timing(self) -> Hardware:
        """Its timing model."""
        return hardware_named(self.hardware)

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
            prefill_parallel=self.parallel,
            block_tokens=block_tokens,
        )


@dataclass(frozen=True, slots=True)
class SimFleet:
    """Groups of replicas; addresses are 10.0.0.1:80 and on, in the order of the groups."""

    name: str
    groups: tuple[Group, ...]

    @property
    def replicas(self) -> list[tuple[str, Group]]:
        """Every replica with its address."""
        each = [group for group in self.groups for _ in range(group.count)]
        return [(f"10.0.{i // 250}.{i % 250 + 1}:80", group) for i, group in enumerate(each)]

    @property
    def shares(self) -> list[ReplicaShare]:
        """What the capacity is reckoned of."""
        return [
            ReplicaShare(
                hardware=group.timing,
                slowdown=group.slowdown,
                permits=max(1, (group.batch or group.permits) // group.parallel),
                kv_capacity_tokens=group.kv // group.parallel,
            )
            for _, group in self.replicas
            for _lane in range(group.parallel)
        ]

    def members(self, *, permits: int | None = None) -> list[Member]:
        """What the gateway is told of each; `permits` overrides the engine's."""
        members = []
        for address, group in self.replicas:
            card, count, price = CARDS.get(group.hardware.partition("/")[0], ("", 1, 0.0))
            members.append(
                Member(
                    address,
                    max_concurrent=permits or group.permits,
                    hardware=card,
                    gpus=count,
                    kv_capacity_tokens=group.kv,
                    price_per_hour=price * count * (SPOT_SHARE if group.spot else 1.0),
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
        return SimFleet(self.name, tuple(groups))

    def permitting(self, permits: int) -> SimFleet:
        """The same fleet whose engines take so many requests at once."""
        return SimFleet(self.name, tuple(replace(group, permits=permits) for group in self.groups))

    def model_error(self, rng: Random, sigma: float) -> dict[str, float]:
        """A factor for each replica by which it is really slower than its kind."""
        return {address: max(0.5, rng.gauss(1.0, sigma)) for address, _ in self.replicas}


def parse_fleet(text: str) -> SimFleet:
    """A fleet from its name or its short form. Raises FleetError."""
    spec = NAMED.get(text, text)
    groups = tuple(_group(part.strip(), text) for part in spec.split(",") if part.strip())
    if not groups:
        raise FleetError(f"fleet {text!r} is empty; write COUNT*HARDWARE[:KEY=VALUE…], or {_names()}")
    if sum(group.count for group in groups) > REPLICAS_MAX:
        raise FleetError(f"fleet {text!r}: at most {REPLICAS_MAX} replicas")
    return SimFleet(text, groups)


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
    if (
        group.slowdown <= 0
        or group.permits < 1
        or group.batch < 0
        or group.parallel < 1
        or group.kv_tokens < 0
    ):
        raise FleetError(f"fleet {text!r}: slowdown and permits must be positive")
    return group


_FIXED = frozenset({"hardware", "count"})


def _names() -> str:
    return "the named fleets " + ", ".join(NAMED)


def describe(fleet: SimFleet) -> Sequence[str]:
    """A line for each group."""
    return [
        f"{g.count} × {g.hardware}" + (f", {g.slowdown:g}× slower" if g.slowdown != 1.0 else "")
        for g in fleet.groups
    ]

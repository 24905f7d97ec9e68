"""The members of every pool, from all sources. Pure.

Owns precedence: of an address that several sources list, the strongest one's word counts, and a weaker
one's where it says nothing. A member leaves when no source lists it any more. An address stands in one
pool only, since two sets of books on one replica would promise its permits twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from extproc.discovery.member import MEMBERS_MAX, DiscoveredMember

#: The strongest first.
PRECEDENCE = ("static", "file", "dns", "launcher", "agent", "picker")


@dataclass(frozen=True, slots=True, order=True)
class Conflict:
    """`source` lists an address for `pool` that the pool `owner` has, by a stronger or an earlier word."""

    address: str
    pool: str
    source: str
    owner: str


class Membership:
    """What each source last said of each pool, and what follows."""

    def __init__(self, pools: Iterable[str]) -> None:
        self._said: dict[str, dict[str, tuple[DiscoveredMember, ...]]] = {pool: {} for pool in pools}
        self.members: dict[str, tuple[DiscoveredMember, ...]] = dict.fromkeys(self._said, ())
        self.conflicts: tuple[Conflict, ...] = ()
        #: Members beyond MEMBERS_MAX of a pool, by pool; the weakest sources' last ones are left out.
        self.left_out: dict[str, int] = {}

    @property
    def said(self) -> Mapping[str, Mapping[str, tuple[DiscoveredMember, ...]]]:
        """What each source last said: {pool: {source: members}}."""
        return self._said

    def update(self, pool: str, source: str, members: Iterable[DiscoveredMember]) -> frozenset[str]:
        """Take a source's complete set for a pool; gives the pools whose members changed by it."""
        assert source in PRECEDENCE, source
        self._said[pool][source] = tuple(members)
        merged, self.conflicts, self.left_out = merge(self._said)
        changed = frozenset(name for name in merged if merged[name] != self.members[name])
        self.members = merged
        return changed


def merge(
    said: Mapping[str, Mapping[str, tuple[DiscoveredMember, ...]]],
) -> tuple[dict[str, tuple[DiscoveredMember, ...]], tuple[Conflict, ...], dict[str, int]]:
    """Union by address: {pool: {source: members}} to ({pool: members}, conflicts, {pool: left out}).

    Members stand in the order of precedence, then in that of their source.
    """
    found: dict[str, dict[str, DiscoveredMember]] = {pool: {} for pool in said}
    owners: dict[str, str] = {}
    conflicts: list[Conflict] = []
    left_out: dict[str, set[str]] = {}
    # Sources outside, pools inside: a stronger source's word for one pool beats a weaker one's for another.
    for source in PRECEDENCE:
        for pool, sources in said.items():
            for member in sources.get(source, ()):
                address = member.address
                owner = owners.get(address)
                if owner == pool:
                    found[pool][address] = _filled(found[pool][address], member)
                elif owner is not None:
                    conflicts.append(Conflict(address, pool, source, owner))
                elif len(found[pool]) >= MEMBERS_MAX:
                    left_out.setdefault(pool, set()).add(address)
                else:
                    owners[address] = pool
                    found[pool][address] = member
    merged = {pool: tuple(members.values()) for pool, members in found.items()}
    return merged, tuple(sorted(set(conflicts))), {pool: len(some) for pool, some in left_out.items()}


def _filled(strong: DiscoveredMember, weak: DiscoveredMember) -> DiscoveredMember:
    if strong.zone and strong.region and strong.max_concurrent is not None and strong.host:
        return strong
    # A zone is a part of its region: they come from one source or not at all.
    place = strong if strong.zone or strong.region else weak
    limit = strong.max_concurrent if strong.max_concurrent is not None else weak.max_concurrent
    return DiscoveredMember(strong.address, place.zone, place.region, limit, strong.host or weak.host)

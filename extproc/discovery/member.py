"""A member of a pool, as a source of endpoints knows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

#: Members of a pool that one source may tell.
MEMBERS_MAX = 4096


@dataclass(frozen=True, slots=True, order=True)
class DiscoveredMember:
    """One endpoint: `address` as ip:port, `host` the name that was looked up for it.

    Empty or None where the source does not say.
    """

    address: str
    zone: str = ""
    region: str = ""
    max_concurrent: int | None = None
    host: str = ""


#: Takes (pool, source, members): all members that the source knows of the pool, each address once.
OnMembers = Callable[[str, str, tuple[DiscoveredMember, ...]], None]

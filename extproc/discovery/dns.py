"""A pool's members by name: all A and AAAA records, looked up again and again.

Owns when a name is looked up and what a failure means. A resolver that fails (no server, a timeout) says
nothing of the name: the last good answer stands. "No such name" and "no address" are answers: the name's
members leave when nothing else was said for `gone_after_s` (a service scaled to none, or renamed). A resolver
tells no TTL here, so the interval is the configuration's, and never below INTERVAL_S_MIN.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from extproc.addresses import joined
from extproc.discovery.member import DiscoveredMember, OnMembers

log = logging.getLogger(__name__)

SOURCE = "dns"
#: A name is not looked up more often than this, whatever the configuration says.
INTERVAL_S_MIN = 1.0
#: A lookup that takes longer is told of; the next one waits for its end.
LOOKUP_S_MAX = 5.0
#: What a resolver says of a name that does not exist, or has no address.
NO_SUCH_NAME = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
#: Names of one pool. Each may keep one of the loop's resolver threads busy.
NAMES_MAX = 128
#: Addresses of one name; the lowest are taken.
ADDRESSES_MAX = 1024


@dataclass(frozen=True, slots=True)
class DnsName:
    """A name to look up: its members listen on `port`."""

    name: str
    port: int
    interval_s: float = 10.0
    #: How long a name must have had no address before its members leave.
    gone_after_s: float = 60.0
    zone: str = ""
    region: str = ""
    max_concurrent: int | None = None

    @property
    def pause_s(self) -> float:
        """The time between lookups."""
        return max(self.interval_s, INTERVAL_S_MIN)


@dataclass(slots=True)
class _Known:
    members: tuple[DiscoveredMember, ...] = ()
    tried: bool = False
    failing: bool = False
    #: When it was first answered that there is no address, since it had one.
    gone_s: float | None = None


@dataclass(slots=True)
class DnsNames:
    """What is known of a pool's names. Pure: lookups come in as answers or failures."""

    names: Sequence[DnsName]
    _known: dict[DnsName, _Known] = field(init=False)
    _told: tuple[DiscoveredMember, ...] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if len(self.names) > NAMES_MAX:
            raise ValueError(f"{len(self.names)} names; at most {NAMES_MAX} are looked up for a pool")
        self._known = {name: _Known() for name in self.names}

    def answered(self, name: DnsName, hosts: Iterable[str]) -> tuple[DiscoveredMember, ...] | None:
        """A lookup gave IP addresses; gives the pool's members when they changed, else None."""
        known = self._known[name]
        addresses = sorted({ipaddress.ip_address(host.partition("%")[0]) for host in hosts}, key=_order)
        if not addresses:
            return self.failed(name, "it has no address")
        known.gone_s = None
        if known.failing:
            log.info("dns: %s is answered again: %d addresses", name.name, len(addresses))
        if len(addresses) > ADDRESSES_MAX:
            log.warning(
                "dns: %s has %d addresses; the first %d are used", name.name, len(addresses), ADDRESSES_MAX
            )
        known.tried, known.failing = True, False
        known.members = tuple(
            DiscoveredMember(
                joined(str(address), name.port), name.zone, name.region, name.max_concurrent, name.name
            )
            for address in addresses[:ADDRESSES_MAX]
        )
        return self._changed()

    def gone(self, name: DnsName, reason: str, *, now_s: float) -> tuple[DiscoveredMember, ...] | None:
        """A lookup was answered, with no address; the members leave when it stays so for `gone_after_s`."""
        known = self._known[name]
        if known.gone_s is None:
            known.gone_s = now_s
        if known.members and now_s - known.gone_s >= name.gone_after_s:
            log.error(
                "dns: %s has had no address for %.0f s (%s); its %d members leave",
                name.name,
                now_s - known.gone_s,
                reason,
                len(known.members),
            )
            known.members = ()
            known.tried = known.failing = True
            return self._changed()
        return self.failed(name, reason, gone=True)

    def failed(
        self, name: DnsName, reason: str, *, gone: bool = False
    ) -> tuple[DiscoveredMember, ...] | None:
        """A lookup failed, or takes too long: the name's last good answer stands.

        `gone`: the answer was that there is none. Between two such a failure says nothing else.
        """
        known = self._known[name]
        if not known.failing:
            log.error(
                "dns: %s cannot be looked up: %s; its last %d members stay%s",
                name.name,
                reason,
                len(known.members),
                f" for {name.gone_after_s:g} s" if gone else "",
            )
        known.tried = known.failing = True
        return self._changed()

    def _changed(self) -> tuple[DiscoveredMember, ...] | None:
        # Before every name was tried once the set would be incomplete, and members would seem to leave.
        if not all(known.tried for known in self._known.values()):
            return None
        union: dict[str, DiscoveredMember] = {}
        for known in self._known.values():
            for member in known.members:
                union.setdefault(member.address, member)
        members = tuple(union.values())
        # A first set that is empty for want of answers is no knowledge.
        if members == self._told or (self._told is None and not members):
            return None
        self._told = members
        return members


def _order(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> tuple[int, int]:
    return address.version, int(address)


Resolve = Callable[[str, int], Awaitable[Iterable[str]]]


async def resolve(name: str, port: int) -> list[str]:
    """The IP addresses of a name, by the system's resolver. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class DnsSource:
    """Looks a pool's names up until it is cancelled."""

    def __init__(
        self, pool: str, names: Sequence[DnsName], on_members: OnMembers, *, resolve: Resolve = resolve
    ) -> None:
        self._pool = pool
        self._names = DnsNames(names)
        self._on_members = on_members
        self._resolve = resolve

    async def run(self) -> None:
        """One task a name: a slow name delays no other."""
        async with asyncio.TaskGroup() as tasks:
            for name in self._names.names:
                tasks.create_task(self._follow(name))

    async def _follow(self, name: DnsName) -> None:
        while True:
            await self._look_up(name)
            await asyncio.sleep(name.pause_s)

    async def _look_up(self, name: DnsName) -> None:
        lookup = asyncio.ensure_future(self._resolve(name.name, name.port))
        try:
            done, _ = await asyncio.wait({lookup}, timeout=LOOKUP_S_MAX)
            if not done:
                self._tell(self._names.failed(name, f"no answer within {LOOKUP_S_MAX:g} s"))
            # A resolver thread cannot be stopped: a second lookup beside it would only take another.
            hosts = list(await lookup)
            now_s = asyncio.get_running_loop().time()
            if hosts:
                self._tell(self._names.answered(name, hosts))
            else:
                self._tell(self._names.gone(name, "it has no address", now_s=now_s))
        except socket.gaierror as error:
            if error.errno in NO_SUCH_NAME:
                now_s = asyncio.get_running_loop().time()
                self._tell(self._names.gone(name, str(error), now_s=now_s))
            else:
                self._tell(self._names.failed(name, str(error)))
        except (OSError, UnicodeError) as error:
            self._tell(self._names.failed(name, str(error)))
        finally:
            lookup.cancel()

    def _tell(self, members: tuple[DiscoveredMember, ...] | None) -> None:
        if members is not None:
            self._on_members(self._pool, SOURCE, members)

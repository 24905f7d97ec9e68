"""Where clients are: by what a trusted proxy says of them in a header, else by their address. Pure.

Owns the table. What the header says counts alone where it may be believed, which Envoy sees to; an
address that is in several networks is in the narrowest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Literal

from extproc.core.tenant import Tenant

#: Tenants at places that are kept; above it all are made anew.
SERVED_MAX = 4096

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Place:
    """Where clients are, by name. `regions` bound the replicas that serve them (None: any); `side` is the one
    of two sites that does, while a replica is ready there ("": as for everybody)."""

    name: str
    regions: frozenset[str] | None = None
    side: Literal["", "here", "there"] = ""

    def bound(self, regions: frozenset[str] | None) -> frozenset[str] | None:
        """The regions that are left of a tenant's."""
        if self.regions is None or regions is None:
            return self.regions if regions is None else regions
        return self.regions & regions


class ClientPlaces:
    """The places of a file. `header` is what a trusted proxy says them in, lower-case; "" for none."""

    __slots__ = ("_by_network", "_by_value", "_served", "by_name", "header")

    def __init__(
        self,
        places: Iterable[tuple[Place, Iterable[str], Iterable[Network]]] = (),
        *,
        header: str = "",
    ) -> None:
        """Each with the header's values for it, whatever their case, and its networks."""
        self.header = header
        #: Tenants as they are served at places: (a tenant, the same there), by both names.
        self._served: dict[tuple[str, str], tuple[Tenant, Tenant]] = {}
        self.by_name: dict[str, Place] = {}
        self._by_value: dict[str, Place] = {}
        by_length: dict[tuple[int, int], dict[int, Place]] = {}
        for place, values, networks in places:
            self.by_name[place.name] = place
            self._by_value.update((value.casefold(), place) for value in values)
            for each in networks:
                bits = each.max_prefixlen - each.prefixlen
                by_length.setdefault((each.version, bits), {})[int(each.network_address) >> bits] = place
        #: The narrowest first: at most 33 and 129 lengths, whatever the number of networks.
        self._by_network = sorted(by_length.items(), key=lambda item: item[0][1])

    def served(self, tenant: Tenant, place: Place) -> Tenant:
        """A tenant as it is served at one of these places; made once, as long as the tenant is the same."""
        name = (tenant.name, place.name)
        kept = self._served.get(name)
        if kept is not None and kept[0] is tenant:
            return kept[1]
        there = replace(tenant, place=place.name, regions=place.bound(tenant.regions), side=place.side)
        if len(self._served) >= SERVED_MAX:
            self._served.clear()
        self._served[name] = tenant, there
        return there

    def of(self, values: Mapping[str, str], source: str) -> Place | None:
        """Where the client of a request with these headers is, of this address; None where nothing says."""
        if self.header and (said := values.get(self.header)) is not None:
            found = self._by_value.get(said.strip().casefold())
            if found is not None:
                return found
        if not self._by_network:
            return None
        try:
            address = ip_address(source)
        except ValueError:
            return None
        number, version = int(address), address.version
        return next(
            (
                place
                for (kind, bits), networks in self._by_network
                if kind == version and (place := networks.get(number >> bits)) is not None
            ),
            None,
        )


#: Nobody's place is known.
NOWHERE = ClientPlaces()

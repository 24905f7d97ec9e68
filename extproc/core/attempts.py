"""Failed attempts to prove an identity, bounded for each source.

Owns the count alone (GCRA: a rate with a burst, one number a source). Pure: its caller brings the time
and says what a failure is.
"""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv6Address, ip_address

S_NS = 1_000_000_000
#: One customer's IPv6 addresses are a network of this length; each of them as a source would be no bound.
IPV6_PREFIX_BITS = 64


class AttemptLimiter:
    """Lets `burst` failures of a source pass at once, then `per_minute`.

    At most `sources_max` are remembered; above it the one that failed longest ago is forgotten.
    """

    def __init__(self, *, per_minute: int, burst: int, sources_max: int) -> None:
        self._period_ns = 60 * S_NS // per_minute
        self._tolerance_ns = (burst - 1) * self._period_ns
        self._sources_max = sources_max
        #: The theoretical arrival time of each source, the last to fail at the end.
        self._until_ns: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until_ns)

    def blocked_s(self, source: str, *, now_ns: int) -> int:
        """Seconds (rounded up) until a source may try again; 0 when it may now."""
        until_ns = self._until_ns.get(network_of(source))
        if until_ns is None:
            return 0
        left_ns = until_ns - self._tolerance_ns - now_ns
        return -(-left_ns // S_NS) if left_ns > 0 else 0

    def failed(self, source: str, *, now_ns: int) -> bool:
        """Count a failure; true when it is the one that uses a source's attempts up."""
        key = network_of(source)
        was_blocked = self.blocked_s(source, now_ns=now_ns) > 0
        self._until_ns[key] = max(self._until_ns.get(key, 0), now_ns) + self._period_ns
        self._until_ns.move_to_end(key)
        while len(self._until_ns) > self._sources_max:
            self._until_ns.popitem(last=False)
        return not was_blocked and self.blocked_s(source, now_ns=now_ns) > 0


def network_of(source: str) -> str:
    """An address as what is counted: IPv4 itself, IPv6 by its /64; what is no address, itself."""
    if ":" not in source:
        return source
    try:
        address = ip_address(source)
    except ValueError:
        return source
    if not isinstance(address, IPv6Address):
        return source
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    bits = 128 - IPV6_PREFIX_BITS
    return f"{IPv6Address(int(address) >> bits << bits)}/{IPV6_PREFIX_BITS}"

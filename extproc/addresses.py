"""Addresses as `ip:port` or `[ip6]:port`: the one place that takes them apart and spells them. Pure.

Owns what a port is and the one spelling of an address: Envoy's override_host compares strings, and so does
everything here. The wording of mistakes is the callers'. Knows nothing of the rest, so that node agents use
it too.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

PORT_MAX = 65_535

Ip = IPv4Address | IPv6Address


def host_of(address: str) -> str:
    """The host, without brackets; "" where there is no port."""
    return address.rpartition(":")[0].strip("[]")


def port_of(address: str) -> int:
    """The port. Raises ValueError where there is none."""
    return int(address.rpartition(":")[2])


def ip_of(address: str) -> Ip:
    """The host as an address. Raises ValueError where it is a name."""
    return ip_address(host_of(address))


class NoPortError(ValueError):
    """An address has no port."""


def split(address: str) -> tuple[str, int]:
    """Host without brackets, and port. Raises NoPortError, and ValueError where the port is none."""
    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()):
        raise NoPortError(f"{address!r} has no port")
    if len(port) > 5 or not 1 <= int(port) <= PORT_MAX:
        raise ValueError(f"port {port} is not within 1 to {PORT_MAX}")
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host, int(port)


def joined(host: str, port: int) -> str:
    """Host and port as one address; an IPv6 host stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def spelled(host: str, port: int) -> str:
    """The one spelling of an address. Raises ValueError where the host is a name or has a zone id."""
    if "%" in host:
        raise ValueError(f"{host!r} has a zone id")
    return joined(str(ip_address(host)), port)


def canonical(address: str) -> str:
    """The same of an `ip:port`. Raises ValueError for anything else."""
    return spelled(*split(address))


def is_host_name(value: str) -> bool:
    """Whether it is a name that DNS may hold, in small letters, and no address."""
    labels = value.split(".")
    return (
        len(value) <= 253
        and all(re.fullmatch(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", label) for label in labels)
        and not labels[-1].isdigit()
    )

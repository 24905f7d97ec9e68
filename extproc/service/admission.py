"""Which addresses a node's agent may register as replicas. A registration is a claim: it names where other
tenants' prompts are to go.

Owns the rules, not the bounds (roster.py). What passes here is looked at by the service itself before it gets
any traffic.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterator
from functools import lru_cache

from extproc.addresses import Ip, ip_of, port_of
from extproc.config.model import Config

#: Local addresses remembered.
HOSTS_MAX = 4096
#: Prefixes of IPv6 addresses whose last 32 bits are an IPv4 one (RFC 6052, RFC 4291).
NAT64, COMPATIBLE = ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96")


def refusal(config: Config, node: str, address: str) -> str:
    """Why a node may not register an address, as a code; "" where it may.

    Raises ValueError where it is no ip:port.
    """
    telemetry = config.telemetry
    if telemetry is None:
        return "off"
    ip, port = ip_of(address), port_of(address)
    named = getattr(ip, "ipv4_mapped", None) or ip
    ip = _meant(ip)
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified or str(ip) == "255.255.255.255":
        return "not_a_host"
    if ip.is_loopback and not _on_loopback(config):
        return "loopback"
    if any(_meets(ip, port, each) for each in _listeners(config)):
        return "own_listener"
    networks = next((each.networks for each in telemetry.nodes if each.name == node), [])
    if networks:
        return "" if any(named in ipaddress.ip_network(each) for each in networks) else "outside_networks"
    # Without any proof of who speaks only this machine's own: that is what `auth: none` is for.
    return "" if telemetry.auth == "none" and named.is_loopback else "no_networks"


def _meant(ip: Ip) -> Ip:
    """The IPv4 address that an IPv6 one leads to: mapped, compatible, by NAT64's usual prefix or 6to4."""
    if ip.version == 4:
        return ip
    if ip.ipv4_mapped or ip.sixtofour:
        return ip.ipv4_mapped or ip.sixtofour or ip
    inside = int(ip) & 0xFFFF_FFFF
    return ipaddress.IPv4Address(inside) if ip in NAT64 or (ip in COMPATIBLE and inside > 1) else ip


def _on_loopback(config: Config) -> bool:
    """Whether the service, and where agents reach it, are on loopback alone."""
    told = [*config.service.listen, *config.service.ads_listen]
    told += config.telemetry.listen if config.telemetry is not None else ()
    return all(each.startswith("unix:") or ip_of(each).is_loopback for each in told)


def _listeners(config: Config) -> Iterator[str]:
    yield config.gateway.listen
    yield config.gateway.envoy_admin
    yield from config.service.listen
    yield from config.gateway.services
    yield from config.service.ads_listen
    yield from config.ads_addresses
    if config.telemetry is not None:
        yield from config.telemetry.listen
    if config.admin is not None:
        yield config.admin.listen


def _meets(ip: Ip, port: int, listener: str) -> bool:
    """Whether a connection to an address would end at one of our listeners."""
    if listener.startswith("unix:") or port_of(listener) != port:
        return False
    host = ip_of(listener)
    return ip == host or (host.is_unspecified and local(str(ip)))


@lru_cache(HOSTS_MAX)
def local(host: str) -> bool:
    """Whether an IP address is this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError as error:
        return error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return True

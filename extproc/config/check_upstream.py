"""The checks of how pools are reached: what is wrong only in the light of another setting."""

from __future__ import annotations

from collections.abc import Iterator

from extproc.addresses import ip_of
from extproc.config.locations import Loc
from extproc.config.model import Config
from extproc.config.pools import PoolConfig

#: Names of one pool that are looked up: those listed as endpoints and those under discovery.dns.
NAMES_MAX = 128


def upstream_checks(config: Config) -> Iterator[tuple[Loc, str]]:
    """Yield (location, message) for each mistake."""
    for i, pool in enumerate(config.pools):
        at, upstream = ("pools", i, "upstream"), pool.upstream
        tls, key = upstream.tls, upstream.key
        if key is not None and (key.file is None) == (key.env is None):
            given = (
                "has both file and env; keep one of them" if key.file else "names no key; write file or env"
            )
            yield (*at, "key"), given
        if tls is not None and (tls.cert is None) != (tls.key is None):
            missing = "key" if tls.key is None else "cert"
            yield (*at, "tls", missing), "is missing; cert and key go together"
        if upstream.http2 == "auto" and tls is None:
            message = "needs TLS, in which it is agreed on; write true for HTTP/2 in the clear, or add tls"
            yield (*at, "http2"), message
        if tls is not None and tls.server_name is None and (whose := _nameless(config, pool)):
            message = f"is missing: {whose} an address without a name; write the name in the certificates"
            yield (*at, "tls", "server_name"), message
        named = sum(is_named(endpoint.address) for endpoint in pool.endpoints)
        if named + len(pool.discovery.dns) > NAMES_MAX:
            message = f"{named + len(pool.discovery.dns)} names are to be looked up; at most {NAMES_MAX} are"
            yield ("pools", i, "endpoints"), message


def is_named(address: str) -> bool:
    """Whether an endpoint is given by a host name."""
    try:
        ip_of(address)
    except ValueError:
        return True
    return False


def _nameless(config: Config, pool: PoolConfig) -> str:
    """Which replicas have no name that a certificate could be held against; empty where all have one."""
    for endpoint in pool.endpoints:
        if not is_named(endpoint.address):
            return f"{endpoint.address} is"
    found = pool.discovery
    if found.file:
        return "replicas of discovery.file have"
    if found.agents and config.telemetry is not None:
        return "replicas that agents register have"
    if config.picker.discover:
        return "replicas that a gateway names have"
    return ""

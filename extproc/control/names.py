"""What the clusters that are not pools are called, and by which name Envoy reaches this very service.

Apart from the messages that are made with them: a service's start needs the names alone.
"""

from __future__ import annotations

import socket

from extproc.addresses import Ip, ip_of, port_of
from extproc.config.model import Config

SERVICE_CLUSTER = "steersman"
#: Where pools and endpoints are told of, where that is apart.
ADS_CLUSTER = "steersman.ads"


def log_clusters(config: Config) -> list[str]:
    """The clusters that records go to, one for each service; the deciding one itself where it is alone."""
    addresses = config.service_addresses
    if len(addresses) == 1:
        return [SERVICE_CLUSTER]
    return [f"{SERVICE_CLUSTER}.log.{i}" for i in range(len(addresses))]


def event_cluster(config: Config) -> str:
    """The cluster whose one service is this one, for its first-token events; empty when none is known to be.

    Among several a service knows itself by an address that it listens on; one that listens on every
    address of its host by the port and an address of that host.
    """
    addresses = config.service_addresses
    if len(addresses) == 1:
        return SERVICE_CLUSTER
    listens = config.service.listen
    found = [i for i, where in enumerate(addresses) if where in listens]
    if not found:
        found = [i for i, where in enumerate(addresses) if any(_covers(each, where) for each in listens)]
    return log_clusters(config)[found[0]] if len(found) == 1 else ""


def _covers(listen: str, where: str) -> bool:
    """Whether a service that listens on every address of this host is reached at `where`."""
    if listen.startswith("unix:") or where.startswith("unix:"):
        return False
    if port_of(listen) != port_of(where) or not ip_of(listen).is_unspecified:
        return False
    return _is_here(ip_of(where))


def _is_here(ip: Ip) -> bool:
    """Whether an IP is this host's: only such a one can be bound."""
    with socket.socket(socket.AF_INET6 if ip.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(ip), 0))
        except OSError:
            return False
    return True

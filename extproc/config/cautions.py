"""What a configuration allows, or does not do, that who wrote it may not have meant: good, but said.

Owns the sentences that `steersman check` and a service's start say. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from extproc.config.away import closed_by
from extproc.config.model import Config
from extproc.config.places import loopback


def port_is_open(config: Config) -> list[str]:
    """Where the decision port listens beyond this machine and asks nobody for proof."""
    service = config.service
    if service.token_file or service.token_env or (service.tls is not None and service.tls.client_ca):
        return []
    return [where for where in service.listen if not loopback(where)]


def cautions(config: Config) -> Iterator[str]:
    """Each as `PATH: what is so; what to do`."""
    for where in port_is_open(config):
        yield (
            f"service.listen: {where} is not loopback, and whoever reaches it gets decisions and endpoints; "
            "set service.token_file (or token_env), or service.tls with client_ca"
        )
    service, several = config.service, len(config.service_addresses) > 1
    if several and config.sharing is None and not (service.token_file or service.token_env):
        yield (
            "gateway.services: several services without sharing do not know each other's decisions, and each "
            "counts its own requests alone; set service.token_file (or token_env), the same for all"
        )
    yield from _open_and_closed(config)


def _open_and_closed(config: Config) -> Iterator[str]:
    """A failure mode `open` that is closed, since a tenant was promised more."""
    if (why := closed_by(config)) is not None:
        yield (
            "gateway.failure_mode: open, and still 503 while the service is away to whoever has an API key, "
            f"since Envoy cannot tell whose it is: {why}"
        )

"""The checks of how Envoy and the service prove to each other who they are."""

from __future__ import annotations

from collections.abc import Iterator

from extproc.config.locations import Loc
from extproc.config.model import Config


def service_checks(config: Config) -> Iterator[tuple[Loc, str]]:
    """Proofs that the other side does not take, or that nobody shows."""
    service, client = config.service, config.gateway.service_tls
    if service.token_file and service.token_env:
        yield ("service", "token_env"), "stands beside service.token_file; keep one of them"
    if client is not None and (client.certificate is None) != (client.key is None):
        missing = "certificate" if client.certificate is None else "key"
        yield ("gateway", "service_tls", missing), "is missing; a certificate and its key go together"
    if service.tls is not None and client is None and not config.picker.enabled:
        yield (
            ("gateway", "service_tls"),
            (
                "is missing, so Envoy could not speak to the service; name ca and server_name, or take out "
                "service.tls"
            ),
        )
    if client is None:
        return
    if service.tls is not None and service.tls.client_ca is not None and client.certificate is None:
        yield (
            ("gateway", "service_tls", "certificate"),
            "is missing, and service.tls.client_ca asks for one; name certificate and key",
        )
    unix = [where for where in config.service_addresses if where.startswith("unix:")]
    if unix:
        yield (
            ("gateway", "service_tls"),
            f"does not go with {unix[0]}, which is spoken to in the clear; take one of them out",
        )

"""The checks of how Envoy and the service prove to each other who they are, and of where answers are kept."""

from __future__ import annotations

from collections.abc import Iterator

from extproc.config.cache import CacheConfig
from extproc.config.locations import Loc
from extproc.config.model import Config


def service_checks(config: Config) -> Iterator[tuple[Loc, str]]:
    """Proofs that the other side does not take, or that nobody shows."""
    yield from _cache_checks(config)
    service, client = config.service, config.gateway.service_tls
    if service.token_file and service.token_env:
        yield ("service", "token_env"), "stands beside service.token_file; keep one of them"
    if client is not None and (client.certificate is None) != (client.key is None):
        missing = "certificate" if client.certificate is None else "key"
        yield ("gateway", "service_tls", missing), "is missing; a certificate and its key go together"
    if config.gateway.ads_services and not service.ads_listen:
        yield ("gateway", "ads_services"), "is where nobody listens; set service.ads_listen, or take it out"
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
    told = (*config.service_addresses, *config.ads_addresses)
    unix = [where for where in told if where.startswith("unix:")]
    if unix:
        yield (
            ("gateway", "service_tls"),
            f"does not go with {unix[0]}, which is spoken to in the clear; take one of them out",
        )


def _cache_checks(config: Config) -> Iterator[tuple[Loc, str]]:
    """Answers in a Redis that is not there, and keys that encrypt nothing."""
    cache = config.cache
    if cache is None:
        return
    if cache.store == "redis" and config.sharing is None:
        yield (
            ("cache", "store"),
            "is redis, and there is none: add `sharing: {redis: redis://HOST:6379/0}`, or write memory",
        )
    if cache.keys_file and cache.keys_env:
        yield ("cache", "keys_env"), "stands beside cache.keys_file; keep one of them"
    in_words = any(each.cache is not None and each.cache.semantic is not None for each in config.tenants)
    if cache.store == "memory" and not in_words and (name := _keys_name(cache)):
        yield (
            ("cache", name),
            "encrypts nothing: answers are in memory, and no tenant has cache.semantic; leave it out",
        )


def _keys_name(cache: CacheConfig) -> str:
    return "keys_file" if cache.keys_file else "keys_env" if cache.keys_env else ""

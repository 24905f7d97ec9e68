"""The checks of who may ask and how classes are told apart: identity, keys, classes, quotas.

Owns wording only; yields (location, message) like checks.py, which runs it.
"""

from __future__ import annotations

from collections.abc import Iterator

from extproc.config.away import known_by, mode_of
from extproc.config.locations import Loc, repeats
from extproc.config.model import Config, KeyConfig
from extproc.core.contract import GATEWAY_FAIRNESS_HEADER
from extproc.meant import meant

#: Headers that the service reads itself.
TAKEN_HEADERS = ("x-api-key", "x-model", "x-request-id")
TAKEN_PREFIXES = ("x-steersman-", "x-envoy-", "x-gateway-", "x-forwarded-for", "x-forwarded-proto")


def identity_checks(config: Config) -> Iterator[tuple[Loc, str]]:
    """Proofs that nobody takes, credentials of two tenants, and tenants that can never be let in."""
    yield from _gateway(config)
    gateway, identity = config.gateway, config.identity
    secret = identity.key_secret_file or identity.key_secret_env
    if identity.key_secret_file and identity.key_secret_env:
        message = "stands beside identity.key_secret_file; keep one of them"
        yield ("identity", "key_secret_env"), message
    for i, tenant in enumerate(config.tenants):
        for j, key in enumerate(tenant.keys):
            yield from _key(("tenants", i, "keys", j), key, secret=bool(secret))
        if tenant.jwt_subject is not None and gateway.jwt is None:
            yield ("tenants", i, "jwt_subject"), "proves nothing without gateway.jwt; configure it"
        if tenant.certificate_sans and (gateway.tls is None or gateway.tls.client_ca is None):
            yield ("tenants", i, "certificate_sans"), "prove nothing without gateway.tls.client_ca; set it"
        if gateway.auth == "api_key" and not tenant.keys and not known_by(config, tenant):
            yield (
                ("tenants", i, "keys"),
                "the tenant has no key and can never be let in; make one with 'steersman tenant key new'",
            )
    for kind in ("sha256", "hmac_sha256"):
        yield from repeats(
            (("tenants", i, "keys", j, kind), value)
            for i, tenant in enumerate(config.tenants)
            for j, key in enumerate(tenant.keys)
            if (value := getattr(key, kind)) is not None
        )
    yield from repeats(
        (("tenants", i, "jwt_subject"), tenant.jwt_subject)
        for i, tenant in enumerate(config.tenants)
        if tenant.jwt_subject is not None
    )
    yield from repeats(
        (("tenants", i, "certificate_sans", j), san)
        for i, tenant in enumerate(config.tenants)
        for j, san in enumerate(tenant.certificate_sans)
    )


def class_checks(config: Config) -> Iterator[tuple[Loc, str]]:
    """Classes that nobody has, and settings of a class that could do nothing."""
    names = [each.name for each in config.classes]
    yield from repeats((("classes", i, "name"), name) for i, name in enumerate(names))
    for i, tenant in enumerate(config.tenants):
        if tenant.service_class not in names:
            near = meant(tenant.service_class, names)
            wish = f"no class {tenant.service_class!r}; classes has {', '.join(names)}{near}"
            yield ("tenants", i, "class"), wish
    for objective, name in config.picker.objectives.items():
        if name not in names:
            near = meant(name, names)
            yield (
                ("picker", "objectives", objective),
                f"no class {name!r}; classes has {', '.join(names)}{near}",
            )
    modes = {mode_of(config, each) for each in config.classes}
    for i, each in enumerate(config.classes):
        members = [tenant for tenant in config.tenants if tenant.service_class == each.name]
        mixed = len(modes) > 1 and mode_of(config, each) != config.gateway.failure_mode
        if mixed and not any(known_by(config, tenant) for tenant in members):
            yield (
                ("classes", i, "failure_mode"),
                (
                    "can do nothing: without the service Envoy knows no tenant of this class by its API key; "
                    "give one a jwt_subject or certificate_sans, or set gateway.failure_mode"
                ),
            )
        if each.requests_per_second_floor is not None and modes == {"closed"}:
            yield (
                ("classes", i, "requests_per_second_floor"),
                "can do nothing while every failure mode is 'closed'; set failure_mode: open, or remove it",
            )


def _gateway(config: Config) -> Iterator[tuple[Loc, str]]:
    gateway = config.gateway
    if gateway.auth == "none":
        for name in ("jwt", "trusted_proxy"):
            if getattr(gateway, name) is not None:
                yield ("gateway", name), "proves nobody while gateway.auth is 'none'; leave one of them out"
    if gateway.jwt is not None and (gateway.jwt.jwks_file is None) == (gateway.jwt.jwks_inline is None):
        yield ("gateway", "jwt"), "wants the issuer's keys: either jwks_file or jwks_inline"
    if gateway.tls is not None and gateway.tls.require_client_certificate and not gateway.tls.client_ca:
        message = "asks for certificates of no authority; set gateway.tls.client_ca"
        yield ("gateway", "tls", "require_client_certificate"), message
    if gateway.trusted_proxy is not None:
        header = gateway.trusted_proxy.header
        taken = header in TAKEN_HEADERS or header.startswith(TAKEN_PREFIXES)
        if taken and header != GATEWAY_FAIRNESS_HEADER:
            message = f"{header!r} has another meaning here; choose another, such as x-forwarded-tenant"
            yield ("gateway", "trusted_proxy", "header"), message


def _key(location: Loc, key: KeyConfig, *, secret: bool) -> Iterator[tuple[Loc, str]]:
    if (key.sha256 is None) == (key.hmac_sha256 is None):
        yield location, "wants one hash of the key, sha256 or hmac_sha256"
    if key.hmac_sha256 is not None and not secret:
        message = "has no secret to be made with; set identity.key_secret_file or key_secret_env"
        yield (*location, "hmac_sha256"), message
    if key.not_before is not None and key.expires is not None and key.not_before >= key.expires:
        yield (*location, "expires"), "is not after not_before, so that the key is never valid"

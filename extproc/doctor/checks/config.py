"""Checks that need the configuration alone: what it allows that it should not, and what is about to end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from extproc.config.away import closed_by
from extproc.config.cautions import open_ports
from extproc.config.model import Config, KeyConfig
from extproc.config.places import loopback
from extproc.doctor.evidence import Evidence
from extproc.doctor.finding import Check, Said, error, note, warning

#: A key that ends this soon is to be replaced now.
EXPIRES_SOON: Final = timedelta(days=14)
KEY_MEND: Final = 'make another: steersman tenant key new {tenant} --expires 90d --why "it ended"'


def admin_exposed(evidence: Evidence) -> Iterator[Said]:
    """Envoy's admin port stops Envoy and shows its configuration to whoever asks."""
    where = evidence.config.gateway.envoy_admin
    if not loopback(where):
        yield error(
            f"gateway.envoy_admin is {where}: whoever reaches it can stop Envoy and read its configuration",
            f"set gateway.envoy_admin: 127.0.0.1:{where.rpartition(':')[2]}, and start Envoy anew",
        )


def service_exposed(evidence: Evidence) -> Iterator[Said]:
    """The service's ports give decisions and endpoints without asking who."""
    for setting, where in open_ports(evidence.config):
        gives = "endpoints" if setting == "service.ads_listen" else "decisions and endpoints"
        yield warning(
            f"{setting} {where} is not loopback, and it gives {gives} to anyone",
            "set service.token_file or token_env, or service.tls with client_ca; or listen on 127.0.0.1 or a "
            "unix: socket beside Envoy",
        )


def telemetry_open(evidence: Evidence) -> Iterator[Said]:
    """Agents that nobody asks for proof decide what the fleet looks like."""
    telemetry = evidence.config.telemetry
    if telemetry is None:
        return
    for where in telemetry.listen:
        if loopback(where):
            continue
        if telemetry.auth == "none":
            yield error(
                f"telemetry.listen {where} with auth: none lets anyone register replicas",
                "set telemetry.auth: token and list the nodes (steersman tenant key new makes a token)",
            )
        elif telemetry.tls is None:
            yield warning(
                f"agents send their tokens to {where} in the clear",
                "add telemetry.tls with certificate, key and client_ca",
            )


def open_gateway(evidence: Evidence) -> Iterator[Said]:
    """Keys in the clear, or no keys at all, beyond this machine."""
    gateway = evidence.config.gateway
    if loopback(gateway.listen):
        return
    if gateway.auth == "none":
        yield warning(
            f"gateway.auth is none and {gateway.listen} is not loopback: anyone there uses the replicas",
            "set gateway.auth: api_key and give tenants keys, unless a proxy in front asks for proof",
        )
    elif gateway.tls is None and gateway.trusted_proxy is None:
        yield warning(
            f"clients send their keys to {gateway.listen} in the clear",
            "add gateway.tls with certificate and key, or end TLS in a proxy before it",
        )


def keys(evidence: Evidence) -> Iterator[Said]:
    """Keys that have ended or will soon, and tenants who can prove nothing any more."""
    config, now = evidence.config, evidence.now
    if config.gateway.auth != "api_key":
        return
    for tenant in config.tenants:
        mend = KEY_MEND.format(tenant=tenant.name)
        good = [key for key in tenant.keys if _good(key, now)]
        ended = [
            key for key in tenant.keys if key.expires is not None and key.expires <= now and not key.revoked
        ]
        otherwise = tenant.jwt_subject is not None or bool(tenant.certificate_sans) or _proxied(config)
        if not good and not otherwise:
            when = f"; the last ended {max(k.expires for k in ended if k.expires):%Y-%m-%d}" if ended else ""
            yield error(f"tenant {tenant.name} has no valid key{when}: all its requests get 401", mend)
        elif ended:
            names = ", ".join(key.name or (key.sha256 or key.hmac_sha256 or "")[:12] for key in ended)
            yield note(
                f"tenant {tenant.name} keeps keys that have ended: {names}", "take them out of the file"
            )
        soon = [key for key in good if key.expires is not None and key.expires - now < EXPIRES_SOON]
        lasting = len(good) > len(soon)
        for key in soon:
            assert key.expires is not None
            name, when = key.name or "without a name", f"{key.expires:%Y-%m-%d %H:%M} UTC"
            text = f"tenant {tenant.name}: key {name} ends {when}"
            if not lasting:
                yield warning(text + ", and no other stays valid", mend.replace("it ended", "it ends soon"))


def _good(key: KeyConfig, now: datetime) -> bool:
    begun = key.not_before is None or key.not_before <= now
    return not key.revoked and begun and (key.expires is None or key.expires > now)


def _proxied(config: Config) -> bool:
    return config.gateway.trusted_proxy is not None


def one_replica(evidence: Evidence) -> Iterator[Said]:
    """Pools that cannot lose anything."""
    for pool in evidence.config.pools:
        found = pool.discovery
        if len(pool.endpoints) == 1 and not (
            found.dns or found.file or (found.agents and evidence.config.telemetry)
        ):
            yield note(
                f"pool {pool.name} has one replica: a retry has nowhere to go",
                f"add a second endpoint under pools: name {pool.name}",
            )


def failing_open(evidence: Evidence) -> Iterator[Said]:
    """What happens to keys and quotas while the service is away."""
    if (why := closed_by(evidence.config)) is not None:
        yield warning(
            f"failure_mode is open, and closed all the same to whoever has an API key: {why}",
            "set gateway.failure_mode: closed, so that the file says what happens, or do as is said",
        )
    elif evidence.config.gateway.failure_mode == "open" and evidence.config.gateway.auth == "api_key":
        yield warning(
            "gateway.failure_mode is open: while the service is away requests need no key and no quota",
            "set gateway.failure_mode: closed, or requests_per_second_floor on the classes",
        )


CHECKS: Final = (
    Check(id="config.admin-port", about="Envoy's admin port is on loopback", look=admin_exposed),
    Check(id="config.service-port", about="the service's port is for Envoy alone", look=service_exposed),
    Check(id="config.telemetry-auth", about="agents have to prove who they are", look=telemetry_open),
    Check(id="config.clients", about="clients' keys do not travel in the clear", look=open_gateway),
    Check(id="config.keys", about="every tenant has a key that stays valid", look=keys),
    Check(id="config.replicas", about="every pool has a second replica", look=one_replica),
    Check(
        id="config.failure-mode",
        about="no request goes on unasked while the service is away",
        look=failing_open,
    ),
)

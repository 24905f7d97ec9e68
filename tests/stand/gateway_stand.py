"""A whole gateway in one `async with`: simulated replicas here, the service and Envoy as children.

For end-to-end tests, soak and bench: on free ports, with keys made for the occasion, stopped whole
whatever happens. The replicas live on the caller's loop, so their state and faults are at hand.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from extproc.config.load import load
from extproc.core.tenant import hash_key
from extproc.sim.listening import RunningReplicas, start_replicas
from extproc.sim.spec import ReplicaSpec
from extproc.supervise.envoy import find_envoy
from extproc.supervise.gateway import GatewayOptions, SupervisedGateway
from extproc.supervise.ports import free_ports
from extproc.supervise.restarts import RestartPolicy


@dataclass(frozen=True, kw_only=True)
class Stand:
    """What runs: `url` for clients, `keys` by tenant, `file` the configuration, `lines` what happened."""

    url: str
    keys: Mapping[str, str]
    file: Path
    gateway: SupervisedGateway
    replicas: RunningReplicas
    lines: list[str]

    @property
    def key(self) -> str:
        """The first tenant's."""
        return next(iter(self.keys.values()))

    async def status(self) -> dict[str, Any]:
        """The service's figures."""
        return await self.gateway.status()


def stand_config(
    pools: Mapping[str, Sequence[str]],
    *,
    keys: Mapping[str, str],
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A configuration on free ports: pool name → addresses (its model has its name), tenant → key.

    `settings` goes over it, section by section; a list replaces a list.
    """
    listen, admin, service = (f"127.0.0.1:{port}" for port in free_ports(3))
    config: dict[str, Any] = {
        "version": 1,
        "gateway": {"listen": listen, "envoy_admin": admin, "heartbeat_s": 1, "debug_headers": True},
        "service": {"listen": [service], "drain_s": 2.0},
        "pools": [
            {"name": name, "models": [name], "endpoints": [{"address": address} for address in addresses]}
            for name, addresses in pools.items()
        ],
        "tenants": [{"name": tenant, "keys": [{"sha256": hash_key(key)}]} for tenant, key in keys.items()],
    }
    return _merged(config, settings or {})


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return both


@asynccontextmanager
async def stand(
    folder: Path,
    pools: Mapping[str, Sequence[ReplicaSpec]],
    *,
    tenants: Sequence[str] = ("acme",),
    settings: Mapping[str, Any] | None = None,
    policy: RestartPolicy | None = None,
    edit: Callable[[dict[str, Any]], None] | None = None,
) -> AsyncIterator[Stand]:
    """Start everything, yield when requests can be sent, stop everything.

    Writes `stand.yaml` and `run/` (logs) into `folder`. `edit` may change the configuration in place
    before it is written. Raises GatewayFailedError, EnvoyMissingError.
    """
    envoy = find_envoy()
    names = [name for name, specs in pools.items() for _ in specs]
    async with await start_replicas([spec for specs in pools.values() for spec in specs]) as replicas:
        places: dict[str, list[str]] = {name: [] for name in pools}
        for name, address in zip(names, replicas.addresses, strict=True):
            places[name].append(address)
        keys = {tenant: "sk-steer-" + secrets.token_urlsafe(18) for tenant in tenants}
        config = stand_config(places, keys=keys, settings=settings)
        if edit is not None:
            edit(config)
        file = folder / "stand.yaml"
        await asyncio.to_thread(file.write_text, yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        run_dir = folder / "run"
        run_dir.mkdir(mode=0o700, exist_ok=True)
        lines: list[str] = []
        gateway = SupervisedGateway(
            load(file),
            file,
            options=GatewayOptions(envoy=envoy, run_dir=run_dir, concurrency=1, policy=policy),
            report=lines.append,
        )
        try:
            await gateway.start()
            yield Stand(
                url=gateway.url, keys=keys, file=file, gateway=gateway, replicas=replicas, lines=lines
            )
        finally:
            await gateway.stop()

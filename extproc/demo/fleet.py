"""What the demo runs on: four simulated replicas of two kinds in two pools, and its configuration.

Owns names, hardware, tenants and keys of the demo; renders the two files that its parts read.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from extproc.core.tenant import hash_key
from extproc.demo.workload import BATCH, CHAT
from extproc.sim.timing import TIMING_LABEL

CHAT_MODEL, CODE_MODEL = "tiny-chat", "tiny-code"
#: Pool, its model, and the hardware of its two replicas.
POOLS: Final = (("chat", CHAT_MODEL), ("code", CODE_MODEL))
HARDWARE: Final = (("A100", "a100-80g/llama-3-8b"), ("H100", "h100-80g/llama-3-8b"))
#: Tenant and the model of its requests that name none.
TENANTS: Final = ((CHAT, CHAT_MODEL), (BATCH, CODE_MODEL))

CAPTION: Final = TIMING_LABEL.removeprefix("simulated; ")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoFleet:
    """Addresses, keys and hardware of one run."""

    listen: str
    replicas: tuple[tuple[str, str, str], ...]
    keys: dict[str, str]
    config: Path
    fleet_file: Path

    @property
    def hardware(self) -> dict[str, str]:
        """Endpoint address → what it pretends to be."""
        return {address: hardware for address, _, hardware in self.replicas}

    async def replicas_listen(self) -> bool:
        """Whether every replica takes connections."""
        for address, _, _ in self.replicas:
            host, _, port = address.rpartition(":")
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
        return True


def lay_out(folder: Path, ports: list[int], *, speed: float, seed: int) -> DemoFleet:
    """Write `demo.yaml` and `replicas.yaml` into a folder; `ports` are seven free ones."""
    listen, admin, service, *rest = (f"127.0.0.1:{port}" for port in ports)
    places = [(pool, model, kind) for pool, model in POOLS for kind in HARDWARE]
    replicas = tuple(
        (address, pool, label) for address, (pool, _, (label, _)) in zip(rest, places, strict=True)
    )
    keys = {tenant: "sk-steer-demo-" + secrets.token_urlsafe(18) for tenant, _ in TENANTS}
    config = {
        "version": 1,
        "gateway": {"listen": listen, "envoy_admin": admin, "heartbeat_s": 1, "debug_headers": True},
        "service": {"listen": [service], "drain_s": 0.0},
        "pools": [
            {
                "name": pool,
                "models": [model],
                "endpoints": [{"address": address} for address, its, _ in replicas if its == pool],
            }
            for pool, model in POOLS
        ],
        "tenants": [
            {"name": tenant, "default_model": model, "keys": [{"sha256": hash_key(keys[tenant])}]}
            for tenant, model in TENANTS
        ],
    }
    fleet = {
        "defaults": {"time_scale": speed, "noise": 0.03},
        "replicas": [
            {
                "name": f"{pool}-{label.lower()}",
                "port": int(address.rpartition(":")[2]),
                "model_id": model,
                "hardware": hardware,
                "seed": seed + index,
            }
            for index, (address, (pool, model, (label, hardware))) in enumerate(
                zip(rest, places, strict=True)
            )
        ],
    }
    made = DemoFleet(
        listen=listen,
        replicas=replicas,
        keys=keys,
        config=folder / "demo.yaml",
        fleet_file=folder / "replicas.yaml",
    )
    made.config.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    made.fleet_file.write_text(yaml.safe_dump(fleet, sort_keys=False), encoding="utf-8")
    return made


def curl_line(url: str, key: str) -> str:
    """A request to try by hand."""
    body = f'{{"model":"{CHAT_MODEL}","stream":true,"messages":[{{"role":"user","content":"Ahoy!"}}]}}'
    return (
        f"curl -N {url}/v1/chat/completions -H 'authorization: Bearer {key}' "
        f"-H 'content-type: application/json' -d '{body}'"
    )

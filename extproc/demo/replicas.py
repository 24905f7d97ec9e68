"""What the demo runs on: four simulated replicas in two pools on two nodes, and its configuration.

Owns names, hardware, zones and keys of the demo; renders the files that its parts read. Each pool has a
replica on each node. The last replica is in no list: its node's agent registers it.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from extproc.addresses import port_of, split
from extproc.core.tenant import hash_key
from extproc.demo import wave
from extproc.demo.tenancy import (
    ALERTS,
    BY_NAME,
    CHEAP_MODEL,
    CLASSES,
    EXPERIMENTS,
    FAMILY,
    POOLS,
    TENANTS,
    Serving,
)
from extproc.sim.timing import TIMING_LABEL, hardware_named

#: Envoy's two ports, the service's two, and the replicas'.
PORTS_NEEDED: Final = 4 + 4
#: An agent takes a replica for hung when it was silent twice as long.
SILENCE_MS: Final = 700

CAPTION: Final = TIMING_LABEL.removeprefix("simulated; ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The GPUs of a node: NVML's name and top clock, the short name and its timing model."""

    label: str
    name: str
    clock_mhz: int
    limit_w: float
    hardware: str


A100: Final = Card(
    label="A100",
    name="NVIDIA A100-SXM4-80GB",
    clock_mhz=1410,
    limit_w=400.0,
    hardware="a100-80g/llama-3-8b",
)
H100: Final = Card(
    label="H100",
    name="NVIDIA H100 80GB HBM3",
    clock_mhz=1980,
    limit_w=700.0,
    hardware="h100-80g/llama-3-8b",
)
#: Node, its zone and its cards; two replicas each, one card a replica.
NODES: Final = (("node-a", "zone-a", A100), ("node-h", "zone-h", H100))


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReplica:
    """One simulated replica; `number` is what people call it by, `gpu` its card's index on the node."""

    number: int
    name: str
    address: str
    serving: Serving
    node: str
    gpu: int
    card: Card
    #: Not in the configuration: its agent registers it.
    registered: bool

    @property
    def pool(self) -> str:
        """Its pool's name."""
        return self.serving.pool

    @property
    def model(self) -> str:
        """The model that it serves."""
        return self.serving.model


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoNode:
    """A simulated host: its agent's configuration, and what its cards show (see cards.py)."""

    name: str
    zone: str
    card: Card
    agent: Path
    cards: Path
    faults: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoFleet:
    """Addresses, keys and files of one run."""

    listen: str
    service: str
    replicas: tuple[DemoReplica, ...]
    nodes: tuple[DemoNode, ...]
    keys: dict[str, str]
    config: Path
    speed: float
    seed: int

    @property
    def labels(self) -> dict[str, str]:
        """Endpoint address → its number and name."""
        return {replica.address: f"{replica.number} {replica.name}" for replica in self.replicas}

    def replica_options(self, replica: DemoReplica) -> list[str]:
        """`steersman sim-replica`'s options for one."""
        options = {
            "name": replica.name,
            "port": str(port_of(replica.address)),
            "model": replica.model,
            "hardware": replica.card.hardware,
            "time-scale": str(self.speed),
            "noise": "0.03",
            "seed": str(self.seed + replica.number),
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]


async def listens(replica: DemoReplica) -> bool:
    """Whether a replica takes connections; OSError is a no."""
    _, writer = await asyncio.open_connection(*split(replica.address))
    writer.close()
    return True


def lay_out(folder: Path, ports: list[int], *, speed: float, seed: int) -> DemoFleet:
    """Write `demo.yaml` and the agents' files into a folder; `ports` are PORTS_NEEDED free ones."""
    listen, admin, service, telemetry, *rest = (f"127.0.0.1:{port}" for port in ports)
    places = [(serving, index, place) for index, serving in enumerate(POOLS) for place in NODES]
    replicas = tuple(
        DemoReplica(
            number=number,
            name=f"{serving.pool}-{card.label.lower()}",
            address=address,
            serving=serving,
            node=node,
            gpu=index,
            card=card,
            registered=number == len(places),
        )
        for number, (address, (serving, index, (node, _, card))) in enumerate(
            zip(rest, places, strict=True), start=1
        )
    )
    nodes = tuple(
        DemoNode(
            name=name,
            zone=zone,
            card=card,
            agent=folder / f"{name}.yaml",
            cards=folder / f"{name}.gpus.json",
            faults=folder / f"{name}.faults.json",
        )
        for name, zone, card in NODES
    )
    keys = {tenant: "sk-steer-demo-" + secrets.token_urlsafe(18) for tenant in BY_NAME}
    tokens = {node.name: secrets.token_urlsafe(32) for node in nodes}
    made = DemoFleet(
        listen=listen,
        service=service,
        replicas=replicas,
        nodes=nodes,
        keys=keys,
        config=folder / "demo.yaml",
        speed=speed,
        seed=seed,
    )
    config = _config(made, admin=admin, telemetry=telemetry, tokens=tokens)
    made.config.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    for node in nodes:
        token = folder / f"{node.name}.token"
        token.touch(mode=0o600)
        token.write_text(tokens[node.name], encoding="utf-8")
        agent = _agent(node, made, telemetry=telemetry, token=token)
        node.agent.write_text(yaml.safe_dump(agent, sort_keys=False), encoding="utf-8")
    return made


def _config(fleet: DemoFleet, *, admin: str, telemetry: str, tokens: dict[str, str]) -> dict[str, Any]:
    zones = {node.name: node.zone for node in fleet.nodes}
    return {
        "version": 1,
        "gateway": {"listen": fleet.listen, "envoy_admin": admin, "heartbeat_s": 1, "debug_headers": True},
        "service": {"listen": [fleet.service], "drain_s": 0.0},
        "telemetry": {
            "listen": [telemetry],
            # An agent may register replicas of its own machine, and no others.
            "nodes": [
                {"name": name, "token_sha256": hash_key(token), "networks": ["127.0.0.0/8"]}
                for name, token in tokens.items()
            ],
        },
        "classes": CLASSES,
        "pools": [
            {
                "name": serving.pool,
                "models": [serving.model],
                "price": dict(serving.price),
                "discovery": {"agents": True},
                "endpoints": [
                    {
                        "address": replica.address,
                        "zone": zones[replica.node],
                        "max_concurrent": serving.max_concurrent,
                    }
                    for replica in fleet.replicas
                    if replica.pool == serving.pool and not replica.registered
                ],
            }
            for serving in POOLS
        ]
        + [wave.pool(speed=fleet.speed, hardware=A100.hardware)],
        "scaling": {"interval_s": 1, "bucket_s": 2},
        "families": [{"name": FAMILY, "models": [serving.model for serving in POOLS]}],
        "experiments": EXPERIMENTS,
        "alerts": ALERTS,
        "tenants": [
            {
                "name": tenant.name,
                "class": tenant.service_class,
                "weight": tenant.weight,
                "default_model": tenant.model,
                "quota": dict(tenant.quota),
                "keys": [{"sha256": hash_key(fleet.keys[tenant.name])}],
            }
            for tenant in TENANTS
        ],
    }


def _agent(node: DemoNode, fleet: DemoFleet, *, telemetry: str, token: Path) -> dict[str, Any]:
    return {
        "node": node.name,
        "zone": node.zone,
        "services": [telemetry],
        "token_file": str(token),
        "nvml": f"fake:{node.cards}",
        "nvml_ms": 500,
        "probe_ms": 1000,
        "replicas": [
            {
                "address": replica.address,
                "pool": replica.pool,
                "engine": "tgi",
                "models": [replica.model],
                "gpus": [replica.gpu],
                "timeout_ms": SILENCE_MS,
                "max_concurrent": replica.serving.max_concurrent,
                # TGI does not tell its capacity: whoever sets the engine up knows it.
                "kv_capacity_tokens": hardware_named(replica.card.hardware).kv_capacity_tokens,
            }
            for replica in fleet.replicas
            if replica.node == node.name
        ],
    }


def curl_line(url: str, key: str) -> str:
    """A request to try by hand."""
    body = f'{{"model":"{CHEAP_MODEL}","stream":true,"messages":[{{"role":"user","content":"Ahoy!"}}]}}'
    return (
        f"curl -N {url}/v1/chat/completions -H 'authorization: Bearer {key}' "
        f"-H 'content-type: application/json' -d '{body}'"
    )

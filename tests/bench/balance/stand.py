"""What is measured on: simulated replicas in processes of their own, and what stands before them.

Owns starting and stopping. `steersman` is the real Envoy and `steersman serve` with one default
configuration (endpoints, tenants and keys, nothing else), `plain` the same Envoy alone with LEAST_REQUEST.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from agents_harness import Processes, telemetry
from gateway import Child, Gateway, envoy_binary, free_ports, listens, wait_for

POOL, MODEL = "bench", "bench"
#: Two replicas a process: an event loop of its own for each pair.
REPLICAS_PER_PROCESS = 2


#: Agents push one node's replicas, each with a card of a fake NVML.
NODE = "node-1"


@dataclass(frozen=True, slots=True)
class Front:
    """What clients talk to: its port, its processes, and what it says of itself afterwards."""

    port: int
    pids: tuple[int, ...]
    figures: Callable[[], dict[str, Any]] = dict


class Replicas:
    """Context manager: replicas from `ReplicaSpec` fields, spread over processes."""

    def __init__(self, specs: Sequence[dict[str, Any]]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="steersman-replicas-"))
        ports = free_ports(len(specs))
        self.addresses = [f"127.0.0.1:{port}" for port in ports]
        self._ports = ports
        full = [
            {"name": f"replica-{i}", "model_id": MODEL, **spec, "port": port}
            for i, (spec, port) in enumerate(zip(specs, ports, strict=True))
        ]
        self._children = []
        for at in range(0, len(full), REPLICAS_PER_PROCESS):
            file = self._folder / f"fleet-{at}.yaml"
            file.write_text(yaml.safe_dump({"replicas": full[at : at + REPLICAS_PER_PROCESS]}))
            arguments = [sys.executable, "-m", "extproc.cli", "sim-replica", "-f", str(file)]
            self._children.append(Child(f"replicas-{at}", arguments, self._folder))

    def __enter__(self) -> Replicas:
        for child in self._children:
            child.start()
        try:
            for port in self._ports:
                wait_for("a replica", lambda port=port: listens(port))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pids(self) -> list[int]:
        """The processes."""
        return [child.pid for child in self._children]

    def state(self) -> list[dict[str, Any]]:
        """Every replica's own counters."""
        return [self._call(address, "/sim/state") for address in self.addresses]

    def fault(self, index: int, **fault: Any) -> None:
        """Script a fault on a replica."""
        self._call(self.addresses[index], "/sim/fault", fault)

    def _call(self, address: str, path: str, body: Any = None) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://{address}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found


def steersman(
    addresses: Sequence[str], *, strategy: str = "", sections: dict[str, Any] | None = None, **pool: Any
) -> Gateway:
    """Envoy and the service over these replicas; without `strategy` the default one.

    `sections` of the configuration are added, and settings of the pool.
    """
    chosen = {"strategy": strategy} if strategy else {}
    return Gateway(
        {POOL: {"models": [MODEL], "addresses": list(addresses), **chosen, **pool}},
        gateway={"debug_headers": False},
        limits={},
        **(sections or {}),
    )


@contextmanager
def ours(addresses: Sequence[str], *, strategy: str = "", agents: bool = False) -> Iterator[Front]:
    """Envoy and the service, with or without a real node agent; Envoy's and the service's processes."""
    with ExitStack() as stack:
        if agents:
            gateway = stack.enter_context(
                steersman(addresses, strategy=strategy, sections={"telemetry": telemetry([NODE])})
            )
            agent = stack.enter_context(Processes()).agent(gateway, NODE, POOL, addresses)
            wait_for("the agent's first report", lambda: agent.reported(gateway))
        else:
            gateway = stack.enter_context(steersman(addresses, strategy=strategy))

        def figures() -> dict[str, Any]:
            status = gateway.status()
            return {**status["predictions"], "counts": status["counts"]}

        yield Front(gateway.port, (gateway.service.pid, gateway.envoy.pid), figures)


def _plain_bootstrap(addresses: Sequence[str], port: int, admin_port: int) -> dict[str, Any]:
    typed = "type.googleapis.com/envoy.extensions.filters"
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(at)}}}}
        for host, at in (address.split(":") for address in addresses)
    ]
    return {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin_port}}},
        "static_resources": {
            "listeners": [
                {
                    "name": "plain",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                    "filter_chains": [
                        {
                            "filters": [
                                {
                                    "name": "envoy.filters.network.http_connection_manager",
                                    "typed_config": {
                                        "@type": f"{typed}.network.http_connection_manager.v3"
                                        ".HttpConnectionManager",
                                        "stat_prefix": "plain",
                                        "route_config": {
                                            "virtual_hosts": [
                                                {
                                                    "name": "plain",
                                                    "domains": ["*"],
                                                    "routes": [
                                                        {
                                                            "match": {"prefix": "/"},
                                                            "route": {"cluster": "pool", "timeout": "0s"},
                                                        }
                                                    ],
                                                }
                                            ]
                                        },
                                        "http_filters": [
                                            {
                                                "name": "envoy.filters.http.router",
                                                "typed_config": {"@type": f"{typed}.http.router.v3.Router"},
                                            }
                                        ],
                                    },
                                }
                            ]
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "pool",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "lb_policy": "LEAST_REQUEST",
                    "load_assignment": {"cluster_name": "pool", "endpoints": [{"lb_endpoints": endpoints}]},
                }
            ],
        },
    }


@contextmanager
def plain(addresses: Sequence[str]) -> Iterator[Front]:
    """Envoy alone, LEAST_REQUEST, no retries."""
    port, admin_port = free_ports(2)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="steersman-plain-")))
        file = folder / "plain.yaml"
        file.write_text(yaml.safe_dump(_plain_bootstrap(addresses, port, admin_port)))
        arguments = [
            envoy_binary(),
            "-c",
            str(file),
            "--disable-hot-restart",
            "--concurrency",
            "2",
            "-l",
            "error",
        ]
        child = Child("plain", arguments, folder)
        child.start()
        stack.callback(child.stop)
        wait_for("the plain Envoy", lambda: listens(port))
        yield Front(port, (child.pid,))

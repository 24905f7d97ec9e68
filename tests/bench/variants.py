"""What is measured side by side: Envoy alone, with a service that does nothing, with Steersman.

Each has an Envoy of its own with one thread, so that its best rate is that of one thread, and all go to the
same engines.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway import Child, Gateway, envoy_binary, free_ports, listens, wait_for
from processes import stop_all

from extproc.config.decision_port import Service

HERE = Path(__file__).parent
ENGINES = 4
ALONE, NOOP = "Envoy alone", "no-op ext_proc, grpc.aio"
#: The cluster of a service; ours has the same name.
SERVICE = "steersman"
#: Steersman's, each by the settings of `service` that make it.
OURS: dict[str, Mapping[str, Any]] = (
    {"Steersman, grpc.aio": {"transport": "grpcio"}, "Steersman, http2": {"transport": "http2"}}
    if "transport" in Service.model_fields
    else {"Steersman, grpc.aio": {}}
)
_TYPES = "type.googleapis.com/envoy.extensions"


@dataclass(frozen=True)
class Variant:
    """One way to the engines: where it listens, and whose CPU is whose (None: there is no service)."""

    name: str
    port: int
    envoy_pid: int
    service_pid: int | None
    gateway: Gateway | None = None


@contextlib.contextmanager
def engines(folder: Path) -> Iterator[list[str]]:
    """Static engines in one process: their addresses."""
    ports = free_ports(ENGINES)
    child = Child("engine", [sys.executable, str(HERE / "engine.py"), *map(str, ports)], folder)
    child.start()
    try:
        wait_for("the engines", lambda: all(listens(port) for port in ports))
        yield [f"127.0.0.1:{port}" for port in ports]
    finally:
        stop_all([child])


@contextlib.contextmanager
def variants(names: Sequence[str] = (ALONE, NOOP, *OURS)) -> Iterator[list[Variant]]:
    """Those of these names, running."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="steersman-bench-")))
        addresses = stack.enter_context(engines(folder))
        found = []
        for name in names:
            if name in OURS:
                found.append(stack.enter_context(steersman(name, addresses, **OURS[name])))
            else:
                found.append(stack.enter_context(_plain(name, addresses, folder, asks=name == NOOP)))
        yield found


@contextlib.contextmanager
def steersman(name: str, addresses: Sequence[str], **service: Any) -> Iterator[Variant]:
    """Envoy as we render it and the service, with these settings of `service`."""
    pools = {"chat": {"models": ["m"], "addresses": list(addresses)}}
    gateway = Gateway(pools, gateway={"debug_headers": False}, concurrency=1)
    gateway.config["service"] |= service
    gateway.write_config()
    with gateway:
        yield Variant(name, gateway.port, gateway.envoy.pid, gateway.service.pid, gateway)


@contextlib.contextmanager
def noop(folder: Path) -> Iterator[tuple[int, int]]:
    """The service that does nothing: its port and its pid."""
    (port,) = free_ports(1)
    child = Child("noop", [sys.executable, str(HERE / "noop.py"), str(port)], folder)
    child.start()
    try:
        wait_for("the no-op service", lambda: listens(port))
        yield port, child.pid
    finally:
        stop_all([child])


@contextlib.contextmanager
def _plain(name: str, addresses: Sequence[str], folder: Path, *, asks: bool) -> Iterator[Variant]:
    port, admin_port = free_ports(2)
    file = folder / f"plain{port}.json"
    with contextlib.ExitStack() as stack:
        service_port, service_pid = stack.enter_context(noop(folder)) if asks else (None, None)
        tree = plain_bootstrap(addresses, port, admin_port, service_port)
        if asks:
            _manager(tree)["http_filters"].insert(0, _ASKING)
        file.write_text(json.dumps(tree))
        options = ["--disable-hot-restart", "--concurrency", "1", "-l", "error"]
        envoy = Child(f"envoy{port}", [envoy_binary(), "-c", str(file), *options], folder)
        envoy.start()
        try:
            wait_for(name, lambda: listens(port))
            yield Variant(name, port, envoy.pid, service_pid)
        finally:
            stop_all([envoy])


#: The phases that ours has: headers, and the buffered body.
_ASKING = {
    "name": "envoy.filters.http.ext_proc",
    "typed_config": {
        "@type": f"{_TYPES}.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": {"envoy_grpc": {"cluster_name": SERVICE}},
        "message_timeout": "30s",
        "processing_mode": {
            "request_header_mode": "SEND",
            "request_body_mode": "BUFFERED",
            "response_header_mode": "SKIP",
            "response_body_mode": "NONE",
        },
    },
}


def _manager(tree: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = tree["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]
    manager: dict[str, Any] = found["typed_config"]
    return manager


def plain_bootstrap(
    addresses: Sequence[str], port: int, admin_port: int, service_port: int | None
) -> dict[str, Any]:
    """One route to the engines; the service's cluster, where there is one, for who asks it."""
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"},
    }
    clusters = [_cluster("engines", addresses)]
    if service_port is not None:
        clusters.append(_cluster(SERVICE, [f"127.0.0.1:{service_port}"], http2=True))
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "plain",
        "http_filters": [router],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "engines", "timeout": "0s"}}],
                }
            ]
        },
    }
    return {
        "admin": {"address": _address(f"127.0.0.1:{admin_port}")},
        "static_resources": {
            "listeners": [
                {
                    "name": "plain",
                    "address": _address(f"127.0.0.1:{port}"),
                    "filter_chains": [
                        {
                            "filters": [
                                {
                                    "name": "envoy.filters.network.http_connection_manager",
                                    "typed_config": manager,
                                }
                            ]
                        }
                    ],
                }
            ],
            "clusters": clusters,
        },
    }


def _address(where: str) -> dict[str, Any]:
    host, _, port = where.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def _cluster(name: str, addresses: Sequence[str], *, http2: bool = False) -> dict[str, Any]:
    cluster: dict[str, Any] = {
        "name": name,
        "type": "STATIC",
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": _address(where)}} for where in addresses]}
            ],
        },
    }
    if http2:
        options = f"{_TYPES}.upstreams.http.v3.HttpProtocolOptions"
        cluster["typed_extension_protocol_options"] = {
            options.removeprefix("type.googleapis.com/"): {
                "@type": options,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
    return cluster

"""Istio's manifests from a steersman.yaml: the Envoy configuration that `steersman envoy-config` renders, as
patches of an Istio gateway.

    python deploy/istio/render.py -f deploy/istio/steersman.yaml -o deploy/istio/envoyfilter.yaml \\
        --host llm.example.com --services steersman-service-0.llm.svc.cluster.local:50051,…

Owns where each part of our bootstrap goes in Istio's: clusters, filters, routes, header stripping, access
log. What Istio owns stays Istio's: listeners, TLS, tracing, discovery.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from extproc.config.load import ConfigError, load
from extproc.config.model import Config
from extproc.control.bootstrap import render_bootstrap, to_json

HEADER = (
    "# Rendered by deploy/istio/render.py from deploy/istio/steersman.yaml. Change that and render again.\n"
)
ROUTER = "envoy.filters.http.router"
MANAGER = "envoy.filters.network.http_connection_manager"
#: Of our connection manager; the rest is Istio's to say.
MANAGED = (
    "early_header_mutation_extensions",
    "always_set_request_id_in_response",
    "normalize_path",
    "merge_slashes",
    "path_with_escaped_slashes_action",
    "max_request_headers_kb",
    "common_http_protocol_options",
    "http2_protocol_options",
    "request_headers_timeout",
    "request_timeout",
    "stream_idle_timeout",
    "local_reply_config",
    "access_log",
    "access_log_options",
)


def _dns_endpoints(name: str, hosts: list[tuple[str, int]]) -> dict[str, Any]:
    """A load assignment by name."""
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}
        for host, port in hosts
    ]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}


def _clusters(rendered: list[dict[str, Any]], services: list[tuple[str, int]]) -> Any:
    """Our clusters; services are looked up by name instead of listed by address, as pools are already."""
    for cluster in rendered:
        name = cluster["name"]
        if name == "steersman":
            hosts = services
        elif name.startswith("steersman.log."):
            hosts = [services[int(name.rpartition(".")[2])]]
        else:
            hosts = []
        if hosts:
            cluster |= {
                "type": "STRICT_DNS",
                "dns_refresh_rate": "5s",
                "respect_dns_ttl": False,
                "load_assignment": _dns_endpoints(name, hosts),
            }
        yield cluster


def manifests(
    config: Config,
    *,
    services: list[tuple[str, int]],
    host: str,
    port: int = 80,
    namespace: str = "istio-system",
    workload: dict[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Gateway, VirtualService and EnvoyFilter. `services` are host and port of each, in the chart's order."""
    labels = workload or {"istio": "llm-gateway"}
    # Only their number counts: names take their place.
    placed = [f"192.0.2.{at + 1}:50051" for at in range(len(services))]
    gateway = config.gateway.model_copy(update={"services": placed, "tracing": None})
    bootstrap = json.loads(to_json(render_bootstrap(config.model_copy(update={"gateway": gateway}))))
    resources = bootstrap["static_resources"]
    (listener,) = resources["listeners"]
    manager = listener["filter_chains"][-1]["filters"][0]["typed_config"]
    (virtual_host,) = manager["route_config"]["virtual_hosts"]
    *decided, undecided = virtual_host["routes"]

    # Without a port: the workload is a gateway for this alone, and a Service's port is not its pods'.
    in_chain = {"filterChain": {"filter": {"name": MANAGER}}}
    in_manager = {"filterChain": {"filter": {"name": MANAGER, "subFilter": {"name": ROUTER}}}}
    # The VirtualService's one route, by which ours find their virtual host. Not by `gateway`: of a server
    # without TLS Istio names its routes by the port alone (http.80), and then no gateway's name matches.
    undecided_route = {"vhost": {"route": {"name": undecided["name"]}}}

    def patch(kind: str, operation: str, value: Any, **match: Any) -> dict[str, Any]:
        return {
            "applyTo": kind,
            "match": {"context": "GATEWAY", **match},
            "patch": {"operation": operation, "value": value},
        }

    limit = {"per_connection_buffer_limit_bytes": listener["per_connection_buffer_limit_bytes"]}
    managed = {"@type": manager["@type"]} | {name: manager[name] for name in MANAGED if name in manager}
    # Of the virtual host, as with us: until it is decided on, a body is the route's that Istio makes.
    kept = {"request_body_buffer_limit": virtual_host["request_body_buffer_limit"]}
    patches = [
        *(patch("CLUSTER", "ADD", cluster) for cluster in _clusters(resources["clusters"], services)),
        patch("LISTENER", "MERGE", limit),
        patch("NETWORK_FILTER", "MERGE", {"name": MANAGER, "typed_config": managed}, listener=in_chain),
        # Each goes right before the router, and each route right before Istio's own: they keep their order.
        *(
            patch("HTTP_FILTER", "INSERT_BEFORE", each, listener=in_manager)
            for each in manager["http_filters"]
            if each["name"] != ROUTER
        ),
        patch("VIRTUAL_HOST", "MERGE", kept),
        *(patch("HTTP_ROUTE", "INSERT_BEFORE", each, routeConfiguration=undecided_route) for each in decided),
    ]
    meta = {"name": "steersman", "namespace": namespace}
    said = undecided.get("direct_response")
    if said is None:
        raise SystemExit(
            "gateway.failure_mode 'open' and gateway.cors have no form in Istio here; write closed, and "
            "corsPolicy in the VirtualService"
        )
    return [
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "Gateway",
            "metadata": meta,
            "spec": {
                "selector": labels,
                "servers": [{"port": {"number": port, "name": "http", "protocol": "HTTP"}, "hosts": [host]}],
            },
        },
        {
            # What no decision was made on: every other route is the EnvoyFilter's.
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": meta,
            "spec": {
                "hosts": [host],
                "gateways": [f"{namespace}/steersman"],
                "http": [
                    {
                        "name": undecided["name"],
                        "directResponse": {
                            "status": said["status"],
                            "body": {"string": said["body"]["inline_string"]},
                        },
                    }
                ],
            },
        },
        {
            "apiVersion": "networking.istio.io/v1alpha3",
            "kind": "EnvoyFilter",
            "metadata": meta,
            "spec": {"workloadSelector": {"labels": labels}, "configPatches": patches},
        },
    ]


def to_yaml(documents: list[dict[str, Any]]) -> str:
    """As `kubectl apply` reads it; equal manifests give equal text."""
    texts = [yaml.dump(each, Dumper=_Dumper, sort_keys=False, width=110) for each in documents]
    return HEADER + "---\n".join(texts)


class _Dumper(yaml.SafeDumper):
    """Block style for texts of several lines, and no anchors."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002  (PyYAML's signature)
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def _host_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not host:port")
    return host, int(port)


def main() -> int:
    """0 when written, 2 on a wrong configuration."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("-f", "--file", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--services", required=True, help="host:port of each service, by comma, in order")
    parser.add_argument("--host", default="llm.example.com", help="the name that clients ask for")
    parser.add_argument("--port", type=int, default=80, help="the gateway's")
    parser.add_argument("--namespace", default="istio-system", help="the gateway workload's")
    parser.add_argument("--workload", default="istio=llm-gateway", help="the gateway workload's label")
    given = parser.parse_args()
    try:
        config = load(given.file)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    services = [_host_port(each) for each in given.services.split(",")]
    label, _, value = given.workload.partition("=")
    try:
        documents = manifests(
            config,
            services=services,
            host=given.host,
            port=given.port,
            namespace=given.namespace,
            workload={label: value},
        )
    except ConfigError as error:  # a token that cannot be read
        print(error, file=sys.stderr)
        return 2
    given.output.write_text(to_yaml(documents), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

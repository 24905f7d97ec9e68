"""What the real istiod makes of an InferencePool whose picker is Steersman, and a bootstrap from it.

Its Gateway API controller turns the pool and its HTTPRoute into what stands in MANIFESTS, by its source:
a Service with a label, a route without retries or timeouts, and the picker beside the route. What
it makes of these was asked of istiod itself (istio_gateway.py says how); the controller was not run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import istio_gateway

#: Kept, so that a machine without istiod checks it too.
GOLDEN = Path(__file__).with_suffix(".yaml")
NAMESPACE, GATEWAY = "models", "inference-gateway"
HOST = "llm.example.com"
ROUTE = "models.chat.0"
PICKER = "steersman-picker.models.svc.cluster.local"
REPLICAS_CLUSTER = "outbound|54321||chat-ip-0.models.svc.cluster.local"
PICKER_CLUSTER = f"outbound|50051||{PICKER}"
MANIFESTS = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: inference-gateway, namespace: models}
spec:
  selector: {gateway.networking.k8s.io/gateway-name: inference-gateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [llm.example.com]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: chat, namespace: models}
spec:
  hosts: [llm.example.com]
  gateways: [models/inference-gateway]
  http:
  - name: models.chat.0
    route: [{destination: {host: chat-ip-0.models.svc.cluster.local, port: {number: 54321}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: chat-ip-0, namespace: models, labels: {internal.istio.io/service-semantics: inferencepool}}
spec:
  hosts: [chat-ip-0.models.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 54321, name: http-0, protocol: HTTP, targetPort: 8000}]
  endpoints: [{address: 10.2.0.1}, {address: 10.2.0.2}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: steersman-picker, namespace: models}
spec:
  hosts: [steersman-picker.models.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 50051, name: grpc, protocol: HTTP2}]
  endpoints: [{address: 10.2.0.9}]
"""


def translated(dump: str, folder: Path, *, about_route: str = "") -> dict[str, Any]:
    """The listener, its routes, and the clusters of the replicas and of the picker; `about_route` is what a
    filter of the HTTPRoute adds to the route."""
    manifests = folder / "manifests.yaml"
    named = f"  - name: {ROUTE}\n"
    manifests.write_text(MANIFESTS.replace(named, f"{named}{about_route}"), encoding="utf-8")
    made = istio_gateway.dumped(
        dump,
        folder,
        manifests,
        namespace=NAMESPACE,
        labels={"gateway.networking.k8s.io/gateway-name": GATEWAY},
        pickers={ROUTE: {"FQDN": PICKER, "Port": "50051", "FailureModeAllow": False}},
    )
    (listener,), (routes,) = made["listeners"], made["routes"]
    clusters = [each for each in made["clusters"] if each["name"] in (REPLICAS_CLUSTER, PICKER_CLUSTER)]
    return {"listener": listener, "routes": routes, "clusters": clusters}


def bootstrap(
    made: dict[str, Any], *, port: int, admin: int, picker: str, replicas: list[str]
) -> dict[str, Any]:
    """A bootstrap with what istiod sends over ADS in place: the same, with these addresses.

    Left out are Istio's own filters, which this Envoy does not have, and the mTLS that it would speak to what
    has a sidecar.
    """
    clusters = []
    for each in made["clusters"]:
        cluster = {key: value for key, value in each.items() if key not in ("eds_cluster_config", "filters")}
        cluster["transport_socket_matches"] = [
            match for match in each["transport_socket_matches"] if match["name"] == "tlsMode-disabled"
        ]
        hosts = replicas if each["name"] == REPLICAS_CLUSTER else [picker]
        endpoints = [{"endpoint": {"address": _address(host)}} for host in hosts]
        cluster["type"] = "STATIC"
        cluster["load_assignment"] = {
            "cluster_name": each["name"],
            "endpoints": [{"lb_endpoints": endpoints}],
        }
        clusters.append(cluster)
    return istio_gateway.bootstrap({**made, "clusters": clusters}, [], port=port, admin=admin)


def _address(text: str) -> dict[str, Any]:
    host, _, port = text.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}

"""What the real Envoy Gateway makes of deploy/envoy-gateway/gateway.yaml, and a bootstrap from it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

MANIFESTS = Path(__file__).parents[2] / "deploy" / "envoy-gateway" / "gateway.yaml"
#: Kept, so that a machine without `egctl` checks it too: building that takes minutes.
GOLDEN = Path(__file__).with_suffix(".yaml")
LISTENER = "llm/llm/http"
REPLICAS = "httproute/llm/llama/rule/0"
SERVICE = "envoyextensionpolicy/llm/steersman/extproc/0"
#: What a cluster has beside the manifests. egctl looks no endpoints up: Services stand for their pods.
BESIDE = """
---
apiVersion: v1
kind: Namespace
metadata: {name: llm}
---
apiVersion: v1
kind: Service
metadata: {name: steersman-service, namespace: llm}
spec: {clusterIP: 192.0.2.9, ports: [{name: grpc, port: 9002, targetPort: 9002}]}
"""


def translated(egctl: str, folder: Path) -> dict[str, Any]:
    """By the real Envoy Gateway: `policies` (by kind, what it said of each), and the parts of xDS that the
    manifests ask for."""
    text = MANIFESTS.read_text(encoding="utf-8").replace(
        "  selector: {app: llama}\n  ports", "  clusterIP: 192.0.2.1\n  selector: {app: llama}\n  ports", 1
    )
    source = folder / "manifests.yaml"
    source.write_text(text + BESIDE, encoding="utf-8")
    command = [egctl, "x", "translate", "--from", "gateway-api", "--to", "gateway-api,xds", "-o", "yaml"]
    done = subprocess.run(
        [*command, "-f", str(source)], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    whole = yaml.load(done.stdout, Loader=yaml.CSafeLoader)
    dumps = {each["@type"].rpartition(".")[2]: each for each in whole["xds"]["llm/llm"]["configs"]}
    listeners = [each["activeState"]["listener"] for each in dumps["ListenersConfigDump"]["dynamicListeners"]]
    (listener,) = (_plain(each) for each in listeners if each["name"] == LISTENER)
    clusters = [_plain(each["cluster"]) for each in dumps["ClustersConfigDump"]["dynamicActiveClusters"]]
    (routes,) = (_plain(each["routeConfig"]) for each in dumps["RoutesConfigDump"]["dynamicRouteConfigs"])
    return {
        "policies": {
            kind: [
                {"type": said["type"], "status": said["status"], "message": said["message"]}
                for each in whole[kind]
                for ancestor in each["status"]["ancestors"]
                for said in ancestor["conditions"]
            ]
            for kind in ("backendTrafficPolicies", "clientTrafficPolicies", "envoyExtensionPolicies")
        },
        "listener": listener,
        "routes": routes,
        "clusters": [each for each in clusters if each["name"] in (REPLICAS, SERVICE)],
    }


def bootstrap(
    made: dict[str, Any], *, port: int, admin: int, service: str, replicas: list[str]
) -> dict[str, Any]:
    """A bootstrap with what Envoy Gateway sends over ADS in place: the same, with these addresses.

    The access log goes to Envoy's output as there; nothing else is changed.
    """
    listener = {**made["listener"], "address": _address(f"127.0.0.1:{port}")}
    manager = listener["defaultFilterChain"]["filters"][0]["typedConfig"]
    manager.pop("rds")
    manager["routeConfig"] = made["routes"]
    clusters = []
    for each in made["clusters"]:
        cluster = {key: value for key, value in each.items() if key != "edsClusterConfig"}
        hosts = replicas if each["name"] == REPLICAS else [service]
        cluster["type"] = "STATIC"
        cluster["loadAssignment"] = {
            "clusterName": each["name"],
            "endpoints": [
                {
                    "loadBalancingWeight": 1,
                    "locality": {"region": each["name"]},
                    "lbEndpoints": [
                        {"endpoint": {"address": _address(host)}, "loadBalancingWeight": 1} for host in hosts
                    ],
                }
            ],
        }
        clusters.append(cluster)
    return {
        "node": {"id": "llm", "cluster": "llm"},
        "admin": {"address": _address(f"127.0.0.1:{admin}")},
        "staticResources": {"listeners": [listener], "clusters": clusters},
    }


def _plain(resource: dict[str, Any]) -> dict[str, Any]:
    """A resource without its type, which stands for it where it is sent alone."""
    return {key: value for key, value in resource.items() if key != "@type"}


def _address(text: str) -> dict[str, Any]:
    host, _, port = text.rpartition(":")
    return {"socketAddress": {"address": host, "portValue": int(port)}}

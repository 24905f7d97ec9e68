"""Keeps an agent's file: the replicas of its node, as the Kubernetes API lists their pods.

    pods.py BASE OUT --namespace NS --selector steersman/replica=true [--once]

Owns which pods are replicas and what their annotations say: `steersman/pool` (needed), `steersman/engine`,
`steersman/port`, `steersman/gpus` ("0,1"). A pod that is being deleted is drained. The agent reads its file
anew whenever it changes. Knows nothing of engines. Asks with the pod's own service account, which may list
pods of that namespace and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import ssl
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml

EVERY_S = 2.0
ANSWER_BYTES_MAX = 16 * 1024 * 1024
TIMEOUT_S = 10.0
#: The agent's own bound (agents/steersman_agent/config.py).
REPLICAS_MAX = 64
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PREFIX = "steersman/"


def replicas(pods: list[dict[str, Any]], *, port: int, engine: str) -> tuple[list[dict[str, Any]], list[str]]:
    """What an agent's file lists of these pods: `replicas`, and of them the addresses under `drain`."""
    found: dict[str, dict[str, Any]] = {}
    leaving: list[str] = []
    for pod in sorted(pods, key=lambda each: str(each["metadata"]["name"])):
        ip = pod.get("status", {}).get("podIP")
        says = pod["metadata"].get("annotations") or {}
        pool = says.get(f"{PREFIX}pool")
        if not ip or not pool or pod["status"].get("phase") in ("Succeeded", "Failed"):
            continue
        number = says.get(f"{PREFIX}port", str(port))
        address = f"[{ip}]:{number}" if ":" in ip else f"{ip}:{number}"
        replica: dict[str, Any] = {
            "address": address,
            "pool": pool,
            "engine": says.get(f"{PREFIX}engine", engine),
        }
        if gpus := says.get(f"{PREFIX}gpus"):
            parts = [part.strip() for part in gpus.split(",") if part.strip()]
            replica["gpus"] = [int(part) if part.isdigit() else part for part in parts]
        if address in found or len(found) >= REPLICAS_MAX:
            continue
        found[address] = replica
        if pod["metadata"].get("deletionTimestamp"):
            leaving.append(address)
    return list(found.values()), leaving


def listed(base: str, *, namespace: str, selector: str, node: str, account: Path) -> list[dict[str, Any]]:
    """The pods of a node with a label; OSError or ValueError when the API does not say."""
    query = urllib.parse.urlencode({"labelSelector": selector, "fieldSelector": f"spec.nodeName={node}"})
    request = urllib.request.Request(  # noqa: S310 (the cluster's own API)
        f"{base}/api/v1/namespaces/{namespace}/pods?{query}",
        # Read anew each time: the kubelet renews it.
        headers={"authorization": f"Bearer {(account / 'token').read_text(encoding='utf-8').strip()}"},
    )
    context = ssl.create_default_context(cafile=str(account / "ca.crt")) if base.startswith("https") else None
    with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as answer:  # noqa: S310
        items = json.loads(answer.read(ANSWER_BYTES_MAX))["items"]
    if not isinstance(items, list):
        raise TypeError("the API's answer is no list of pods")
    return items


def write(target: Path, config: dict[str, Any]) -> bool:
    """Replaces the file whole when its content would change; whether it did."""
    text = yaml.safe_dump(config, sort_keys=False)
    if target.exists() and target.read_text(encoding="utf-8") == text:
        return False
    fresh = target.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(target)
    return True


def main() -> int:
    """Until killed, or with --once until the file is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("base", type=Path, help="agent.yaml without node and replicas")
    parser.add_argument("target", type=Path)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--selector", required=True)
    parser.add_argument("--port", type=int, default=8000, help="where engines listen that do not say")
    parser.add_argument("--engine", default="vllm", help="what engines are that do not say")
    parser.add_argument("--account", type=Path, default=ACCOUNT, help="the service account's folder")
    parser.add_argument("--once", action="store_true")
    given = parser.parse_args()
    node = os.environ["NODE_NAME"]
    host, number = (
        os.environ.get("KUBERNETES_SERVICE_HOST", ""),
        os.environ.get("KUBERNETES_SERVICE_PORT", "443"),
    )
    base = os.environ.get("KUBERNETES_API") or f"https://{f'[{host}]' if ':' in host else host}:{number}"
    while True:
        try:
            pods = listed(
                base,
                namespace=given.namespace,
                selector=given.selector,
                node=node,
                account=given.account,
            )
            found, leaving = replicas(pods, port=given.port, engine=given.engine)
            config = yaml.safe_load(given.base.read_text(encoding="utf-8"))
            if write(given.target, {**config, "node": node, "replicas": found, "drain": leaving}):
                print(f"{len(found)} replicas, {len(leaving)} of them leaving", file=sys.stderr, flush=True)
            if given.once:
                return 0
        except (OSError, ValueError, TypeError, KeyError) as error:
            # What was written last stays: an API server that is away says nothing about the replicas.
            print(f"pods: {error}", file=sys.stderr, flush=True)
        time.sleep(EVERY_S)


if __name__ == "__main__":
    sys.exit(main())

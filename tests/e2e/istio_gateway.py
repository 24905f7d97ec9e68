"""What the real istiod makes of deploy/istio/envoyfilter.yaml, and a bootstrap from it.

What istiod makes is kept with a mark where our patches stand, so that these may change without istiod at
hand: that it takes each whole, and where it puts it, is what it is asked. To build what asks it (Go, some
minutes):

    mkdir /tmp/istiod && cp tests/e2e/istiod/dump_test.go /tmp/istiod && cd /tmp/istiod
    version=v0.0.0-20260827124520-eed52ebb66ad            # master, for 1.31
    cp "$(go mod download -json istio.io/istio@$version | jq -r .Dir)"/go.{mod,sum} . && chmod u+w go.*
    go mod edit -module istiod -require istio.io/istio@$version
    GOFLAGS=-mod=mod go test -vet=off -c -o dump .        # and ISTIOD_DUMP=/tmp/istiod/dump
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

MANIFESTS = Path(__file__).parents[2] / "deploy" / "istio" / "envoyfilter.yaml"
#: Kept, so that a machine without istiod checks it too.
GOLDEN = Path(__file__).with_suffix(".yaml")
#: There stand all patches of a kind, whole and in their order.
PATCHES = "$patches"
#: Istio's own builds of Envoy have these filters; none of them acts on what is tested here.
ISTIOS_OWN = ("istio.metadata_exchange", "istio.alpn")


def patches(documents: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """An EnvoyFilter's patches by what they are applied to, in their order; of a MERGE its fields."""
    (found,) = (each for each in documents if each["kind"] == "EnvoyFilter")
    by_kind: dict[str, list[Any]] = {}
    for each in found["spec"]["configPatches"]:
        kind, value = each["applyTo"], each["patch"]["value"]
        if kind == "NETWORK_FILTER":
            value = {key: said for key, said in value["typed_config"].items() if key != "@type"}
        by_kind.setdefault(kind, []).append(value)
    return by_kind


def dumped(
    dump: str,
    folder: Path,
    manifests: Path,
    *,
    namespace: str,
    labels: dict[str, str],
    pickers: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What istiod sends a gateway's proxy: listeners, routes, clusters; `pickers` are of routes, by name."""
    out = folder / "istiod.json"
    asked = {
        "MANIFESTS": str(manifests),
        "NAMESPACE": namespace,
        "LABELS": json.dumps(labels),
        "PICKERS": json.dumps(pickers or {}),
        "OUT": str(out),
    }
    done = subprocess.run(
        [dump, "-test.run", "TestDump"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env={**os.environ, **asked},
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    made: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return made


def translated(dump: str, folder: Path) -> dict[str, Any]:
    """Its answer to our manifests, with marks where our patches stand; raises where it took one not whole."""
    made = dumped(dump, folder, MANIFESTS, namespace="istio-system", labels={"istio": "llm-gateway"})
    by_kind = patches(list(yaml.load_all(MANIFESTS.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)))

    def marked(kind: str, found: list[Any]) -> list[Any]:
        """With one mark in place of all that were put in, side by side and in their order."""
        ours = by_kind.pop(kind)
        for at in range(len(found) - len(ours) + 1):
            if all(map(same, ours, found[at : at + len(ours)])):
                return [*found[:at], {PATCHES: kind}, *found[at + len(ours) :]]
        raise AssertionError(f"{kind}: istiod did not take these as they are: {ours}")

    def merged(kind: str, into: dict[str, Any]) -> dict[str, Any]:
        """With a mark in place of the fields that were merged in."""
        (ours,) = by_kind.pop(kind)
        lost = [key for key, said in ours.items() if not same(said, into.get(key))]
        assert lost == [], f"{kind}: istiod did not take these as they are: {lost}"
        return {**{key: said for key, said in into.items() if key not in ours}, PATCHES: kind}

    (listener,), (routes,) = made["listeners"], made["routes"]
    ((chain,),) = (each["filters"] for each in listener["filter_chains"])
    manager = merged("NETWORK_FILTER", chain["typed_config"])
    manager["http_filters"] = marked("HTTP_FILTER", manager["http_filters"])
    chain["typed_config"] = manager
    (host,) = routes["virtual_hosts"]
    host = merged("VIRTUAL_HOST", host)
    host["routes"] = marked("HTTP_ROUTE", host["routes"])
    routes["virtual_hosts"] = [host]
    listener = merged("LISTENER", listener)
    clusters = marked("CLUSTER", made["clusters"])
    assert by_kind == {}, f"kinds of patches that nobody looks for: {list(by_kind)}"
    return {"listener": listener, "routes": routes, "clusters": clusters}


def same(one: Any, other: Any) -> bool:
    """Whether two are the same message in protobuf's JSON: defaults may be left out, numbers be texts."""
    if isinstance(one, dict) or isinstance(other, dict):
        one, other = one or {}, other or {}
        return all(same(one.get(key), other.get(key)) for key in one.keys() | other.keys())
    if isinstance(one, list) or isinstance(other, list):
        one, other = one or [], other or []
        return len(one) == len(other) and all(map(same, one, other))
    return (str(one) if one else "") == (str(other) if other else "")


def bootstrap(
    made: dict[str, Any], documents: list[dict[str, Any]], *, port: int, admin: int
) -> dict[str, Any]:
    """A bootstrap with what istiod sends over ADS in place, and these manifests' patches where it put them.

    Istio's own filters are left out, which this Envoy does not have; nothing else is changed.
    """
    whole = _filled(made, patches(documents) if documents else {})
    listener = {**whole["listener"], "address": _address(port)}
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager.pop("rds")
    manager["route_config"] = whole["routes"]
    manager["http_filters"] = [each for each in manager["http_filters"] if each["name"] not in ISTIOS_OWN]
    return {
        "node": {"id": "router~10.0.0.1~llm", "cluster": "llm"},
        "admin": {"address": _address(admin)},
        "static_resources": {"listeners": [listener], "clusters": whole["clusters"]},
    }


def _filled(made: Any, by_kind: dict[str, list[Any]]) -> Any:
    """With our patches in their places."""
    if isinstance(made, dict):
        filled = {key: _filled(each, by_kind) for key, each in made.items() if key != PATCHES}
        return filled | (by_kind[made[PATCHES]][0] if PATCHES in made else {})
    if not isinstance(made, list):
        return made
    filled = []
    for each in made:
        alone = isinstance(each, dict) and list(each) == [PATCHES]
        filled += by_kind[each[PATCHES]] if alone else [_filled(each, by_kind)]
    return filled


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

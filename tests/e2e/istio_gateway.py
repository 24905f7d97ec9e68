"""What the real istiod makes of deploy/istio/envoyfilter.yaml, and a bootstrap from it.

What istiod makes is kept with each of our patches by its name, so that a patch's content may change without
istiod at hand: that it takes a patch whole, and where it puts it, is what it is asked. To build what asks it
(Go, some minutes):

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
#: A patch stands there whole.
PATCH = "$patch"
#: Istio's own builds of Envoy have these filters; none of them acts on what is tested here.
ISTIOS_OWN = ("istio.metadata_exchange", "istio.alpn")


def patches(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """An EnvoyFilter's patches by name: their kind, their place among these, and what they are called."""
    (found,) = (each for each in documents if each["kind"] == "EnvoyFilter")
    named: dict[str, Any] = {}
    for each in found["spec"]["configPatches"]:
        kind, value = each["applyTo"], each["patch"]["value"]
        if kind == "NETWORK_FILTER":
            named |= {f"{kind} {key}": said for key, said in value["typed_config"].items() if key != "@type"}
        else:
            place = sum(name.startswith(kind) for name in named)
            named[f"{kind} {place} {value.get('name', '')}".rstrip()] = value
    return named


def dumped(
    dump: str, folder: Path, *, manifests: Path | None = None, objects: Path | None = None, **proxy: Any
) -> dict[str, Any]:
    """What istiod sends the gateway's proxy of `namespace` with `labels`: listeners, routes, clusters."""
    out = folder / "istiod.json"
    asked = {
        "MANIFESTS": str(manifests or ""),
        "OBJECTS": str(objects or ""),
        "NAMESPACE": proxy["namespace"],
        "LABELS": json.dumps(proxy["labels"]),
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
    """Its answer to our manifests, with our patches by name; raises where it did not take one whole."""
    made = dumped(
        dump, folder, manifests=MANIFESTS, namespace="istio-system", labels={"istio": "llm-gateway"}
    )
    named = patches(list(yaml.load_all(MANIFESTS.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)))
    taken: set[str] = set()

    def known(kind: str, value: Any, title: str) -> Any:
        for name, patch in named.items():
            ours = name.startswith(f"{kind} ") and name.rpartition(" ")[2] == title and name not in taken
            if ours and same(patch, value):
                taken.add(name)
                return {PATCH: name}
        return value

    clusters = [known("CLUSTER", each, each["name"]) for each in made["clusters"]]
    (listener,), (routes,) = made["listeners"], made["routes"]
    ((chain,),) = (each["filters"] for each in listener["filter_chains"])
    manager = chain["typed_config"]
    for key in list(manager):
        manager[key] = known("NETWORK_FILTER", manager[key], key)
    manager["http_filters"] = [known("HTTP_FILTER", each, each["name"]) for each in manager["http_filters"]]
    for host in routes["virtual_hosts"]:
        host["routes"] = [known("HTTP_ROUTE", each, each["name"]) for each in host["routes"]]
    # These two are merged into what is Istio's: each of their fields.
    for name, value in named.items():
        place = {"LISTENER": listener, "VIRTUAL_HOST": routes["virtual_hosts"][0]}.get(name.partition(" ")[0])
        if place is not None and all(same(said, place.get(key)) for key, said in value.items()):
            taken.add(name)
    assert set(named) == taken, f"istiod did not take these whole: {sorted(set(named) - taken)}"
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
    whole = _filled(made, patches(documents))
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


def _filled(made: Any, named: dict[str, Any]) -> Any:
    """With each patch in its place."""
    if isinstance(made, dict):
        return (
            named[made[PATCH]] if PATCH in made else {key: _filled(each, named) for key, each in made.items()}
        )
    return [_filled(each, named) for each in made] if isinstance(made, list) else made


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

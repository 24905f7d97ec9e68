"""Makes crds.json: of the custom resources' own schemas, the parts that our manifests use.

    python tests/deploy/schemas/reduce.py FOLDER      # with the CRDs' YAML files, of the releases in SOURCES

Kept are names, kinds, enumerations, patterns and what is required; so a field that a release does not have,
or of the wrong kind, is found. Rules in CEL, which only an API server runs, are not.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
SOURCES = {
    "networking.istio.io": "istio.io/api v1.32.0, kubernetes/customresourcedefinitions.gen.yaml",
    "gateway.networking.k8s.io": "sigs.k8s.io/gateway-api v1.4.1, config/crd/standard",
    "gateway.envoyproxy.io": "github.com/envoyproxy/gateway v1.9.1, charts/gateway-helm/charts/crds",
    "keda.sh": "github.com/kedacore/keda/v2 v2.18.0, config/crd/bases",
    "inference.networking.k8s.io": "sigs.k8s.io/gateway-api-inference-extension v1.2.0, config/crd/bases",
    "monitoring.coreos.com": "prometheus-operator v0.85.0, example/prometheus-operator-crd",
}
MANIFESTS = (
    "deploy/istio/envoyfilter.yaml",
    "deploy/envoy-gateway/gateway.yaml",
    "tests/deploy/golden/*.yaml",
)
KEPT = ("type", "enum", "pattern", "required", "minimum", "maximum", "minItems", "maxItems", "maxLength")


def reduced(schema: dict[str, Any], used: Any) -> dict[str, Any]:
    """A schema's part that a value walks through."""
    made = {key: schema[key] for key in KEPT if key in schema}
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return made
    if isinstance(used, dict) and "properties" in schema:
        known = schema["properties"]
        made["properties"] = {key: reduced(known[key], used[key]) for key in used if key in known}
        made["additionalProperties"] = False
    elif isinstance(used, dict) and isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = reduced(schema["additionalProperties"], None)
    elif isinstance(used, list) and "items" in schema:
        made["items"] = reduced(schema["items"], merged(used))
    return made


def merged(values: list[Any]) -> Any:
    """Values of one place as one: every key that any of them has."""
    if all(isinstance(value, dict) for value in values) and values:
        keys = [key for value in values for key in value]
        return {key: merged([value[key] for value in values if key in value]) for key in dict.fromkeys(keys)}
    if any(isinstance(value, list) for value in values):
        return [each for value in values if isinstance(value, list) for each in value]
    return values[0] if values else None


def manifests() -> Iterator[dict[str, Any]]:
    """What stands in files, and on the documentation's pages."""
    texts = [path.read_text("utf-8") for pattern in MANIFESTS for path in sorted(ROOT.glob(pattern))]
    for page in sorted(ROOT.glob("docs/*.md")):
        found = re.findall(r"^( *)```yaml\n(.*?)^\1```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
        texts += [text for _, text in found if "apiVersion: " in text]
    for text in texts:
        yield from (document for document in yaml.safe_load_all(text) if document)


def main(folder: Path) -> None:
    """Writes crds.json beside this."""
    used: dict[tuple[str, str], list[Any]] = {}
    for document in manifests():
        used.setdefault((document["apiVersion"], document["kind"]), []).append(document)
    made: dict[str, Any] = {}
    for path in sorted(folder.glob("*.yaml")):
        for crd in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if not crd or crd.get("kind") != "CustomResourceDefinition":
                continue
            group, kind = crd["spec"]["group"], crd["spec"]["names"]["kind"]
            for version in crd["spec"]["versions"]:
                key = f"{group}/{version['name']}"
                if documents := used.get((key, kind)):
                    whole = {name: each for name, each in merged(documents).items() if name != "metadata"}
                    schema = version["schema"]["openAPIV3Schema"]
                    schema["properties"] |= {"apiVersion": {"const": key}, "kind": {"const": kind}}
                    found = reduced(schema, whole)
                    found["properties"]["metadata"] = {"type": "object", "required": ["name"]}
                    made[f"{key} {kind}"] = found
    text = json.dumps({"sources": SOURCES, "schemas": made}, indent=1, sort_keys=True)
    Path(__file__).with_name("crds.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

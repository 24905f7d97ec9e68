"""What the deployment's tests share: the repository's files, scripts as modules, the chart, schemas."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
from gateway import envoy_binary

from extproc.config.types import HASH_PLACEHOLDER
from extproc.core.tenant import hash_key

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "steersman"
GOLDEN = ROOT / "tests" / "deploy" / "golden"
SCHEMAS = ROOT / "tests" / "deploy" / "schemas"
MODES = ("sidecar", "shared", "picker")
#: Values of the replicas' scaling, one for each way; their modes are those three.
SCALING = ("scaling-push", "scaling-tls", "scaling-hpa")
#: The Kubernetes release that the chart is rendered and checked for.
KUBERNETES = "1.33.0"


def example(path: Path) -> str:
    """A configuration that we ship, with a key's hash where its reader must put one."""
    return path.read_text(encoding="utf-8").replace(HASH_PLACEHOLDER, hash_key("sk-example"))


def script(name: str) -> ModuleType:
    """A script under deploy/ as a module."""
    path = ROOT / "deploy" / name
    module_name = f"deploy_{path.stem}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module


def render(helm: str, mode: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`helm template` in a mode, with the values that CI uses."""
    values = CHART / "ci" / f"{mode}-values.yaml"
    command = [helm, "template", "steersman", str(CHART), "--namespace", "llm", "-f", str(values)]
    return subprocess.run(
        [*command, "--kube-version", KUBERNETES, *arguments], capture_output=True, text=True, check=False
    )


@cache
def _custom_resources() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SCHEMAS / "crds.json").read_text(encoding="utf-8"))["schemas"]
    return found


def custom_resource_problems(document: dict[str, Any]) -> list[str]:
    """What a custom resource's definition has against it; KeyError where we have no schema of its kind."""
    schema = _custom_resources()[f"{document['apiVersion']} {document['kind']}"]
    return [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
        for error in jsonschema.Draft202012Validator(schema).iter_errors(document)
    ]


def envoy_validates(bootstrap: str, folder: Path) -> str:
    """Empty when the real Envoy takes a bootstrap, else what it says."""
    file = folder / "bootstrap.yaml"
    file.write_text(bootstrap, encoding="utf-8")
    command = [envoy_binary(), "--mode", "validate", "-c", str(file), "--log-level", "warning"]
    done = subprocess.run(
        [*command, "--component-log-level", "misc:error"], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr

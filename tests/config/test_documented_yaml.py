"""Every YAML block of README and docs is what it seems: taken by what it is for, as it stands there.

A part of a `steersman.yaml` is completed with the sections that it leaves out; a setting that it has stays
as it is, but for the placeholder where a reader puts the hash of a key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from deploy_harness import KUBERNETES, custom_resource_problems
from documents import PAGES, Block, blocks, name_of

from extproc.config.load import ConfigError, load
from extproc.config.types import HASH_PLACEHOLDER
from extproc.core.tenant import hash_key
from steersman_agent import config as agent_config
from tests.stand import schemas

BLOCKS = [
    (page, block)
    for page in PAGES
    for block in blocks(page.read_text(encoding="utf-8"))
    if block.language in ("yaml", "yml")
]
IDS = [f"{name_of(page)}:{block.line}" for page, block in BLOCKS]
#: What a part leaves out. Its pools serve every model that parts speak of.
BASE: dict[str, Any] = {
    "pools": [
        {"name": "llama", "models": ["llama-3-8b"], "endpoints": [{"address": "192.0.2.11:8000"}]},
        {
            "name": "llama-70b",
            "models": ["llama-3-70b", "llama-70b"],
            "endpoints": [{"address": "192.0.2.12:8000"}],
        },
        {"name": "chat", "models": ["m"], "endpoints": [{"address": "192.0.2.13:8000"}]},
    ],
    "tenants": [{"name": "somebody", "keys": [{"sha256": hash_key("sk-a-reader")}]}],
}


def completed(text: str) -> dict[str, Any]:
    """A part of a configuration with what it leaves out."""
    parts = text.split(HASH_PLACEHOLDER)
    filled = "".join(
        part + (hash_key(f"sk-a-reader-{i}") if i < len(parts) - 1 else "") for i, part in enumerate(parts)
    )
    part: dict[str, Any] = yaml.safe_load(filled)
    whole = {**BASE, **part}
    if "pools" in part:
        mine = {model for pool in part["pools"] for model in pool["models"]}
        names = {pool["name"] for pool in part["pools"]}
        others = [p for p in BASE["pools"] if p["name"] not in names and not mine & set(p["models"])]
        whole["pools"] = [*part["pools"], *others]
    if (part.get("gateway") or {}).get("auth") == "none" and "tenants" not in part:
        del whole["tenants"]
    for i, tenant in enumerate(whole.get("tenants", ())):
        tenant.setdefault("keys", [{"sha256": hash_key(f"sk-tenant-{i}")}])
    return whole


def kind_of(document: Any) -> str:
    """What a document is for."""
    if isinstance(document, dict):
        if "apiVersion" in document:
            return "manifest"
        if set(document) == {"metadata"}:
            return "pod"
        if "replicas" in document and "services" in document:
            return "agent"
    return "steersman"


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=IDS)
def test_a_yaml_block_is_taken(page: Path, block: Block, tmp_path: Path) -> None:
    """By `steersman check`, by the agent's own check, or by the schemas of Kubernetes and its extensions."""
    documents = [each for each in yaml.safe_load_all(block.text) if each]
    assert documents
    for document in documents:
        kind = kind_of(document)
        if kind == "manifest":
            if document["apiVersion"] == "v1":
                kubernetes_validate.validate(document, KUBERNETES, strict=True)
            else:
                assert custom_resource_problems(document) == []
        elif kind == "pod":
            container = {"name": "engine", "image": "engine"}
            pod = {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [container]}, **document}
            pod["metadata"] = {"name": "engine", **document["metadata"]}
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        elif kind == "agent":
            token = tmp_path / "token"
            token.write_text("a token")
            agent_config.loads(block.text.replace("/etc/steersman/token", str(token)))
        else:
            file = tmp_path / "steersman.yaml"
            whole = completed(block.text)
            file.write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
            load(file)
            assert schemas.mistakes(whole) == [], "an editor would mark what `check` takes"


def test_every_block_is_seen() -> None:
    """None is passed over by a change of its form, and each kind is there."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len(BLOCKS) == text.count("```yaml") + text.count("```yml")
    kinds = {kind_of(each) for _, block in BLOCKS for each in yaml.safe_load_all(block.text)}
    assert kinds == {"manifest", "pod", "agent", "steersman"}


def test_a_mistake_in_a_block_is_seen(tmp_path: Path) -> None:
    """What completes a part hides nothing in it."""
    file = tmp_path / "steersman.yaml"
    for text, path in [
        ("pools: [{name: p, models: [x], endpionts: []}]", "pools[0].endpionts"),
        ("gateway: {listen: nowhere}", "gateway.listen"),
        ("tenants: [{name: t, class: gold}]", "tenants[0].class"),
    ]:
        file.write_text(yaml.safe_dump(completed(text), sort_keys=False), encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            load(file)
        assert path in [problem.path for problem in caught.value.problems]


def test_readmes_own_file_is_refused_until_it_has_a_key(tmp_path: Path) -> None:
    """It is whole, but for the one thing that nobody may copy."""
    (block,) = [block for page, block in BLOCKS if name_of(page) == "README.md"]
    file = tmp_path / "steersman.yaml"
    file.write_text(block.text, encoding="utf-8")
    with pytest.raises(ConfigError, match="still holds the example's placeholder") as caught:
        load(file)
    assert len(caught.value.problems) == 1
    file.write_text(block.text.replace(HASH_PLACEHOLDER, hash_key("sk-a-reader")), encoding="utf-8")
    assert [pool.name for pool in load(file).pools] == ["llama"]

"""What the chart renders for the replicas' scaling: KEDA's objects, an HPA, rights, the adapter's rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_harness import GOLDEN, render

from extproc.config.load import loads
from extproc.observe.metrics.table import TABLE
from extproc.scaling.trigger import trigger_of


def _documents(name: str) -> list[dict[str, Any]]:
    text = (GOLDEN / f"{name}.yaml").read_text(encoding="utf-8")
    return [each for each in yaml.load_all(text, Loader=yaml.CSafeLoader) if each]


def _of(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [each for each in documents if each["kind"] == kind]


def _adapter() -> dict[str, Any]:
    maps = _of(_documents("scaling-hpa"), "ConfigMap")
    (found,) = [each for each in maps if each["metadata"]["name"].endswith("-adapter")]
    read: dict[str, Any] = yaml.safe_load(found["data"]["config.yaml"])
    return read


def _config(documents: list[dict[str, Any]]) -> str:
    secret = next(d for d in _of(documents, "Secret") if d["metadata"]["name"].endswith("-config"))
    return str(list(secret["stringData"].values())[-1])


@pytest.mark.parametrize("name", ["scaling-push", "scaling-tls"])
def test_kedas_triggers_are_what_the_scaler_reads(name: str) -> None:
    """Each trigger's metadata are good, of a pool that scales, at the port that the service listens on, over
    TLS where it has that; KEDA may reach it."""
    documents = _documents(name)
    config = loads(_config(documents))
    external = config.scaling.external_scaler
    assert external is not None
    pools = {pool.name: pool.scaling for pool in config.pools if pool.scaling is not None}
    (service,) = [d for d in _of(documents, "Service") if d["metadata"]["name"] == "steersman-scaler"]
    (port,) = service["spec"]["ports"]
    assert external.listen == f"0.0.0.0:{port['port']}"
    asked = set()
    for each in _of(documents, "ScaledObject"):
        (trigger,) = each["spec"]["triggers"]
        assert trigger["type"] == {"scaling-push": "external-push", "scaling-tls": "external"}[name]
        assert trigger["metricType"] == "AverageValue"
        metadata = trigger["metadata"]
        read = trigger_of(metadata, pools)
        asked.add(read.pool)
        assert metadata["scalerAddress"] == f"steersman-scaler.llm.svc:{port['port']}"
        assert (metadata.get("enableTLS") == "true") is (external.tls is not None)
        behavior = each["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        for way in ("scaleUp", "scaleDown"):
            assert float(behavior[way].get("tolerance", 0.1)) == read.tolerance
        scaling = pools[read.pool]
        assert scaling is not None
        assert each["spec"]["minReplicaCount"] == scaling.min_replicas
        assert each["spec"]["maxReplicaCount"] == scaling.max_replicas
        assert each["spec"]["fallback"]["replicas"] >= max(1, scaling.min_replicas)
        # One that has just begun is not ended again.
        assert each["spec"]["cooldownPeriod"] >= 2 * (scaling.load_time_s + scaling.reaction_s)
        if external.tls is not None:
            reference = trigger["authenticationRef"]["name"]
            (authentication,) = [
                d for d in _of(documents, "TriggerAuthentication") if d["metadata"]["name"] == reference
            ]
            assert authentication["metadata"]["namespace"] == each["metadata"]["namespace"]
    assert asked == set(pools)
    rules = [rule for d in _of(documents, "NetworkPolicy") for rule in d["spec"]["ingress"]]
    (rule,) = [rule for rule in rules if {p["port"] for p in rule["ports"]} == {port["port"]}]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}}]


def test_tls_files_are_mounted() -> None:
    """What the configuration names is in the service's container, and in no other."""
    documents = _documents("scaling-tls")
    config = loads(_config(documents))
    assert config.scaling.external_scaler is not None
    tls = config.scaling.external_scaler.tls
    assert tls is not None
    (workload,) = _of(documents, "StatefulSet")
    pod = workload["spec"]["template"]["spec"]
    (container,) = [c for c in pod["containers"] if "/etc/steersman-scaler" in str(c["volumeMounts"])]
    assert container["name"] == "steersman"
    assert {Path(each).parent for each in (tls.certificate, tls.key, str(tls.client_ca))} == {
        Path("/etc/steersman-scaler")
    }
    (volume,) = [v for v in pod["volumes"] if v["name"] == "scaler-tls"]
    assert volume["secret"]["secretName"] == "steersman-scaler-tls"


def test_rights_are_given_where_they_are_used_alone() -> None:
    """With podDeletionCost the service may list and patch pods of the replicas' namespace; its token is in
    its own container; without it there is neither."""
    documents = _documents("scaling-push")
    config = loads(_config(documents))
    cost = config.scaling.pod_deletion_cost
    assert cost is not None
    (role,) = _of(documents, "Role")
    assert role["metadata"]["namespace"] == cost.namespace == "models"
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "patch"]}]
    (binding,) = _of(documents, "RoleBinding")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "steersman", "namespace": "llm"}]
    (workload,) = _of(documents, "Deployment")
    pod = workload["spec"]["template"]["spec"]
    holders = [
        c["name"]
        for c in (*pod["initContainers"], *pod["containers"])
        if cost.account_dir in {m["mountPath"] for m in c["volumeMounts"]}
    ]
    assert holders == ["steersman"]
    for other in ("scaling-tls", "scaling-hpa"):
        assert not _of(_documents(other), "Role")


def test_an_hpa_asks_for_what_the_adapter_makes() -> None:
    """The external metric's name and labels are those of the adapter's rules, of metrics that there are."""
    documents = _documents("scaling-hpa")
    assert loads(_config(documents)).scaling.external_scaler is None
    (hpa,) = _of(documents, "HorizontalPodAutoscaler")
    (metric,) = hpa["spec"]["metrics"]
    rules = {rule["seriesQuery"].partition("{")[0]: rule for rule in _adapter()["externalRules"]}
    rule = rules[metric["external"]["metric"]["name"]]
    labels = set(metric["external"]["metric"]["selector"]["matchLabels"])
    kept = re.fullmatch(r"max by \(([^)]*)\) \(<<\.Series>>\{<<\.LabelMatchers>>\}\)", rule["metricsQuery"])
    assert kept is not None
    assert labels == set(kept[1].split(", "))
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "1"}
    known = {spec.full_name: spec.labels for spec in TABLE}
    for name in rules:
        assert "pool" in known[name]


def test_the_adapters_rules_stand_without_helm(root: Path) -> None:
    """deploy/prometheus/adapter.yaml is what the chart carries."""
    alone = (root / "deploy/prometheus/adapter.yaml").read_text(encoding="utf-8")
    assert _adapter() == yaml.safe_load(alone)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("scaling-push", "scaling.targets=null", "scaling.targets is missing"),
        ("scaling-push", "scaling.targets[0].pool=lama", "config.pools has no such pool with `scaling`"),
        ("scaling-tls", "scaling.targets[1].pool=llama_3.1", "names pool llama_3.1 twice"),
        ("scaling-push", "scaling.peers=null", "scaling.peers is missing"),
        ("scaling-push", "scaling.mode=hpa", "cannot start pool llama from zero"),
        ("scaling-hpa", "metrics.enabled=false", "scaling.mode hpa needs metrics.enabled"),
        ("scaling-tls", "scaling.tls.secretName=", "needs scaling.tls.secretName"),
        ("scaling-push", "scaling.tolerance=2", "tolerance"),
        ("scaling-push", "scaling.mode=kida", "mode"),
    ],
)
def test_mistakes_are_said(helm: str, name: str, value: str, said: str) -> None:
    """A mistake in the values of scaling is refused, in words that say the mend."""
    done = render(helm, name, "--set", value)
    assert done.returncode != 0
    assert said in done.stderr

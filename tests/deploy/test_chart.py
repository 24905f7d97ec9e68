"""The Helm chart's manifests in each mode: their schemas, and what they promise.

Rendered by the real helm and kept under golden/; where helm is at hand, that they are fresh is checked too.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from deploy_harness import GOLDEN, KUBERNETES, MODES, SCALING, custom_resource_problems, render

from extproc.config.load import loads
from extproc.config.places import address_of
from extproc.control.bootstrap import render_bootstrap

Chart = tuple[str, list[dict[str, Any]]]
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")


def _of(documents: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [each for each in documents if each["kind"] in kinds]


def _pods(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod's spec with its workload's name."""
    for each in documents:
        if each["kind"] in WORKLOADS:
            yield each["metadata"]["name"], each["spec"]["template"]["spec"]
        elif each["kind"] == "Pod":
            yield each["metadata"]["name"], each["spec"]


def _containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def _configs(documents: list[dict[str, Any]]) -> dict[str, str]:
    secret = next(d for d in _of(documents, "Secret") if d["metadata"]["name"].endswith("-config"))
    found: dict[str, str] = secret["stringData"]
    return found


@pytest.mark.parametrize("mode", [*MODES, *SCALING])
def test_kept_manifests_are_what_helm_renders(helm: str, mode: str) -> None:
    """golden/ holds the real helm's output; STEERSMAN_UPDATE_GOLDEN=1 writes it anew."""
    done = render(helm, mode)
    assert done.returncode == 0, done.stderr
    path = GOLDEN / f"{mode}.yaml"
    if os.environ.get("STEERSMAN_UPDATE_GOLDEN"):
        path.write_text(done.stdout, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == done.stdout


def test_helm_finds_nothing_to_say(helm: str, root: Path) -> None:
    """`helm lint` is content with the chart in each mode, and each way of scaling."""
    for mode in (*MODES, *SCALING):
        values = root / f"deploy/helm/steersman/ci/{mode}-values.yaml"
        command = [helm, "lint", "--strict", str(root / "deploy/helm/steersman"), "-f", str(values)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("mode", "values", "said"),
    [
        ("sidecar", "config.sharing.redis=", "several services without config.sharing.redis"),
        ("sidecar", "metrics.tokenSha256=", "metrics.tokenSha256 is missing"),
        ("sidecar", "metrics.tokenSecret.name=", "metrics.serviceMonitor needs metrics.tokenSecret"),
        ("sidecar", "probe.keySecret.name=", "probe.model needs probe.keySecret"),
        ("picker", "decisionToken.name=x", "decisionToken goes with Envoys of this chart"),
        ("shared", "config.service.tls.certificate=x", "gRPC probes do not speak TLS"),
        ("sidecar", "agents.tokenSecret=", "agents.auth token needs agents.tokenSecret"),
        ("sidecar", "gateway.enabled=false", "gateway.enabled false goes with mode shared"),
        ("shared", "service.replicas=9", "above service.replicasMax"),
        ("shared", "networkPolicy.enabled=false", "guarded by the NetworkPolicy alone"),
        ("picker", "networkPolicy.clients=null", "networkPolicy.clients is missing"),
        ("picker", "picker.inferencePool.matchLabels=null", "matchLabels is missing"),
        # Of the schema, which helm's releases word each in their own way.
        ("picker", "config.pools=null", "config.pools"),
        ("picker", "gateway.drainSecond=3", "drainSecond"),
    ],
)
def test_mistakes_are_said(helm: str, mode: str, values: str, said: str) -> None:
    """A mistake in the values is refused, in words that say the mend."""
    done = render(helm, mode, "--set", values)
    assert done.returncode != 0
    assert said in done.stderr.replace("/", ".")


def test_values_keep_to_their_schema(root: Path) -> None:
    """The defaults and CI's values have no name that values.schema.json lacks."""
    chart = root / "deploy/helm/steersman"
    schema = json.loads((chart / "values.schema.json").read_text(encoding="utf-8"))
    defaults = yaml.safe_load((chart / "values.yaml").read_text(encoding="utf-8"))
    open_schema = schema | {"properties": schema["properties"] | {"config": {"type": "object"}}}
    jsonschema.validate(defaults, open_schema)
    assert set(defaults) == set(schema["properties"]) - {"global"}
    for mode in (*MODES, *SCALING):
        values = yaml.safe_load((chart / f"ci/{mode}-values.yaml").read_text(encoding="utf-8"))
        jsonschema.validate(values, schema)


def test_manifests_are_valid(any_chart: Chart) -> None:
    """Kubernetes' own objects keep to its OpenAPI schemas, strictly; custom ones to their definitions'."""
    mode, documents = any_chart
    version = ".".join(KUBERNETES.split(".")[:2])
    for each in documents:
        group = each["apiVersion"].partition("/")[0]
        if ("." in group and not group.endswith(".k8s.io")) or group == "inference.networking.k8s.io":
            assert custom_resource_problems(each) == [], f"{mode} {each['kind']}"
        else:
            kubernetes_validate.validate(each, version, strict=True)


def test_pods_are_restricted(any_chart: Chart) -> None:
    """Every pod keeps to the standard `restricted`, mounts no API token by itself, and is bounded."""
    _, documents = any_chart
    for name, spec in _pods(documents):
        assert spec["automountServiceAccountToken"] is False, name
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not spec.get("hostNetwork"), name
        assert not [v for v in spec.get("volumes", []) if "hostPath" in v], name
        for container in _containers(spec):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, f"{name}/{container['name']}"
            assert container["resources"]["requests"], f"{name}/{container['name']}"
            assert "memory" in container["resources"]["limits"], f"{name}/{container['name']}"
            assert ":latest" not in container["image"]


def test_agents_take_no_card_and_few_rights(chart: Chart) -> None:
    """An agent sees the cards through the runtime and occupies none; it may list pods and nothing else."""
    mode, documents = chart
    sets = _of(documents, "DaemonSet")
    assert len(sets) == (0 if mode == "picker" else 1)
    for each in sets:
        spec = each["spec"]["template"]["spec"]
        assert spec["runtimeClassName"] == "nvidia"
        (agent,) = spec["containers"]
        environment = {e["name"]: e.get("value") for e in agent["env"]}
        assert environment["NVIDIA_DRIVER_CAPABILITIES"] == "utility"
        assert "nvidia.com/gpu" not in json.dumps([c["resources"] for c in _containers(spec)])
        assert spec["tolerations"]
        assert spec["hostPID"] is (mode == "shared")  # as its values ask
        # The API's token is mounted where pods are listed alone.
        tokens = [v["name"] for v in spec["volumes"] if "projected" in v]
        holders = {c["name"] for c in _containers(spec) for m in c["volumeMounts"] if m["name"] in tokens}
        assert holders == {"first-look", "pods"}
    rules = [rule for role in _of(documents, "Role", "ClusterRole") for rule in role["rules"]]
    assert rules == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}] * len(sets)


def test_a_pod_outlives_its_drain(chart: Chart) -> None:
    """The time to terminate is longer than the preStop hook and the service's drain together, and no
    disruption takes two pods at once."""
    mode, documents = chart
    (config, *_) = _configs(documents).values()
    drain_s = loads(config).service.drain_s
    for each in _of(documents, "Deployment", "StatefulSet"):
        spec = each["spec"]["template"]["spec"]
        hooks = [
            float(c["lifecycle"]["preStop"]["exec"]["command"][-1])
            for c in spec["containers"]
            if "lifecycle" in c
        ]
        assert spec["terminationGracePeriodSeconds"] > sum(hooks) + drain_s, each["metadata"]["name"]
        assert bool(hooks) == each["metadata"]["name"].endswith("-gateway")
    guarded = [p["spec"]["selector"]["matchLabels"] for p in _of(documents, "PodDisruptionBudget")]
    assert all(p["spec"]["maxUnavailable"] == 1 for p in _of(documents, "PodDisruptionBudget"))
    for each in _of(documents, "Deployment", "StatefulSet"):
        assert each["spec"]["selector"]["matchLabels"] in guarded, f"{mode} {each['metadata']['name']}"


def test_the_service_ends_after_envoy(chart: Chart) -> None:
    """In mode sidecar the service is an init container that keeps running: Kubernetes ends those last."""
    mode, documents = chart
    if mode != "sidecar":
        assert not [
            c
            for n, s in _pods(documents)
            if "agent" not in n
            for c in s.get("initContainers", [])
            if c["name"] == "steersman"
        ]
        return
    (spec,) = [s for n, s in _pods(documents) if n.endswith("-gateway")]
    (service,) = [c for c in spec["initContainers"] if c["name"] == "steersman"]
    assert service["restartPolicy"] == "Always"
    assert "startupProbe" in service
    assert [c["name"] for c in spec["containers"]] == ["envoy"]


def test_readiness_asks_for_the_model(chart: Chart) -> None:
    """Envoy's pods are ready when the model is listed through Envoy and the service, not when a port is open;
    a service of its own by gRPC health."""
    _, documents = chart
    for name, spec in _pods(documents):
        for container in spec["containers"]:
            probe = container.get("readinessProbe")
            if container["name"] == "envoy":
                assert probe["exec"]["command"][:4] == [
                    "python",
                    "/opt/steersman/ask.py",
                    "--model",
                    "llama-3-8b",
                ]
            elif container["name"] == "steersman":
                assert "grpc" in probe, name


def test_envoy_refuses_before_it_is_killed(chart: Chart, tmp_path: Path) -> None:
    """Envoy's heap bound, as its own bootstrap has it, lies below the container's memory limit."""
    mode, documents = chart
    if mode == "picker":
        return
    text = _configs(documents)["steersman.yaml" if mode == "sidecar" else "envoy.yaml"]
    (tmp_path / "token").write_text("a-token-of-these-tests")
    config = loads(text.replace("/etc/steersman-decision/token", str(tmp_path / "token")))
    manager = render_bootstrap(config, "ads").overload_manager
    assert manager is not None
    heap = next(m for m in manager.resource_monitors if "heap" in m.name).typed_config
    assert heap is not None
    (envoy,) = [c for _, s in _pods(documents) for c in s["containers"] if c["name"] == "envoy"]
    limit = envoy["resources"]["limits"]["memory"]
    assert limit.endswith("Mi")
    assert heap.unpack().max_heap_size_bytes < int(limit[:-2]) * 1024 * 1024


def test_configurations_are_good(chart: Chart) -> None:
    """`steersman check` is content with every file that the chart makes, and what was given is in it."""
    mode, documents = chart
    configs = _configs(documents)
    expected = {"sidecar": 1, "picker": 1, "shared": 4}[mode]
    assert len(configs) == expected
    for name, text in configs.items():
        config = loads(text, name=name)
        assert [pool.name for pool in config.pools] == ["llama"]
        assert config.sharing is not None
        assert config.admin is not None
        assert config.admin.guard == "token"
        if mode == "sidecar":
            assert config.service_addresses == ["unix:/run/steersman/extproc.sock"]
            assert config.service.drain_s == 12.5
            assert config.tenants[0].keys[0].expires is not None
            assert config.gateway.body_bytes_max == 16 * 1024 * 1024
        if mode == "picker":
            assert config.picker.enabled


def test_a_shared_service_knows_itself(chart: Chart) -> None:
    """Each service finds itself among Envoy's clusters, at the place that Envoy has for it."""
    mode, documents = chart
    if mode != "shared":
        return
    from extproc.control.names import event_cluster

    configs = _configs(documents)
    names = sorted(name for name in configs if "-service-" in name)
    assert [event_cluster(loads(configs[name])) for name in names] == [f"steersman.log.{i}" for i in range(3)]
    (render_container,) = [
        c for _, s in _pods(documents) for c in s.get("initContainers", []) if c["name"] == "render"
    ]
    given = re.search(r"--services (\S+)", render_container["args"][0])
    assert given is not None
    assert [f"{name}.yaml" for name in given[1].split(",")] == names


def test_envoy_reaches_what_tells_it_of_endpoints(chart: Chart) -> None:
    """The port of service.ads_listen is open in pods, Services and policies, as that of decisions
    is; without the setting nowhere."""
    mode, documents = chart
    pods = {name: spec for name, spec in _pods(documents) if name == "steersman-service"}
    opened = [
        {port["containerPort"] for c in _containers(spec) for port in c.get("ports", [])}
        for spec in pods.values()
    ]
    opened += [
        {port["port"] for port in each["spec"]["ports"]}
        for each in _of(documents, "Service")
        if re.fullmatch(r"steersman-service-\d", each["metadata"]["name"])
    ]
    opened += [
        {port["port"] for rule in each["spec"].get(way, []) for port in rule.get("ports", [])}
        for each in _of(documents, "NetworkPolicy")
        for name, way in (("steersman-service", "ingress"), ("steersman-gateway", "egress"))
        if each["metadata"]["name"] == name and mode == "shared"
    ]
    assert len(opened) == {"sidecar": 0, "shared": 6, "picker": 1}[mode]
    for each in opened:
        assert (50054 in each) == (mode == "shared" and 50051 in each)


def test_references_hold(any_chart: Chart) -> None:
    """Volumes, config maps, accounts, ports, selectors and scaled workloads that are named exist."""
    _, documents = any_chart
    made = {(d["kind"], d["metadata"]["name"]) for d in documents}
    pods = {
        d["metadata"]["name"]: (d["spec"]["template"]["metadata"]["labels"], d["spec"]["template"]["spec"])
        for d in _of(documents, *WORKLOADS)
    }
    for name, spec in _pods(documents):
        volumes = {v["name"] for v in spec.get("volumes", [])}
        mounted = {m["name"] for c in _containers(spec) for m in c.get("volumeMounts", [])}
        assert mounted == volumes, name
        assert ("ServiceAccount", spec["serviceAccountName"]) in made
        for volume in spec.get("volumes", []):
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in made
    for service in _of(documents, "Service"):
        wanted = dict(service["spec"]["selector"])
        wanted.pop("statefulset.kubernetes.io/pod-name", None)
        chosen = [spec for labels, spec in pods.values() if wanted.items() <= labels.items()]
        assert len(chosen) == 1, service["metadata"]["name"]
        ports = {p["name"] for c in _containers(chosen[0]) for p in c.get("ports", [])}
        assert {p["targetPort"] for p in service["spec"]["ports"]} <= ports, service["metadata"]["name"]
    for scaler in _of(documents, "HorizontalPodAutoscaler"):
        if scaler["spec"]["metrics"][0]["type"] == "External":
            continue  # of the replicas, which are not this chart's
        target = scaler["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) in made
        (workload,) = [
            d for d in documents if d["kind"] == target["kind"] and d["metadata"]["name"] == target["name"]
        ]
        assert "replicas" not in workload["spec"]
    for monitor in _of(documents, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        assert [s for s in _of(documents, "Service") if wanted.items() <= s["metadata"]["labels"].items()]


def test_orders_are_not_open(chart: Chart) -> None:
    """The port of decisions is reached by named peers alone; orders go to a folder of the service's own."""
    mode, documents = chart
    for _, spec in _pods(documents):
        containers = {c["name"]: c for c in (*spec.get("initContainers", []), *spec["containers"])}
        near = {
            name for name, c in containers.items() for m in c.get("volumeMounts", []) if m["name"] == "data"
        }
        assert near <= {"steersman"}, "no other container reaches the operators' socket"
        if "steersman" in containers:
            (address,) = [
                e["value"] for e in containers["steersman"]["env"] if e["name"] == "STEERSMAN_ADDRESS"
            ]
            (config, *_) = [loads(t) for n, t in _configs(documents).items() if n != "envoy.yaml"]
            assert address == address_of(config.service.listen[0], config.service.run_dir)
    for policy in _of(documents, "NetworkPolicy"):
        assert policy["spec"]["policyTypes"][0] == "Ingress"
        for rule in policy["spec"]["ingress"]:
            if {p["port"] for p in rule["ports"]} & {50051, 50052, 50054, 9002, 9090}:
                assert rule["from"], f"{mode} {policy['metadata']['name']}"
    guarded = {
        p["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        for p in _of(documents, "NetworkPolicy")
    }
    assert (
        guarded
        == {
            "sidecar": {"gateway", "agent"},
            "shared": {"gateway", "service", "agent"},
            "picker": {"service"},
        }[mode]
    )


def test_a_changed_configuration_restarts_pods(chart: Chart) -> None:
    """Pods that read the configuration carry its checksum."""
    _, documents = chart
    for each in _of(documents, "Deployment", "StatefulSet"):
        annotations = each["spec"]["template"]["metadata"]["annotations"]
        assert re.fullmatch(r"[0-9a-f]{64}", annotations["checksum/config"])

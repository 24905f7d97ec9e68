"""Istio, Envoy Gateway, an Envoy of one's own: the manifests' schemas, and Envoy's part by the real Envoy."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from deploy_harness import KUBERNETES, custom_resource_problems, envoy_validates, example, script
from gateway import envoy_binary, free_ports, wait_for
from processes import STEERSMAN, Child, show_logs
from replicas import Replicas

from extproc.config.load import ConfigError, load, loads
from extproc.control.bootstrap import render_bootstrap, to_yaml
from extproc.core.contract import STRIPPED_HEADERS
from extproc.core.tenant import hash_key
from extproc.sim.spec import ReplicaSpec

SERVICES = [(f"steersman-service-{i}.llm.svc.cluster.local", 50051) for i in range(3)]
MANAGER = "envoy.filters.network.http_connection_manager"
ROUTER = "envoy.filters.http.router"
KEY = "sk-steer-of-the-test"
TYPES = "type.googleapis.com/envoy.extensions.filters"


def _documents(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.load_all(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader) if each]


def _istio_bootstrap(port: int, admin: int) -> dict[str, Any]:
    """What an Istio gateway has before our patches, as far as they touch it: a listener, its connection
    manager, and the VirtualService's one route."""
    route = {
        "name": "undecided",
        "match": {"prefix": "/"},
        "direct_response": {"status": 503, "body": {"inline_string": "no decision"}},
    }
    manager = {
        "@type": f"{TYPES}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "outbound",
        "use_remote_address": True,
        "route_config": {
            "name": "http.80",
            "validate_clusters": False,
            "virtual_hosts": [{"name": "llm.example.com:80", "domains": ["*"], "routes": [route]}],
        },
        "http_filters": [
            {
                "name": "istio.metadata_exchange.stand_in",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig"
                },
            },
            {
                "name": ROUTER,
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            },
        ],
    }
    listener = {
        "name": "0.0.0.0_8080",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": MANAGER, "typed_config": manager}]}],
    }
    return {
        "node": {"id": "router~10.0.0.1~llm", "cluster": "llm"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
        "static_resources": {"listeners": [listener], "clusters": []},
    }


def _merge(into: dict[str, Any], what: dict[str, Any]) -> None:
    """As protobuf merges: messages field by field, lists one behind the other."""
    for key, value in what.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif isinstance(value, list) and isinstance(into.get(key), list):
            into[key] = [*into[key], *value]
        else:
            into[key] = value


def _patched(bootstrap: dict[str, Any], patches: list[dict[str, Any]]) -> dict[str, Any]:
    """An EnvoyFilter's patches on a gateway, by the rules of Istio's documentation for these operations."""
    resources = bootstrap["static_resources"]
    (listener,) = resources["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (host,) = manager["route_config"]["virtual_hosts"]
    for each in patches:
        assert each["match"]["context"] == "GATEWAY"
        kind, operation, value = each["applyTo"], each["patch"]["operation"], each["patch"]["value"]
        if (kind, operation) == ("CLUSTER", "ADD"):
            resources["clusters"].append(value)
        elif (kind, operation) == ("LISTENER", "MERGE"):
            _merge(listener, value)
        elif (kind, operation) == ("NETWORK_FILTER", "MERGE"):
            assert value["name"] == MANAGER
            _merge(manager, value["typed_config"])
        elif (kind, operation) == ("VIRTUAL_HOST", "MERGE"):
            _merge(host, value)
        elif (kind, operation) == ("HTTP_FILTER", "INSERT_BEFORE"):
            before = each["match"]["listener"]["filterChain"]["filter"]["subFilter"]["name"]
            names = [f["name"] for f in manager["http_filters"]]
            manager["http_filters"].insert(names.index(before), value)
        else:
            assert (kind, operation) == ("HTTP_ROUTE", "INSERT_BEFORE")
            # The routes of a server without TLS have no gateway in their name: none would match.
            assert list(each["match"]["routeConfiguration"]) == ["vhost"]
            before = each["match"]["routeConfiguration"]["vhost"]["route"]["name"]
            host["routes"].insert([r["name"] for r in host["routes"]].index(before), value)
    return bootstrap


def _token(folder: Path) -> Path:
    """A file like the one that is mounted: the token of the decision port."""
    (folder / "token").write_text("a-token-of-these-tests")
    return folder / "token"


def _envoy_filter(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    (found,) = [d for d in documents if d["kind"] == "EnvoyFilter"]
    patches: list[dict[str, Any]] = found["spec"]["configPatches"]
    return patches


def test_istios_manifests_are_fresh(root: Path) -> None:
    """envoyfilter.yaml is what render.py makes of steersman.yaml; STEERSMAN_UPDATE_GOLDEN=1 writes it."""
    render = script("istio/render.py")
    made = render.to_yaml(
        render.manifests(
            loads(example(root / "deploy/istio/steersman.yaml")), services=SERVICES, host="llm.example.com"
        )
    )
    written = root / "deploy/istio/envoyfilter.yaml"
    if os.environ.get("STEERSMAN_UPDATE_GOLDEN"):
        written.write_text(made, encoding="utf-8")
    assert written.read_text(encoding="utf-8") == made


def test_istios_manifests_are_valid(root: Path) -> None:
    """Gateway, VirtualService and EnvoyFilter keep to Istio's definitions."""
    documents = _documents(root / "deploy/istio/envoyfilter.yaml")
    assert [d["kind"] for d in documents] == ["Gateway", "VirtualService", "EnvoyFilter"]
    for each in documents:
        assert custom_resource_problems(each) == [], each["kind"]


def test_istios_gateway_has_our_way(root: Path) -> None:
    """On Istio's gateway stand our filters in our order before the router, and what clients may not say is
    removed before them."""
    patches = _envoy_filter(_documents(root / "deploy/istio/envoyfilter.yaml"))
    bootstrap = _patched(_istio_bootstrap(8080, 9901), patches)
    manager = bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    names = [each["name"].rpartition(".")[2] for each in manager["http_filters"]]
    ours = ["identity", "buffer", "ext_proc", "keeping", "json_to_metadata", "lua"]
    assert names == ["stand_in", *ours, "router"]
    assert [r["name"] for r in manager["route_config"]["virtual_hosts"][0]["routes"]] == [
        "decided.once.whole",
        "decided.once",
        "decided.whole",
        "decided",
        "undecided.form.kept",
        "undecided.form",
        "undecided.form.kept",
        "undecided.form",
        "undecided",
    ]
    said = json.dumps(manager["early_header_mutation_extensions"])
    for header in STRIPPED_HEADERS:
        assert header in said or header.startswith(("x-envoy-", "x-gateway-destination-endpoint"))
    assert len(manager["access_log"]) == len(SERVICES)


@pytest.mark.envoy
def test_envoy_takes_istios_patches(root: Path, tmp_path: Path) -> None:
    """A gateway's bootstrap with the patches on it is one that the real Envoy accepts."""
    patches = _envoy_filter(_documents(root / "deploy/istio/envoyfilter.yaml"))
    bootstrap = _patched(_istio_bootstrap(*free_ports(2)), patches)
    assert envoy_validates(yaml.dump(bootstrap, Dumper=yaml.CSafeDumper), tmp_path) == ""


@pytest.mark.envoy
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_requests_go_through_istios_patches(root: Path, tmp_path: Path) -> None:
    """With names that resolve here, the patched gateway asks the service, reaches the replica, and answers
    503 for what nobody decided on."""
    port, admin, decides, nobody = free_ports(4)
    with Replicas([ReplicaSpec(name="sim", port=0, model_id="llama-3-8b", time_scale=20.0)]) as replicas:
        host, _, engine = replicas.addresses[0].rpartition(":")
        text = example(root / "deploy/istio/steersman.yaml")
        text = text.replace("llama-headless.llm.svc.cluster.local, port: 8000", f"{host}, port: {engine}")
        text = re.sub("[0-9a-f]{64}", hash_key(KEY), text).replace("engine: vllm", "engine: tgi")
        file = tmp_path / "steersman.yaml"
        file.write_text(f"{text}service: {{listen: ['127.0.0.1:{decides}']}}\n", encoding="utf-8")
        config = load(file)
        made = script("istio/render.py").manifests(
            config, services=[("127.0.0.1", decides)], host="llm.example.com"
        )
        envoy_file = tmp_path / "envoy.yaml"
        envoy_file.write_text(json.dumps(_patched(_istio_bootstrap(port, admin), _envoy_filter(made))))
        beside = Path(envoy_binary())
        service = Child("service", [*STEERSMAN, "serve", "-f", str(file)], tmp_path)
        envoy = Child(
            "envoy",
            [str(beside), "-c", str(envoy_file), "--disable-hot-restart", "--log-level", "warning"],
            tmp_path,
        )

        def asked(key: str) -> int:
            body = {"model": "llama-3-8b", "messages": [{"role": "user", "content": "Ahoy"}], "max_tokens": 3}
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/chat/completions", data=json.dumps(body).encode()
            )
            request.add_header("authorization", f"Bearer {key}")
            request.add_header("content-type", "application/json")
            request.add_header("x-steersman-cluster", "nowhere")
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                with error:
                    return error.code

        try:
            service.start()
            envoy.start()
            wait_for("an answer", lambda: asked(KEY) == 200, timeout_s=90)
            assert asked("sk-steer-wrong") == 401
            service.stop()
            wait_for("no decision", lambda: asked(KEY) == 503)
        except BaseException:
            show_logs([service, envoy])
            raise
        finally:
            envoy.stop()
            service.stop()
    assert nobody


def test_envoy_gateways_manifests_are_valid(root: Path) -> None:
    """Every object keeps to its definition's schema, and what one names another one is."""
    documents = _documents(root / "deploy/envoy-gateway/gateway.yaml")
    for each in documents:
        if each["apiVersion"] == "v1":
            kubernetes_validate.validate(each, ".".join(KUBERNETES.split(".")[:2]), strict=True)
        else:
            assert custom_resource_problems(each) == [], each["kind"]
    made = {(d["kind"], d["metadata"]["name"]) for d in documents}
    for each in documents:
        for target in each["spec"].get("targetRefs", []):
            assert (target["kind"], target["name"]) in made, each["kind"]
    (route,) = [d for d in documents if d["kind"] == "HTTPRoute"]
    for rule in route["spec"]["rules"]:
        for backend in rule["backendRefs"]:
            assert ("Service", backend["name"]) in made


def test_envoy_gateway_takes_no_clients_word(root: Path) -> None:
    """The header that chooses the endpoint is removed from clients' requests, and is the one that is read."""
    documents = {d["kind"]: d for d in _documents(root / "deploy/envoy-gateway/gateway.yaml")}
    removed = documents["ClientTrafficPolicy"]["spec"]["headers"]["earlyRequestHeaders"]["removeOnMatch"]
    prefixes = tuple(each["value"] for each in removed if each["type"] == "Prefix")
    (source,) = documents["BackendTrafficPolicy"]["spec"]["loadBalancer"]["endpointOverride"]["extractFrom"]
    assert source["header"].startswith(prefixes)
    for header in STRIPPED_HEADERS:
        assert header.startswith(prefixes), header
    (process,) = documents["EnvoyExtensionPolicy"]["spec"]["extProc"]
    assert process["processingMode"]["request"]["body"] == "FullDuplexStreamed"
    config = loads(example(root / "deploy/envoy-gateway/steersman.yaml"))
    assert config.picker.enabled
    assert config.service.listen == [f"0.0.0.0:{process['backendRefs'][0]['port']}"]


@pytest.mark.envoy
@pytest.mark.parametrize("name", ["deploy/envoy/steersman.yaml", "deploy/compose/steersman.yaml"])
@pytest.mark.parametrize("mode", ["static", "ads"])
def test_envoy_takes_the_bootstraps(root: Path, tmp_path: Path, name: str, mode: Any) -> None:
    """The examples' bootstraps, static and over ADS, are ones that the real Envoy accepts."""
    text = example(root / name).replace("/run/secrets/decision_token", str(_token(tmp_path)))
    assert envoy_validates(to_yaml(render_bootstrap(loads(text), mode)), tmp_path) == ""


@pytest.mark.envoy
def test_envoy_takes_the_charts_bootstraps(chart: tuple[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    """So are those of the chart's configurations."""
    mode, documents = chart
    (secret,) = [d for d in documents if d["kind"] == "Secret"]
    text = secret["stringData"].get("steersman.yaml") or secret["stringData"]["envoy.yaml"]
    file = tmp_path / "steersman.yaml"
    text = text.replace("/etc/steersman-decision/token", str(_token(tmp_path)))
    file.write_text(text.replace("unix:/elsewhere/service-", "10.0.0.1:5005"), encoding="utf-8")
    config = load(file)
    assert envoy_validates(to_yaml(render_bootstrap(config, "ads")), tmp_path) == "", mode


@pytest.mark.parametrize("name", ["envoy", "envoy-gateway", "istio"])
def test_an_example_cannot_be_served_before_it_has_a_key(root: Path, name: str) -> None:
    """Nothing listens for a key that is printed in this repository."""
    with pytest.raises(ConfigError, match=r"keys\[0\].sha256: still holds the example's placeholder"):
        load(root / "deploy" / name / "steersman.yaml")


def test_units_start_what_there_is(root: Path) -> None:
    """The unit files run our commands on the configuration beside them, not as root, and outlive a drain."""
    drain_s = loads(example(root / "deploy/envoy/steersman.yaml")).service.drain_s
    for name in ("steersman.service", "steersman-envoy.service"):
        text = (root / "deploy/envoy" / name).read_text(encoding="utf-8")
        assert "User=steersman" in text
        assert "NoNewPrivileges=yes" in text
        (stop_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
        assert int(stop_s) > drain_s
    hook = re.search(r"^ExecStop=.*drain\.py 127\.0\.0\.1:9901 (\d+)$", text, re.MULTILINE)
    assert hook is not None
    assert int(hook[1]) < int(stop_s)

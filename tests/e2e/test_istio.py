"""Istio: what its own istiod makes of our manifests, run by the real Envoy."""

from __future__ import annotations

import json
import os
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import istio_gateway
import pytest
import yaml
from deploy_harness import script
from echo import Echo
from gateway import (
    ASK_S,
    HEALTH_TIMEOUT,
    KEYS,
    Gateway,
    free_ports,
    in_two_regions,
    tenants,
    wait_for,
)
from replicas import Replicas, specs

from extproc.config.load import load

HOST = "llm.example.com"
#: By conftest.py: later tests break what earlier ones use.
IN_ORDER = True


def golden() -> dict[str, Any]:
    """What istiod made, as kept."""
    text = istio_gateway.GOLDEN.read_text(encoding="utf-8")
    made: dict[str, Any] = yaml.load(text, Loader=yaml.CSafeLoader)
    return made


def test_its_translation_is_fresh(tmp_path: Path) -> None:
    """The file that is kept is what the real istiod makes; STEERSMAN_UPDATE_GOLDEN=1 writes it."""
    dump = os.environ.get("ISTIOD_DUMP")
    if dump is None:
        pytest.skip("no istiod: tests/e2e/istio_gateway.py says how to build what asks it (ISTIOD_DUMP)")
    made = istio_gateway.translated(dump, tmp_path)
    if os.environ.get("STEERSMAN_UPDATE_GOLDEN"):
        text = yaml.dump(made, Dumper=yaml.CSafeDumper, sort_keys=True)
        istio_gateway.GOLDEN.write_text(text, encoding="utf-8")
    assert made == golden()


def test_each_kind_of_patch_has_its_place() -> None:
    """Filters stand right before the router, behind all of Istio's; routes before its own, the last."""
    text = istio_gateway.MANIFESTS.read_text(encoding="utf-8")
    kinds = istio_gateway.patches(list(yaml.load_all(text, Loader=yaml.CSafeLoader)))
    made = golden()
    manager = made["listener"]["filter_chains"][0]["filters"][0]["typed_config"]
    (host,) = made["routes"]["virtual_hosts"]
    mark = istio_gateway.PATCHES
    assert manager["http_filters"][-2] == {mark: "HTTP_FILTER"}
    assert manager["http_filters"][-1]["name"] == "envoy.filters.http.router"
    assert host["routes"][0] == {mark: "HTTP_ROUTE"}
    assert [each["name"] for each in host["routes"][1:]] == ["undecided"]
    assert made["clusters"][-1] == {mark: "CLUSTER"}
    assert [each[mark] for each in (manager, host, made["listener"])] == [
        *("NETWORK_FILTER", "VIRTUAL_HOST", "LISTENER")
    ]
    assert set(kinds) == {
        *("CLUSTER", "LISTENER", "NETWORK_FILTER", "HTTP_FILTER", "VIRTUAL_HOST", "HTTP_ROUTE")
    }


class IstioGateway(Gateway):
    """The real Envoy as istiod configured it, with the patches of this test's pools."""

    def bootstrap(self) -> str:
        """Of three services that it knows two have no pod."""
        services = [("127.0.0.1", port) for port in (int(self.service_address[10:]), *free_ports(2))]
        documents = script("istio/render.py").manifests(load(self.config_file), services=services, host=HOST)
        made = istio_gateway.bootstrap(golden(), documents, port=self.port, admin=self.admin_port)
        for cluster in made["static_resources"]["clusters"]:
            for check in cluster.get("health_checks", []):
                check["timeout"] = HEALTH_TIMEOUT
        return json.dumps(made)

    @property
    def counts(self) -> dict[str, int]:
        """The service's counters."""
        counts: dict[str, int] = self.status()["counts"]
        return counts

    def retried(self) -> int:
        """How many requests of the pool a retry has saved, by Envoy's count."""
        name = "cluster.pool.llama/standard.upstream_rq_retry_success"
        url = f"http://127.0.0.1:{self.admin_port}/stats?filter=upstream_rq_retry_success"
        with urllib.request.urlopen(url, timeout=ASK_S) as answer:
            (line,) = (each for each in answer.read().decode().splitlines() if each.startswith(name + ":"))
        return int(line.rpartition(" ")[2])

    def ready(self) -> bool:
        """By the name that its virtual host has."""
        return self.call("/health", method="GET")[0] == 200

    def call(self, path: str, body: Any = None, **about: Any) -> tuple[int, dict[str, str], Any]:
        """A request to that name."""
        return super().call(
            path, body, **{**about, "headers": {"host": HOST, **(about.get("headers") or {})}}
        )


def istio(addresses: list[Any], **about: Any) -> IstioGateway:
    """A gateway before one pool, named as in the manifests; acme's requests stay in the EU."""
    pools = {"llama": {"models": ["tiny-chat"], "addresses": addresses, **about.pop("pool", {})}}
    return IstioGateway(
        pools, **{"tenants": tenants(acme={"regions": ["eu"]}), "classes": [{"name": "standard"}], **about}
    )


@pytest.fixture(scope="module")
def replicas() -> Iterator[Replicas]:
    with Replicas(specs(3, time_scale=2.0)) as replicas:
        yield replicas


@pytest.fixture(scope="module")
def gateway(replicas: Replicas) -> Iterator[IstioGateway]:
    """One replica in the EU and two in the US."""
    with istio(in_two_regions(replicas.addresses)) as gateway:
        yield gateway


def chat(**more: Any) -> dict[str, Any]:
    """A chat of five tokens, unless told."""
    said = [{"role": "user", "content": "[[sim:out=5]] Ahoy"}]
    return {"model": "tiny-chat", "messages": said, "max_tokens": 50, **more}


@pytest.mark.envoy
def test_requests_go_through_it(gateway: IstioGateway, replicas: Replicas) -> None:
    """A chat, and a stream, go where they are decided to, whatever a client says; each is charged."""
    said = {
        "x-gateway-destination-endpoint": replicas.addresses[2],
        "x-steersman-cluster": "BlackHoleCluster",
        "x-steersman-tenant": "globex",
    }
    status, headers, answer = gateway.call("/v1/chat/completions", chat(), headers=said)
    assert status == 200
    assert headers["x-sim-port"] == replicas.addresses[0].rpartition(":")[2]
    assert answer["usage"]["completion_tokens"] == 5
    status, headers, events = gateway.call("/v1/chat/completions", chat(stream=True), headers=said)
    assert status == 200
    assert events.rstrip().endswith(b"data: [DONE]")
    assert headers["x-request-id"]
    wait_for("the ends", gateway.quiet)
    assert gateway.tenant("acme")["output_tokens"] == 10
    assert gateway.counts["settled.ok"] == 2


@pytest.mark.envoy
def test_nobody_else_is_let_in(gateway: IstioGateway) -> None:
    """Without a key 401, also before a large body; a host that is not this gateway's is Istio's to refuse."""
    assert gateway.call("/v1/chat/completions", chat(), key="sk-wrong")[0] == 401
    long = chat(messages=[{"role": "user", "content": "word " * 80_000}])
    assert gateway.call("/v1/chat/completions", long, key=None)[0] == 401
    assert gateway.call("/v1/chat/completions", chat(), headers={"host": "other.example.com"})[0] == 404
    assert gateway.call("/v1/nothing", {})[0] == 404


@pytest.mark.envoy
def test_a_client_that_leaves_is_charged(gateway: IstioGateway, replicas: Replicas) -> None:
    """What was streamed until then, and its place is free again."""
    before = gateway.tenant("globex")["output_tokens"]
    body = json.dumps(
        chat(messages=[{"role": "user", "content": "[[sim:out=400]]"}], max_tokens=400, stream=True)
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {HOST}\r\nauthorization: Bearer {KEYS['globex']}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as client:
        client.sendall(head.encode() + body)
        came = b""
        while came.count(b"data:") < 20:
            came += client.recv(65_536)
    wait_for("its end", gateway.quiet)
    charged = gateway.tenant("globex")["output_tokens"] - before
    assert 10 <= charged < 400
    assert [replicas.state(place)["running"] for place in range(3)] == [0, 0, 0]


@pytest.mark.envoy
def test_its_retries_leave_no_region(gateway: IstioGateway, replicas: Replicas) -> None:
    """The only replica of the EU refuses: acme gets that, globex another replica."""
    replicas.fault(0, refuse_share=1.0, status=503)
    served = [replicas.state(place)["struck"] for place in (1, 2)]
    for _ in range(4):
        assert gateway.call("/v1/chat/completions", chat())[0] == 503
        assert gateway.call("/v1/chat/completions", chat(), key=KEYS["globex"])[0] == 200
    assert [replicas.state(place)["struck"] for place in (1, 2)] == served
    replicas.fault(0, clear=True)


@pytest.mark.envoy
def test_without_the_service_nothing_goes_on(gateway: IstioGateway) -> None:
    """Killed it is 503 for all, and back it decides again."""
    gateway.service.kill()
    status, _, answer = gateway.call("/v1/chat/completions", chat(), key=KEYS["globex"])
    assert (status, list(answer)) == (503, ["error"])
    gateway.start_service()
    wait_for("decisions", lambda: gateway.call("/v1/chat/completions", chat(), key=KEYS["globex"])[0] == 200)


@pytest.mark.envoy
def test_a_long_prompt_is_tried_elsewhere() -> None:
    """400 KB are taken, and kept for a retry; the replica named first is dead."""
    dead = f"127.0.0.1:{free_ports(1)[0]}"
    with Echo(1) as echo:
        listed = [{"address": address, "region": "eu"} for address in (dead, *echo.addresses)]
        with istio(listed, pool={"engine": "vllm"}, probes={"enabled": False}) as gateway:
            for number in range(20):
                body = {"model": "tiny-chat", "prompt": f"{number} " + "word" * 100_000, "max_tokens": 3}
                assert gateway.call("/v1/completions", body)[0] == 200
                assert len(echo.last()[2]) > 400_000
                wait_for("its end", gateway.quiet)
                if gateway.retried():
                    break
            assert gateway.retried(), "the dead one was named first"

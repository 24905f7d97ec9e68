"""Istio with an InferencePool: its routes and clusters as istiod makes them, Steersman as their picker."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import istio_pool
import pytest
import yaml
from echo import Echo
from gateway import KEYS, free_ports, in_two_regions, tenants, wait_for
from picker_gateway import PickerGateway
from replicas import Replicas, specs

#: By conftest.py: the last test leaves a replica dead.
IN_ORDER = True
BODY = {"inputs": "[[sim:out=5]]"}


def golden() -> dict[str, Any]:
    """What istiod made, as kept."""
    made: dict[str, Any] = yaml.load(istio_pool.GOLDEN.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    return made


def test_its_translation_is_fresh(tmp_path: Path) -> None:
    """The file that is kept is what the real istiod makes; STEERSMAN_UPDATE_GOLDEN=1 writes it."""
    dump = os.environ.get("ISTIOD_DUMP")
    if dump is None:
        pytest.skip("no istiod: tests/e2e/istio_gateway.py says how to build what asks it (ISTIOD_DUMP)")
    made = istio_pool.translated(dump, tmp_path)
    if os.environ.get("STEERSMAN_UPDATE_GOLDEN"):
        istio_pool.GOLDEN.write_text(
            yaml.dump(made, Dumper=yaml.CSafeDumper, sort_keys=True), encoding="utf-8"
        )
    assert made == golden()


def test_a_cors_filter_takes_the_picker_away(tmp_path: Path) -> None:
    """Of this istiod, as the documentation warns: the day that this fails the warning may go."""
    dump = os.environ.get("ISTIOD_DUMP")
    if dump is None:
        pytest.skip("no istiod: tests/e2e/istio_gateway.py says how to build what asks it (ISTIOD_DUMP)")
    cors = '    corsPolicy: {allowOrigins: [{exact: "https://app.example.com"}]}\n'
    made = istio_pool.translated(dump, tmp_path, about_route=cors)
    (route,) = made["routes"]["virtual_hosts"][0]["routes"]
    assert list(route["typed_per_filter_config"]) == ["envoy.filters.http.cors"]


def test_what_the_documentation_says_of_it() -> None:
    """It asks in the clear what has no sidecar, tries twice more, and has round robin behind the list."""
    made = golden()
    (route,) = made["routes"]["virtual_hosts"][0]["routes"]
    assert route["route"]["retry_policy"]["num_retries"] == 2
    asks = route["typed_per_filter_config"]["envoy.filters.http.ext_proc"]["overrides"]
    assert asks["failure_mode_allow"] is False
    assert asks["processing_mode"]["request_body_mode"] == "FULL_DUPLEX_STREAMED"
    clusters = {each["name"]: each for each in made["clusters"]}
    matches = clusters[istio_pool.PICKER_CLUSTER]["transport_socket_matches"]
    # What is labelled as one with a sidecar is spoken to by mTLS; the rest, by the empty match, in the clear.
    assert [each["match"] for each in matches] == [{"tlsMode": "istio"}, {}]
    assert matches[1]["transport_socket"]["name"] == "envoy.transport_sockets.raw_buffer"
    (policy,) = clusters[istio_pool.REPLICAS_CLUSTER]["load_balancing_policy"]["policies"]
    config = policy["typed_extension_config"]["typed_config"]
    assert "round_robin" in json.dumps(config["fallback_policy"])
    assert [list(each) for each in config["override_host_sources"]] == [["metadata"]]


class IstioPool(PickerGateway):
    """The real Envoy as istiod configured it for a pool."""

    def bootstrap(self) -> str:
        """With this test's ports."""
        made = istio_pool.bootstrap(
            golden(),
            port=self.port,
            admin=self.admin_port,
            picker=self.service_address,
            replicas=self.upstreams,
        )
        return json.dumps(made)

    def ready(self) -> bool:
        """By the name that its virtual host has."""
        return self.call("/health", method="GET")[0] == 200

    def call(self, path: str, body: Any = None, **about: Any) -> tuple[int, dict[str, str], Any]:
        """A request to that name."""
        headers = {"host": istio_pool.HOST, **(about.pop("headers", None) or {})}
        return super().call(path, body, headers=headers, **about)


@pytest.fixture(scope="module")
def replicas() -> Iterator[Replicas]:
    with Replicas(specs(3, time_scale=4.0)) as replicas:
        yield replicas


@pytest.fixture(scope="module")
def gateway(replicas: Replicas) -> Iterator[PickerGateway]:
    """One replica in the EU and two in the US; acme's requests stay in the EU, globex's do not."""
    gateway = IstioPool(
        {"chat": {"models": ["tiny-chat"], "addresses": in_two_regions(replicas.addresses)}},
        picker={"tries": 3},
        tenants=tenants(acme={"regions": ["eu"]}),
        classes=[{"name": "standard", "hold_ms": 0}],
        probes={"enabled": False},
    )
    with gateway:
        yield gateway


@pytest.mark.envoy
def test_requests_go_through_it(gateway: PickerGateway, replicas: Replicas) -> None:
    """Whole and streamed, where the picker says, whatever a client says; without a key 401."""
    for who in KEYS:
        said = {"x-gateway-destination-endpoint": replicas.addresses[2]}
        for path in ("/generate", "/generate_stream"):
            status, headers, _ = gateway.call(path, BODY, key=KEYS[who], headers=said)
            assert status == 200
            if who == "acme":
                assert headers["x-sim-port"] == replicas.addresses[0].rpartition(":")[2]
    wait_for("the ends", gateway.quiet)
    assert [gateway.tenant(who)["output_tokens"] for who in KEYS] == [10, 10]
    assert gateway.call("/generate", BODY, key="sk-wrong")[0] == 401


@pytest.mark.envoy
def test_its_retries_leave_no_region(gateway: PickerGateway, replicas: Replicas) -> None:
    """The only replica of the EU is dead. Behind the list is round robin, which no retry comes to."""
    served = [replicas.state(place)["served"] for place in (1, 2)]
    replicas.kill(0)
    for _ in range(5):
        assert gateway.call("/generate", BODY, key=KEYS["acme"])[0] == 503
    assert [replicas.state(place)["served"] for place in (1, 2)] == served
    for _ in range(5):
        assert gateway.call("/generate", BODY, key=KEYS["globex"])[0] == 200


@pytest.mark.envoy
def test_a_long_prompt_is_tried_elsewhere() -> None:
    """Envoy keeps 400 KB for a retry; the replica named first is dead."""
    dead = f"127.0.0.1:{free_ports(1)[0]}"
    with Echo(1) as echo:
        pools = {"chat": {"models": ["m"], "engine": "vllm", "addresses": [dead, *echo.addresses]}}
        with IstioPool(pools, picker={"tries": 3}, probes={"enabled": False}) as gateway:
            for number in range(20):
                body = {"model": "m", "prompt": f"{number} " + "word" * 100_000, "max_tokens": 3}
                assert gateway.call("/v1/completions", body)[0] == 200
                assert len(echo.last()[2]) > 400_000
                wait_for("its end", gateway.quiet)
                if gateway.counts.get("moved"):
                    break
            assert gateway.counts["moved"] >= 1, "the dead one was named first"

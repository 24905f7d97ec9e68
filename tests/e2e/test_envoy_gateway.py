"""Envoy Gateway: what its own translator makes of our manifests, run by the real Envoy."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import envoy_gateway
import pytest
import yaml
from deploy_harness import example
from echo import Echo
from gateway import KEYS, free_ports, in_two_regions, tenants, wait_for
from picker_gateway import PickerGateway
from replicas import Replicas, specs

from extproc.config.load import loads


def golden() -> dict[str, Any]:
    """What it made, as kept."""
    text = envoy_gateway.GOLDEN.read_text(encoding="utf-8")
    made: dict[str, Any] = yaml.load(text, Loader=yaml.CSafeLoader)
    return made


def test_its_translation_is_fresh(tmp_path: Path) -> None:
    """The file that is kept is what the real Envoy Gateway makes; STEERSMAN_UPDATE_GOLDEN=1 writes it."""
    egctl = os.environ.get("EGCTL") or shutil.which("egctl")
    if egctl is None:
        pytest.skip(
            "no egctl: go install github.com/envoyproxy/gateway/cmd/egctl@v1.9.1, or give its path in EGCTL"
        )
    made = envoy_gateway.translated(egctl, tmp_path)
    if os.environ.get("STEERSMAN_UPDATE_GOLDEN"):
        text = yaml.dump(made, Dumper=yaml.CSafeDumper, sort_keys=True)
        envoy_gateway.GOLDEN.write_text(text, encoding="utf-8")
    assert made == golden()


def test_it_accepts_each_policy() -> None:
    """Every policy says Accepted: nothing in the manifests is unknown to it or in conflict."""
    policies = golden()["policies"]
    assert len(policies) == 3
    for kind, said in policies.items():
        assert [(each["type"], each["status"]) for each in said] == [("Accepted", "True")], kind


def test_no_more_tries_than_are_listed() -> None:
    """It retries as often as the service that is meant for it lists endpoints."""
    (route,) = golden()["routes"]["virtualHosts"][0]["routes"]
    config = loads(example(Path(__file__).parents[2] / "deploy/envoy-gateway/steersman.yaml"))
    assert config.picker.tries == 1 + route["route"]["retryPolicy"]["numRetries"]
    assert config.transport == "grpcio"


class EnvoyGateways(PickerGateway):
    """The real Envoy as Envoy Gateway configured it, before pools of addresses."""

    def bootstrap(self) -> str:
        """With this test's ports, and else as it was made."""
        made = envoy_gateway.bootstrap(
            golden(),
            port=self.port,
            admin=self.admin_port,
            service=self.service_address,
            replicas=self.upstreams,
        )
        return json.dumps(made)


@pytest.fixture(scope="module")
def replicas() -> Iterator[Replicas]:
    with Replicas(specs(3, time_scale=4.0)) as replicas:
        yield replicas


@pytest.fixture(scope="module")
def gateway(replicas: Replicas) -> Iterator[PickerGateway]:
    """One replica in the EU and two in the US; acme's requests stay in the EU, globex's do not."""
    gateway = EnvoyGateways(
        {"chat": {"models": ["tiny-chat"], "addresses": in_two_regions(replicas.addresses)}},
        picker={"tries": 3},
        tenants=tenants(acme={"regions": ["eu"]}),
        classes=[{"name": "standard", "hold_ms": 0}],
    )
    with gateway:
        yield gateway


#: By conftest.py: the last test leaves a replica that refuses.
IN_ORDER = True
BODY = {"inputs": "[[sim:out=5]]"}


@pytest.mark.envoy
def test_requests_go_through_it(gateway: PickerGateway, replicas: Replicas) -> None:
    """Its health check, whose :authority is its cluster's name, is answered; requests go where the picker
    says, whatever a client says; without a key 401."""
    for who in KEYS:
        said = {"x-gateway-destination-endpoint": replicas.addresses[2]}
        status, headers, _ = gateway.call("/generate", BODY, key=KEYS[who], headers=said)
        assert status == 200
        if who == "acme":
            assert headers["x-sim-port"] == replicas.addresses[0].rpartition(":")[2]
    assert gateway.call("/generate", BODY, key="sk-wrong")[0] == 401


@pytest.mark.envoy
def test_its_retries_leave_no_region(gateway: PickerGateway, replicas: Replicas) -> None:
    """The only replica of the EU refuses. The list has least request behind it, which no retry comes to: acme
    gets the refusal, globex another replica."""
    replicas.fault(0, refuse_share=1.0, status=503)
    for _ in range(5):
        assert gateway.call("/generate", BODY, key=KEYS["acme"])[0] == 503
    assert [replicas.state(place)["struck"] for place in (1, 2)] == [0, 0]
    assert replicas.state(0)["struck"] == 5 * 3
    for _ in range(5):
        assert gateway.call("/generate", BODY, key=KEYS["globex"])[0] == 200


@pytest.mark.envoy
def test_a_long_prompt_is_tried_elsewhere() -> None:
    """Envoy keeps 400 KB for a retry, which is far above its default; the replica named first is dead."""
    dead = f"127.0.0.1:{free_ports(1)[0]}"
    with Echo(1) as echo:
        pools = {"chat": {"models": ["m"], "engine": "vllm", "addresses": [dead, *echo.addresses]}}
        picker, unseen = {"tries": 3}, {"enabled": False}
        with EnvoyGateways(pools, picker=picker, probes=unseen) as gateway:
            for number in range(20):
                body = {"model": "m", "prompt": f"{number} " + "word" * 100_000, "max_tokens": 3}
                assert gateway.call("/v1/completions", body)[0] == 200
                assert len(echo.last()[2]) > 400_000
                wait_for("its end", gateway.quiet)
                if gateway.counts.get("moved"):
                    break
            assert gateway.counts["moved"] >= 1, "the dead one was named first"

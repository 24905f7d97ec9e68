"""An experiment through the real Envoy: started by the command, traffic in both arms, status, stop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from gateway import Gateway, wait_for
from processes import steersman
from replicas import Replicas, specs

from extproc.history.versions import ConfigHistory

pytestmark = pytest.mark.envoy

TAKEN_S_MAX = 60.0
REQUESTS = 48


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    """Three replicas and two services that decide side by side."""
    with (
        Replicas(specs(3)) as replicas,
        Gateway({"chat": {"models": ["tiny-chat"], "addresses": replicas.addresses}}, services=2) as found,
    ):
        yield found


def status(gateway: Gateway, service: int = 0, name: str = "") -> list[dict[str, Any]]:
    arguments = ["status", *([name] if name else []), "--json"]
    found = json.loads(steersman("experiment", *arguments, "--address", gateway.service_addresses[service]))
    experiments: list[dict[str, Any]] = found["experiments"]
    return experiments


def ask(gateway: Gateway, number: int) -> int:
    body = {
        "model": "tiny-chat",
        "messages": [{"role": "user", "content": f"question {number}"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 4,
    }
    return gateway.call("/v1/chat/completions", body)[0]


def test_an_experiment_from_start_to_stop(gateway: Gateway) -> None:
    """Both arms get requests, both services count the same ends; after it the kept arm's way is taken."""
    start = ["start", "ab", "--arm", "control=steer", "--arm", "b=least_request", "--shadow", "random"]
    for file in gateway.config_files:
        steersman("experiment", *start, "--shadow-share", "1", "--why", "e2e", "-f", str(file))
    for service in range(2):
        wait_for("the experiment", lambda i=service: gateway.status(i)["experiments"], timeout_s=TAKEN_S_MAX)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda i: ask(gateway, i), range(REQUESTS))) == {200}

    def counted(service: int) -> bool:
        return sum(arm["requests"] for arm in status(gateway, service)[0]["arms"]) >= REQUESTS

    for service in range(2):
        wait_for("the records", lambda i=service: counted(i), timeout_s=TAKEN_S_MAX)
    [here], [there] = status(gateway, 0), status(gateway, 1)
    figures = ("name", "requests", "ok", "errors", "output_tokens")
    per_arm = [[[arm[figure] for figure in figures] for arm in each["arms"]] for each in (here, there)]
    assert per_arm[0] == per_arm[1]
    assert [arm["requests"] for arm in here["arms"]] != [REQUESTS, 0]
    assert all(arm["requests"] >= 10 and arm["ok"] == arm["requests"] for arm in here["arms"])
    for arm in here["arms"]:
        assert arm["attainment"]["low"] <= arm["attainment"]["mean"] <= arm["attainment"]["high"]
        assert arm["ttft_ms"]["p50"] > 0
        assert arm["output_tokens"] == 4 * arm["requests"]
    asked = here["shadow"]["asked"] + there["shadow"]["asked"]
    failed = here["shadow"]["failed"] + there["shadow"]["failed"]
    assert (asked, failed) == (REQUESTS, 0)
    shown = steersman("experiment", "status", "--address", gateway.service_address)
    assert "control" in shown
    assert "told apart" in shown

    file = gateway.config_files[0]
    steersman("experiment", "stop", "ab", "--keep", "b", "--why", "seen", "-f", str(file))
    wait_for("the stop", lambda: not gateway.status()["experiments"], timeout_s=TAKEN_S_MAX)
    assert gateway.status()["pools"]["chat"]["strategy"] == "least_request"
    assert status(gateway, 0, "ab")[0]["state"] == "stopped"
    assert ask(gateway, -1) == 200
    commands = [entry.command for entry in ConfigHistory(file).read().entries]
    assert commands[-2:] == ["experiment start ab", "experiment stop ab"]

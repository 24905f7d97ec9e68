"""`steersman explain` against a running service: requests that wait, run and ran, and one that never came."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from gateway import Gateway, wait_for
from replicas import Replicas, specs

from extproc.cli import group

pytestmark = pytest.mark.envoy

GENERATE = {"inputs": "[[sim:out=3]]", "parameters": {"max_new_tokens": 9}}


def steersman(gateway: Gateway, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(group, ["explain", "--address", gateway.service_address, *arguments])
    assert result.exit_code == code, result.output
    return result


def test_a_request_that_ran(fleet: tuple[Gateway, Replicas]) -> None:
    """By its reservation's id: what was chosen then, with the scores of then; an unknown id exits 1."""
    gateway, replicas = fleet
    _, headers, _ = gateway.call("/generate", GENERATE)
    newest = gateway.status()["decisions"][0]
    found = json.loads(steersman(gateway, newest["id"], "--json").output)
    assert found["endpoints"][0]["verdict"] == "chosen #1"
    assert found["endpoints"][0]["address"] == headers["x-steersman-endpoint"] == newest["endpoint"]
    assert {each["address"] for each in found["endpoints"]} == set(replicas.addresses[:2])
    assert (found["scores_of"], found["terms_of"], found["reason"]) == ("then", "then", newest["reason"])
    assert found["endpoints"][0]["forecast"]["ttft_ms"] > 0
    assert {each["address"] for each in found["now"]["endpoints"]} == set(replicas.addresses[:2])
    assert "score (then)" in steersman(gateway, newest["id"]).output
    assert "no request 'nobody-1'" in steersman(gateway, "nobody-1", code=1).output


def test_a_given_request(fleet: tuple[Gateway, Replicas], tmp_path: Path) -> None:
    """As if it came now: the service decides on nothing and nothing is sent."""
    gateway, replicas = fleet
    wait_for("quiet", gateway.quiet)
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("hello")
    decided = gateway.status()["counts"].get("routed", 0)
    arguments = ("--tenant", "acme", "--model", "tiny-code", "--prompt-file", str(prompt))
    found = json.loads(steersman(gateway, *arguments, "--json").output)
    assert (found["pool"], found["tenant"], found["outcome"][:12]) == ("code", "acme", "would go to ")
    assert {each["address"] for each in found["endpoints"]} == set(replicas.addresses[2:])
    assert all(each["terms"]["step_ms"] > 0 for each in found["endpoints"])
    assert gateway.status()["counts"].get("routed", 0) == decided
    body = tmp_path / "body.json"
    body.write_text(json.dumps(GENERATE))
    drained = replicas.addresses[0]
    gateway.order("Drain", address=drained, draining=True)
    shown = steersman(gateway, "--tenant", "acme", "--body", str(body), "--path", "/generate").output
    assert "draining" in shown
    gateway.order("Drain", address=drained, draining=False)
    assert "no tenant 'x'" in steersman(gateway, "--tenant", "x", "--body", str(body), code=1).output
    assert (
        "404 model_not_found"
        in steersman(gateway, "--tenant", "acme", "--model", "no", "--prompt-file", str(prompt)).output
    )


def test_a_request_that_waits() -> None:
    """Its place, its deadlines, and what keeps the replica from taking it."""
    with Replicas(specs(1, max_concurrent_requests=1)) as replicas:
        endpoint = {"address": replicas.addresses[0], "max_concurrent": 1}
        pools = {"chat": {"models": ["tiny-chat"], "addresses": [endpoint]}}
        with Gateway(pools, classes=[{"name": "standard", "hold_ms": 20_000}]) as gateway:
            replicas.fault(0, hang=True)
            threads = [threading.Thread(target=gateway.call, args=("/generate", GENERATE)) for _ in range(2)]
            threads[0].start()
            wait_for("the first in flight", lambda: gateway.status()["in_flight"] == 1)
            threads[1].start()
            wait_for("the second held", lambda: gateway.status()["held"] == 1)
            instance = gateway.status()["instance"]
            found = json.loads(steersman(gateway, f"{instance}-2", "--json").output)
            assert found["outcome"] == "waits in the fair queue"
            assert (found["held"]["waiting"], found["held"]["before"]) == (1, 0)
            assert 0 < found["held"]["shed_in_ms"] <= 20_000
            assert found["endpoints"][0]["why"] == ["permits full: 1 of 1"]
            assert "429 in" in steersman(gateway, f"{instance}-2").output
            replicas.fault(0, clear=True)
            for thread in threads:
                thread.join(20)
            found = json.loads(steersman(gateway, f"{instance}-2", "--json").output)
            assert found["outcome"].startswith(f"went to {replicas.addresses[0]}")

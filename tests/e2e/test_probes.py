"""Replicas of which no agent speaks, through the real Envoy: the service looks at them itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from gateway import Gateway, free_ports, wait_for
from replicas import Replicas, specs

pytestmark = pytest.mark.envoy

CHAT = {"messages": [{"role": "user", "content": "[[sim:out=3]] hello"}], "max_tokens": 9}


@pytest.fixture
def stand() -> Iterator[tuple[Gateway, Replicas, list[str]]]:
    """A family of two models; the small one has two replicas in the list, of which one is not there."""
    with Replicas(specs(1, model_id="large")) as large, Replicas(specs(1, model_id="small")) as small:
        addresses = [f"127.0.0.1:{free_ports(1)[0]}", *small.addresses]
        pools: dict[str, dict[str, Any]] = {
            "small": {"models": ["small"], "addresses": addresses, "strategy": "round_robin"},
            "large": {"models": ["large"], "addresses": large.addresses},
        }
        with Gateway(pools, families=[{"name": "affinity_group", "models": ["small", "large"]}]) as gateway:
            yield gateway, small, addresses


def test_the_dead_are_not_ready_and_families_shift_away(
    stand: tuple[Gateway, Replicas, list[str]],
) -> None:
    """One of two in the list is not there: it is down, and no request tries it. Then the other dies."""
    gateway, small, (dead, alive) = stand
    wait_for("the dead one to be seen", lambda: gateway.endpoint(dead)["ready"] is False)
    assert gateway.endpoint(dead)["causes"]["reach"]["detail"] == "refuses connections"
    wait_for(
        "the other to serve",
        lambda: gateway.call("/v1/chat/completions", {**CHAT, "model": "affinity_group"})[0] == 200,
    )
    for _ in range(10):
        status, headers, _ = gateway.call("/v1/chat/completions", {**CHAT, "model": "affinity_group"})
        assert (status, headers["x-steersman-endpoint"], headers["x-steersman-attempts"]) == (200, alive, "1")
    small.kill(0)
    wait_for("its death to be seen", lambda: gateway.endpoint(alive)["ready"] is False)
    status, headers, _ = gateway.call("/v1/chat/completions", {**CHAT, "model": "affinity_group"})
    assert status == 200
    assert headers["x-steersman-pool"] == "large"
    assert gateway.call("/v1/chat/completions", {**CHAT, "model": "small"})[0] == 503
    small.revive(0)
    wait_for("its return", lambda: gateway.endpoint(alive)["ready"])
    status, headers, _ = gateway.call("/v1/chat/completions", {**CHAT, "model": "small"})
    assert (status, headers["x-steersman-endpoint"]) == (200, alive)

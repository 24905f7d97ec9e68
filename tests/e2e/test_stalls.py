"""A service that stood still takes nobody for dead: SIGSTOP and SIGCONT, beside real agents and clients."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from agents_harness import Load, Processes, telemetry
from gateway import Gateway, free_ports, wait_for

pytestmark = pytest.mark.envoy

#: Longer than telemetry may be old (3 s), and than an agent waits for an acknowledgement.
STALL_S = 4.0
#: Health that fell stays down for longer.
WATCHED_S = 1.0


@pytest.fixture
def running() -> Iterator[tuple[Gateway, Processes]]:
    """Two replicas of which an agent speaks, two at which the service looks itself."""
    ports = free_ports(4)
    addresses = [f"127.0.0.1:{port}" for port in ports]
    pools = {
        "told": {"models": ["told"], "addresses": addresses[:2]},
        "seen": {"models": ["seen"], "addresses": addresses[2:]},
    }
    gateway = Gateway(
        pools, mode="ads", telemetry=telemetry(["node"]), probes={"interval_s": 0.25, "timeout_s": 5.0}
    )
    with Processes() as processes:
        processes.replicas("sim", ports)
        agent = processes.agent(gateway, "node", "told", addresses[:2], probe_ms=0)
        with gateway:
            wait_for("the agent", lambda: agent.reported(gateway))
            yield gateway, processes


def test_a_service_that_stood_still_doubts_nobody(running: tuple[Gateway, Processes]) -> None:
    """All keep their health, in one of a few stalls: a busy machine may silence a replica as well."""
    gateway, _ = running

    def untouched() -> bool:
        wait_for("full health", lambda: all(each["health"] == 1.0 for each in gateway.status()["endpoints"]))
        gateway.service.signal(signal.SIGSTOP)
        time.sleep(STALL_S)  # the stall itself
        gateway.service.signal(signal.SIGCONT)
        until_s, healths = time.monotonic() + WATCHED_S, []
        while time.monotonic() < until_s:
            healths += [each["health"] for each in gateway.status()["endpoints"]]
        return len(healths) > 0 and min(healths) == 1.0

    with Load(gateway, "told", rate=5) as load:
        wait_for("a stall that takes no health away", untouched, timeout_s=150)
        load.more(5)
    assert not load.failed

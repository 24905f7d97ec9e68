"""The service behind Envoy's endpoints: killed, restarted, and saying what Envoy will not have."""

from __future__ import annotations

import json
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from agents_harness import Load, Processes, telemetry
from gateway import ASK_S, Gateway, free_ports, wait_for

pytestmark = pytest.mark.envoy


class Fleet:
    """Two replicas that are configured, one in a watched file, one that an agent registers."""

    def __init__(self, folder: Path) -> None:
        self.ports = free_ports(4)
        self.pool = [f"127.0.0.1:{port}" for port in self.ports]
        file = folder / "endpoints.yaml"
        file.write_text(yaml.safe_dump({"endpoints": [{"address": self.pool[2]}]}))
        # Each has its turn, however little is asked.
        pool = {"models": ["m"], "addresses": self.pool[:2], "strategy": "round_robin"}
        pool["discovery"] = {"file": str(file), "agents": True}
        self.gateway = Gateway(
            {"chat": pool},
            mode="ads",
            service_script=Path(__file__).parent / "poison_service.py",
            telemetry=telemetry(["node"]),
        )
        self.processes = Processes()

    def hosts(self) -> set[str]:
        """The pool's endpoints as Envoy's admin shows them."""
        url = f"http://127.0.0.1:{self.gateway.admin_port}/clusters?format=json"
        with urllib.request.urlopen(url, timeout=ASK_S) as answer:
            clusters = json.load(answer)["cluster_statuses"]
        found = next(each for each in clusters if each["name"] == "pool.chat/standard").get(
            "host_statuses", []
        )
        wheres = [host["address"]["socket_address"] for host in found]
        return {f"{where['address']}:{where['port_value']}" for where in wheres}

    def counts(self) -> dict[str, int]:
        """What was told to Envoy and what it said."""
        found: dict[str, int] = self.gateway.status()["roster"]["ads"]
        return found


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Envoy knows all four."""
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    with fleet.processes:
        fleet.processes.replicas("sim", fleet.ports)
        agent = fleet.processes.agent(fleet.gateway, "node", "chat", fleet.pool)
        with fleet.gateway:
            wait_for("the agent", lambda: agent.reported(fleet.gateway))
            wait_for("Envoy's members", lambda: fleet.hosts() == set(fleet.pool))
            yield fleet


def test_what_envoy_refuses_is_logged_counted_and_not_kept(fleet: Fleet) -> None:
    """One NACK and one line; Envoy goes on with the last good, follows changes, and takes a good one."""
    gateway, before = fleet.gateway, fleet.counts()
    with Load(gateway, "m") as load:
        gateway.service.signal(signal.SIGUSR1)
        wait_for("the refusal", lambda: fleet.counts()["nacks"] == before["nacks"] + 1)
        refused_s = load.more(20)
        assert fleet.counts()["nacks"] == before["nacks"] + 1
        assert set(load.shares(refused_s)) == set(fleet.pool)
        gateway.order("Drain", address=fleet.pool[3], draining=True)
        wait_for("Envoy to follow", lambda: fleet.hosts() == set(fleet.pool[:3]))
        gateway.order("Drain", address=fleet.pool[3], draining=False)
        wait_for("Envoy to follow", lambda: fleet.hosts() == set(fleet.pool))
    assert not load.failed
    assert fleet.counts()["nacks.cds"] == 1
    lines = [line for line in gateway.service.log.read_text().splitlines() if " refused cds version" in line]
    assert len(lines) == 1
    assert "ConnectTimeout" in lines[0]


def test_a_killed_service_comes_back_and_envoy_loses_no_member(fleet: Fleet) -> None:
    """Streams go on, requests get 503 while it is away and no other failure; all members are there again."""
    gateway = fleet.gateway
    fewest = [4]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            fewest.append(len(fleet.hosts()))

    watching = threading.Thread(target=watch)
    with Load(gateway, "m", tokens=15) as load:
        load.more(20)
        watching.start()
        killed_s = time.monotonic()
        running = [each for each in load.seen if not each.ended_s and each.endpoint]
        gateway.service.kill()
        gateway.start_service()
        wait_for("the registered one", lambda: gateway.endpoint(fleet.pool[3]).get("ready"))
        wait_for("Envoy to hear", lambda: fleet.counts()["acks"] >= 2)
        back_s = time.monotonic()
        wait_for("Envoy to ask again", lambda: any(e.ok for e in load.between(back_s)))
        served_s = load.more(40)
        wait_for("all to have work", lambda: set(load.shares(served_s)) == set(fleet.pool))
        over.set()
        watching.join()
    assert min(fewest) == 4
    assert running
    assert all(each.ok for each in running)
    assert {each.status for each in load.failed} <= {503}
    # Who failed was under way when it went, without a decision, or came before it was back.
    assert all(killed_s <= each.ended_s and each.began_s < served_s for each in load.failed)
    assert fleet.counts()["nacks"] == 0
    wait_for("quiet", gateway.quiet)

"""Members come and go under load, from every source, and no request fails; zones and regions."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from agents_harness import Load, Processes, telemetry
from gateway import KEYS, Gateway, free_ports, wait_for

from extproc.core.tenant import hash_key

pytestmark = pytest.mark.envoy

#: Of the answers after it is known a member has its share in the second half.
SHARED = 80
#: What a request that was decided before a drain may still take to reach its replica.
UNDER_WAY_S = 0.1


def addresses(count: int) -> list[str]:
    return [f"127.0.0.1:{port}" for port in free_ports(count)]


def ports(of: list[str]) -> list[int]:
    return [int(address.rpartition(":")[2]) for address in of]


class Fleet:
    """A gateway with a pool for each test, and the replicas' addresses; the last one of a pool joins."""

    def __init__(self, folder: Path) -> None:
        self.pools = {name: addresses(5) for name in ("agent", "file", "reload", "drain")}
        self.zones = addresses(4)
        self.file = folder / "endpoints.yaml"
        self.write_file(4)
        pools: dict[str, dict[str, Any]] = {
            name: {"models": [name], "addresses": each[:4], "strategy": "least_work"}
            for name, each in self.pools.items()
        }
        for name in ("agent", "drain"):
            pools[name]["discovery"] = {"agents": True}
        pools["file"] |= {"addresses": [], "discovery": {"file": str(self.file)}}
        places = [("near", "eu"), ("near", "us"), ("far", "eu"), ("far", "us")]
        pools["zones"] = {
            "models": ["zones"],
            "zone_penalty_tokens": 100,
            "strategy": "least_work",
            "addresses": [
                {"address": address, "zone": zone, "region": region}
                for address, (zone, region) in zip(self.zones, places, strict=True)
            ],
        }
        self.gateway = Gateway(pools, mode="ads", telemetry=telemetry(["node-1", "node-2"]))
        self.gateway.config["service"]["zone"] = "near"
        self.gateway.config["tenants"][1]["regions"] = ["us"]
        self.gateway.config["tenants"].append(
            {"name": "martian", "keys": [{"sha256": hash_key("sk-mars")}], "regions": ["mars"]}
        )
        self.gateway.write_config()
        self.processes = Processes()

    def start(self) -> None:
        """Replicas and agents; the gateway need not be there yet."""
        pools, agent = self.pools, self.processes.agent
        self.processes.replicas("sim", [port for each in pools.values() for port in ports(each)])
        self.processes.replicas("zones", ports(self.zones))
        # Slow prompts are not the subject: on a busy machine all are, by turns.
        self.joins = agent(self.gateway, "node-1", "agent", pools["agent"][:4], probe_ms=0)
        self.drains = agent(self.gateway, "node-2", "drain", pools["drain"], probe_ms=0)

    def write_file(self, count: int) -> None:
        """The watched file with the first so many of its pool."""
        listed = [{"address": address} for address in self.pools["file"][:count]]
        beside = self.file.with_suffix(".new")
        beside.write_text(yaml.safe_dump({"endpoints": listed}))
        beside.replace(self.file)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """All replicas of this module run in one process; they are told of one after the other."""
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    with fleet.processes:
        fleet.start()
        with fleet.gateway:
            yield fleet


def _shared(load: Load, address: str) -> None:
    """It comes to have about a fifth of forty (4 to 12); a busy machine may hold it back for a while."""

    def shared() -> bool:
        share = load.shares(load.more(SHARED // 2)).get(address, 0.0)
        return bool(share == pytest.approx(0.2, rel=0.5))

    wait_for(f"the share of {address}", shared, timeout_s=120)


@contextmanager
def joining(fleet: Fleet, pool: str) -> Iterator[None]:
    """What the body sets off lets the pool's fifth replica join; it has a fifth of the work soon after."""
    fifth, gateway = fleet.pools[pool][4], fleet.gateway
    restarts = gateway.status()["uptime_s"]
    # What a busy machine answers as well: the more it is behind, the longer a new replica is held back.
    with Load(gateway, pool, rate=20) as load:
        load.more(20)
        assert fifth not in load.shares(0)
        yield
        wait_for("the fifth to have work", lambda: fifth in load.shares(0), timeout_s=120)
        _shared(load, fifth)
    assert not load.failed
    assert gateway.status()["uptime_s"] > restarts


def test_a_replica_that_an_agent_registers_soon_has_its_share(fleet: Fleet) -> None:
    """It stands in no configuration of the service; its node's agent brings it."""
    gateway, pool, agent = fleet.gateway, fleet.pools["agent"], fleet.joins
    wait_for("the agents", lambda: agent.reported(gateway) and fleet.drains.reported(gateway))
    before = gateway.status()["roster"]["counts"]["registrations"]
    with joining(fleet, "agent"):
        agent.join(pool[4])
    assert gateway.status()["roster"]["counts"]["registrations"] == before + 1


def test_a_replica_that_a_watched_file_adds_soon_has_its_share(fleet: Fleet) -> None:
    """And one that it lists no more has no new work."""
    with joining(fleet, "file"):
        fleet.write_file(5)
    fleet.write_file(4)
    wait_for("the fifth to be gone", lambda: not fleet.gateway.endpoint(fleet.pools["file"][4]))


def test_a_replica_that_a_reload_adds_soon_has_its_share(fleet: Fleet) -> None:
    """SIGHUP; a whole pool may come as well, and disturbs nobody."""
    gateway = fleet.gateway
    with joining(fleet, "reload"):
        pool = next(pool for pool in gateway.config["pools"] if pool["name"] == "reload")
        pool["endpoints"].append({"address": fleet.pools["reload"][4]})
        new = {"name": "new", "models": ["new"], "endpoints": [{"address": fleet.zones[0]}]}
        moved = next(pool for pool in gateway.config["pools"] if pool["name"] == "zones")
        kept = moved["endpoints"].pop(0)
        gateway.config["pools"].append(new)
        gateway.write_config()
        gateway.service.signal(signal.SIGHUP)
    body = {"model": "new", "prompt": "[[sim:out=2]]"}
    wait_for("the new pool", lambda: gateway.call("/v1/completions", body)[0] == 200)
    gateway.config["pools"].pop()
    moved["endpoints"].insert(0, kept)
    gateway.write_config()
    gateway.service.signal(signal.SIGHUP)
    wait_for("the pool to be gone", lambda: gateway.call("/v1/completions", body)[0] == 404)
    assert "failed" not in gateway.service.log.read_text()


def _drained(fleet: Fleet, load: Load, address: str) -> None:
    """From now on nothing new comes to the address; what runs there ends whole."""
    drained_s = time.monotonic()
    load.more(25)
    assert address not in load.shares(drained_s + UNDER_WAY_S)
    wait_for("its streams to end", lambda: load.running[address] == 0)
    assert fleet.gateway.endpoint(address)["draining"]


def _back(fleet: Fleet, load: Load, address: str) -> None:
    """Its share is soon as before."""
    wait_for("ready", lambda: fleet.gateway.endpoint(address)["ready"])
    _shared(load, address)


def test_a_drain_stops_new_work_at_once_and_lets_streams_end(fleet: Fleet) -> None:
    """By the operator's order, then by the agent's list; undrained it works again at once."""
    gateway, pool, agent = fleet.gateway, fleet.pools["drain"], fleet.drains
    wait_for("the agent", lambda: agent.reported(gateway))
    with Load(gateway, "drain", tokens=15) as load:
        wait_for("a stream there", lambda: load.running[pool[1]])
        assert gateway.order("Drain", address=pool[1], draining=True) == {"found": True}
        _drained(fleet, load, pool[1])
        gateway.order("Drain", address=pool[1], draining=False)
        _back(fleet, load, pool[1])
        wait_for("a stream there", lambda: load.running[pool[2]])
        agent.config["drain"] = [pool[2]]
        agent.write()
        wait_for("the agent's word", lambda: gateway.endpoint(pool[2])["draining"])
        _drained(fleet, load, pool[2])
        agent.config["drain"] = []
        agent.write()
        _back(fleet, load, pool[2])
    assert not load.failed
    assert gateway.order("Drain", address="127.0.0.1:1") == {"found": False}


def test_the_own_zone_is_preferred_until_it_is_loaded(fleet: Fleet) -> None:
    """A few requests stay in the zone; many spill over, and the own zone still has the most."""
    gateway, (near_1, near_2, *far) = fleet.gateway, fleet.zones
    with Load(gateway, "zones", rate=15) as load:
        load.more(15)
    assert not load.failed
    assert set(load.shares(0)) == {near_1, near_2}
    with Load(gateway, "zones", rate=60, tokens=20, at_once_max=80) as load:
        load.more(120)
    assert not load.failed
    spilled = sum(load.shares(0).get(address, 0.0) for address in far)
    assert 0.1 < spilled < 0.5


def test_a_tenants_regions_are_strict(fleet: Fleet) -> None:
    """Its requests stay there, loaded or not; where none is left they are refused with 403."""
    gateway, (_, near_us, _, far_us) = fleet.gateway, fleet.zones
    with Load(gateway, "zones", rate=60, tokens=20, key=KEYS["globex"]) as load:
        load.more(60)
    assert not load.failed
    assert set(load.shares(0)) == {near_us, far_us}
    body = {"model": "zones", "prompt": "[[sim:out=2]]"}
    status, _, answer = gateway.call("/v1/completions", body, key="sk-mars")
    assert (status, answer["error"]["code"]) == (403, "region_not_allowed")

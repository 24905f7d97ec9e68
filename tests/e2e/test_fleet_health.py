"""What agents tell moves traffic: hung replicas, faults, slow cards, silence; what lies does not."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import grpc
import pytest
from agents_harness import Agent, Load, Processes, RawAgent, report, telemetry, token
from gateway import Gateway, free_ports, wait_for

pytestmark = pytest.mark.envoy

POOLS = ("hang", "xid", "slow", "silence", "poison")
NODES = ("node-hang", "node-xid", "node-slow", "node-silence-1", "node-silence-2", "node-poison")
#: least_work keeps (work there + the request's own) ÷ weight equal. With some 36 requests in flight over
#: 3½ replicas' worth of weight a card at half speed keeps a tenth less than its plain proportion; counting
#: some hundred requests adds as much again.
SHARE_TOLERANCE = 0.25


class Fleet:
    """A gateway with a pool of four for each test."""

    def __init__(self) -> None:
        self.ports = {name: free_ports(4) for name in POOLS}
        self.pools = {name: [f"127.0.0.1:{port}" for port in each] for name, each in self.ports.items()}
        pools = {
            # These tests are of health; the strategy's own learning would answer some of it first.
            name: {
                "models": [name],
                "addresses": each,
                "discovery": {"agents": False},
                "strategy": "least_work",
            }
            for name, each in self.pools.items()
        }
        self.gateway = Gateway(pools, mode="ads", telemetry=telemetry(NODES))
        self.processes = Processes()
        self.agents: dict[str, Agent] = {}

    def start(self) -> None:
        """Replicas and agents; the gateway need not be there yet. One replica has its own process."""
        alone = self.ports["hang"][3]
        rest = [port for each in self.ports.values() for port in each if port != alone]
        self.processes.replicas("sim", rest, time_scale=0.2)
        self.stopped = self.processes.replicas("stopped", [alone], time_scale=0.2)
        for node in NODES:
            pool, _, half = node.removeprefix("node-").partition("-")
            addresses = self.pools[pool]
            if half:
                addresses = addresses[:2] if half == "1" else addresses[2:]
            if pool != "poison":
                timeout_ms = 2_000 if pool == "hang" else 5_000
                self.agents[node] = self.processes.agent(
                    self.gateway, node, pool, addresses, timeout_ms=timeout_ms
                )

    def agent(self, node: str) -> Agent:
        """A node's agent, all of whose replicas are well."""
        agent = self.agents[node]
        wait_for(f"the agent of {node}", lambda: agent.reported(self.gateway))
        return agent


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Started once: each test has a pool of its own to hurt."""
    fleet = Fleet()
    with fleet.processes:
        fleet.start()
        with fleet.gateway:
            yield fleet


def causes(fleet: Fleet, address: str) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = fleet.gateway.endpoint(address)["causes"]
    return found


def gpu_causes(fleet: Fleet, address: str) -> list[str]:
    """Those of its card: what a busy machine answers late is another cause."""
    return [cause for cause in causes(fleet, address) if cause.startswith("gpu ")]


def test_a_stopped_replica_loses_its_traffic_and_comes_back_slowly(fleet: Fleet) -> None:
    """SIGSTOP: what was sent to it waits, no other stream fails. SIGCONT: that ends whole; slow start."""
    gateway, pool = fleet.gateway, fleet.pools["hang"]
    stopped = pool[3]
    fleet.agent("node-hang")
    with Load(gateway, "hang") as load:
        load.more(15)
        fleet.stopped.signal(signal.SIGSTOP)
        wait_for("it to be seen", lambda: gateway.endpoint(stopped)["state"] == "hung")
        hung_s = load.more(25)
        waiting = [each for each in load.between(0, hung_s) if not each.ended_s]
        fleet.stopped.signal(signal.SIGCONT)
        continued_s = time.monotonic()
        began = wait_for("health to rise", lambda: gateway.endpoint(stopped)["health"])
        rising_s = time.monotonic()
        assert began < 1.0
        wait_for("health to rise further", lambda: gateway.endpoint(stopped)["health"] > began)
        wait_for("its traffic", lambda: stopped in load.shares(rising_s))
        load.more(20)
    assert not load.failed
    assert stopped not in load.shares(hung_s, continued_s)
    assert any(each.endpoint == stopped for each in waiting)
    # Of the few that a busy machine sends in a second a share says nothing.
    if len(load.between(rising_s, rising_s + 1.0)) >= 40:
        assert load.shares(rising_s, rising_s + 1.0).get(stopped, 0.0) < 0.2


def test_a_fatal_xid_drains_noise_does_not_and_an_operator_clears_it(fleet: Fleet) -> None:
    """13 and 31 are the application's own; 79 silences the replica until its GPU was seen to."""
    gateway, pool = fleet.gateway, fleet.pools["xid"]
    agent = fleet.agent("node-xid")

    def told(*codes: int) -> Callable[[], bool]:
        return lambda: [code for code, _ in gateway.endpoint(pool[1])["gpus"][0]["xids"]] == list(codes)

    with Load(gateway, "xid") as load:
        load.more(15)
        agent.gpus[1]["xids"] = [13, 31]
        agent.touch()
        wait_for("the noise", told(13, 31))

        def untouched() -> bool:
            """About a quarter of forty; a busy machine's slow answers may move it for a while."""
            share = load.shares(load.more(40)).get(pool[1], 0.0)
            return bool(share == pytest.approx(0.25, rel=0.3))

        wait_for("its share, noise or not", untouched)
        assert not gpu_causes(fleet, pool[1])
        agent.gpus[1]["xids"].append(79)
        agent.touch()
        wait_for("the XID", told(13, 31, 79))
        known_s = load.more(25)
        assert gateway.endpoint(pool[1])["health"] == 0.0
        assert causes(fleet, pool[1])["gpu xid 79"]["kind"] == "hard"
        assert pool[1] not in load.shares(known_s + 0.1)
        cleared = gateway.order("ClearFaults", address=pool[1])
        assert cleared == {"found": True, "cleared": ["xid 79 on GPU-node-xid-1"]}
        cleared_s = time.monotonic()
        wait_for("its traffic", lambda: pool[1] in load.shares(cleared_s))
        assert not gpu_causes(fleet, pool[1])
    assert not load.failed
    assert gateway.order("ClearFaults", address="127.0.0.1:1") == {"found": False, "cleared": []}


@pytest.mark.soak
def test_a_throttled_card_gets_less_in_proportion(fleet: Fleet) -> None:
    """At half the clock half of a neighbour's share; whole again when it cools."""
    gateway, pool = fleet.gateway, fleet.pools["slow"]
    agent = fleet.agent("node-slow")
    agent.gpus[2] |= {"throttle": ["hw_thermal_slowdown"], "sm_clock_mhz": 990}
    agent.touch()
    wait_for("half", lambda: gateway.endpoint(pool[2])["health"] == 0.5)
    with Load(gateway, "slow", rate=60, tokens=10) as load:
        load.more(60)
        settled_s = load.more(150)
        shares = load.shares(settled_s)
    assert not load.failed
    assert shares[pool[2]] == pytest.approx(0.5 / 3.5, rel=SHARE_TOLERANCE), shares
    agent.gpus[2] = {"uuid": agent.gpus[2]["uuid"]}
    agent.touch()
    wait_for("rising", lambda: gateway.endpoint(pool[2])["health"] > 0.5)
    assert not causes(fleet, pool[2])


def test_silent_agents_cost_confidence_and_then_least_in_flight_decides(fleet: Fleet) -> None:
    """One silent: its replicas get less. All silent: decided by our own books, and said so."""
    gateway, pool = fleet.gateway, fleet.pools["silence"]
    one, other = fleet.agent("node-silence-1"), fleet.agent("node-silence-2")
    with Load(gateway, "silence") as load:
        one.child.signal(signal.SIGSTOP)

        def doubted() -> bool:
            silent, speaking = (gateway.endpoint(pool[i])["health"] for i in (0, 2))
            return bool(silent < 0.9 and speaking == 1.0)

        wait_for("doubt in one alone", doubted)
        assert causes(fleet, pool[0])["telemetry"]["kind"] == "suspicion"
        assert load.reason.startswith("least_work:")
        other.child.signal(signal.SIGSTOP)
        wait_for("blindness", lambda: "degraded: all telemetry is stale" in load.reason)
        blind_s = time.monotonic()
        assert load.reason.startswith("least_request:")
        load.more(30)
        assert set(load.shares(blind_s)) == set(pool)
        one.child.signal(signal.SIGCONT)
        other.child.signal(signal.SIGCONT)
        wait_for("sight", lambda: load.reason.startswith("least_work:"))
        wait_for("trust", lambda: not causes(fleet, pool[0]) and not causes(fleet, pool[2]))
    assert not load.failed


def test_poison_is_refused_counted_and_moves_nothing(fleet: Fleet) -> None:
    """Numbers that cannot be, strangers, replays and noise; a wrong token is not even read."""
    gateway, pool = fleet.gateway, fleet.pools["poison"]

    def good(sequence: int, **wrong: object) -> bytes:
        return report("node-poison", sequence, pool, "poison", **wrong).SerializeToString()

    before = gateway.status()["telemetry"]["counts"]
    nan = float("nan")
    # Made when they are sent: an older one is late before it is anything else.
    refused: list[tuple[Callable[[], bytes], str]] = [
        (lambda: good(10, prefill_tokens_per_s=nan), "prefill_tokens_per_s_out_of_range"),
        (lambda: good(12, decode_tokens_per_s=1e308), "decode_tokens_per_s_out_of_range"),
        (lambda: good(14, probe_ttft_ms=-1.0), "probe_ttft_ms_out_of_range"),
        (lambda: good(16, waiting=4_000_000_000), "waiting_out_of_range"),
        (lambda: good(18, kv_used_tokens=9, kv_capacity_tokens=1), "kv_over_capacity"),
        (lambda: good(1), "out_of_order"),
        (lambda: report("node-hang", 15, pool, "poison").SerializeToString(), "not_this_node"),
        (lambda: report("stranger", 16, pool, "poison").SerializeToString(), "unknown_node"),
        (lambda: b"\xff\xff\xff", "garbage"),
    ]
    with Load(gateway, "poison") as load:
        agent = RawAgent(gateway, token("node-poison"))
        assert agent.push(good(1)) == ""
        began_s = time.monotonic()
        for number, (made, why) in enumerate(refused):
            assert agent.push(made()) == why
            assert agent.push(good(11 + 2 * number)) == ""
            load.more(3)
        agent.close()
        for secret in ("wrong", "", token("node-poison") + "x"):
            stranger = RawAgent(gateway, secret)
            with pytest.raises(grpc.RpcError) as caught:
                stranger.push(good(500))
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            stranger.close()
        # On a busy machine answers are slow, what is no longer told is old, and looks go unanswered. None of
        # that is what was refused.
        found = {cause for address in pool for cause in causes(fleet, address)}
        assert found <= {"latency", "telemetry", "reach"}
        shares = load.shares(began_s)
    assert not load.failed
    # A quarter each, of some thirty requests.
    assert all(0.08 < shares[address] < 0.5 for address in pool), shares
    after = gateway.status()["telemetry"]["counts"]
    for _, why in refused:
        assert after[f"rejected.{why}"] - before.get(f"rejected.{why}", 0) == 1
    assert after["rejected.unauthenticated"] - before.get("rejected.unauthenticated", 0) == 3

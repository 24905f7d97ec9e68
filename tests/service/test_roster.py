"""What the roster tells Envoys, and when: a start waits for its sources, a reload for its clusters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from extproc.config.load import loads
from extproc.config.model import Config
from extproc.control.snapshot import SnapshotBuilder
from extproc.core.fleet import Fleet
from extproc.core.reach import Look
from extproc.core.reports import ReplicaReport, ReportedState
from extproc.service import roster as module
from extproc.service.build import pool_specs
from extproc.service.roster import Roster
from tests.stand.waits import until

POOLS = """
gateway: {auth: none}
pools:
  - name: chat
    models: [m]
    discovery: {agents: true}
    endpoints: [{address: "10.0.0.1:80"}]
"""
NODES = f"""{POOLS}
telemetry:
  nodes:
    - {{name: a, token_sha256: {"a" * 64}, networks: [10.0.0.0/16]}}
    - {{name: b, token_sha256: {"b" * 64}, networks: [10.0.0.0/16]}}
"""


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that is not about the grace's end does not come to it."""
    monkeypatch.setattr(module, "GRACE_S", 60.0)


def play(text: str, scene: Callable[[Roster], Awaitable[None]]) -> None:
    async def run() -> None:
        config = loads(text)
        roster = Roster(config, Fleet(pool_specs(config)))
        await roster.start()
        roster.publisher.wanted.set()
        await until(lambda: roster._builder is not None, "it is built in a thread")
        await scene(roster)
        await roster.stop()

    asyncio.run(run())


def test_one_at_a_time_renders_and_what_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload while the first snapshot is made: no two threads import Envoy's messages at once."""
    making, most, wrong = [0], [0], [False, True]
    real = SnapshotBuilder

    def slow(config: Config, *, keys: Mapping[str, str]) -> SnapshotBuilder:
        making[0] += 1
        most[0] = max(most[0], making[0])
        try:
            time.sleep(0.05)
            if len(config.pools) == 2 and wrong.pop():
                raise TypeError("half a class")
            return real(config, keys=keys)
        finally:
            making[0] -= 1

    monkeypatch.setattr(module, "SnapshotBuilder", slow)

    async def run() -> None:
        config = loads(POOLS)
        roster = Roster(config, Fleet(pool_specs(config)))
        await roster.start()
        roster.publisher.wanted.set()
        await until(lambda: making[0], "the first is being made")
        roster.apply(loads(POOLS + '  - {name: code, models: [c], endpoints: [{address: "10.0.0.9:80"}]}\n'))
        with pytest.raises(TypeError):
            await roster.refresh()
        assert not roster.publisher.versions
        await roster.refresh()
        assert set(roster.publisher.versions) == {"cds", "eds", "sds"}
        await roster.stop()

    asyncio.run(run())
    assert most == [1]


def test_without_an_envoy_that_asks_nothing_is_rendered() -> None:
    """Neither at the start nor at a reload; the first that asks is told all, by the newest configuration."""

    async def run() -> None:
        config = loads(POOLS)
        roster = Roster(config, Fleet(pool_specs(config)))
        await roster.start()
        roster.apply(loads(POOLS.replace("name: chat", "name: talk")))
        await roster.refresh()
        await asyncio.sleep(0)
        assert roster._builder is None
        assert not roster.publisher.versions
        roster.publisher.wanted.set()
        await until(lambda: roster.publisher.versions, "it is built in a thread")
        await roster.stop()

    asyncio.run(run())


def report(node: str, address: str) -> ReplicaReport:
    return ReplicaReport(address=address, pool="chat", node=node, state=ReportedState.READY)


def test_a_static_configuration_is_told_at_once() -> None:
    """There is nobody to wait for."""

    async def scene(roster: Roster) -> None:
        assert roster.publisher.versions

    play(POOLS, scene)


def test_no_agent_is_waited_for_where_none_may_register() -> None:
    """Then the members are known without them."""

    async def scene(roster: Roster) -> None:
        assert roster.publisher.versions

    play(NODES.replace("agents: true", "agents: false"), scene)


def test_every_source_has_spoken_before_envoys_are_told(tmp_path: Path) -> None:
    """What is told then has all members: an Envoy that knew them before the restart loses none."""
    file = tmp_path / "endpoints.yaml"
    file.write_text('endpoints: [{address: "10.0.0.2:80"}]')

    async def scene(roster: Roster) -> None:
        for node in "ab":
            assert not roster.publisher.versions
            roster.heard([report(node, f"10.0.1.{ord(node)}:80")], now_ns=1)
            roster.spoke("node", node)
        await until(lambda: roster.publisher.versions, "the file is looked at in a thread")
        (resource,) = roster.publisher._snapshot.endpoints.by_name.values()  # type: ignore[union-attr]
        assert {address for _, address in resource.members} == {
            "10.0.0.1:80",
            "10.0.0.2:80",
            "10.0.1.97:80",
            "10.0.1.98:80",
        }

    play(NODES.replace("{agents: true}", f"{{agents: true, file: {file}}}"), scene)


def test_the_silent_are_not_waited_for_longer_than_the_grace(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when a reload comes in between; and the log says who they were."""
    monkeypatch.setattr(module, "GRACE_S", 3.0)

    async def scene(roster: Roster) -> None:
        roster.spoke("node", "a")
        roster.apply(loads(NODES.replace("[m]", "[m, n]")))
        await roster.refresh()
        await until(lambda: roster.publisher.versions, "a timer ends it")

    play(NODES, scene)
    assert "node b" in caplog.text
    assert "node a" not in caplog.text


def test_a_reload_that_adds_a_pool_tells_of_it_when_its_cluster_is_rendered() -> None:
    """Before that nothing is told, and nothing fails."""

    async def scene(roster: Roster) -> None:
        before = roster.publisher.versions
        new = '  - {name: code, models: [c], endpoints: [{address: "10.0.0.9:80"}]}\n'
        roster.apply(loads(POOLS + new))
        roster.publish()
        assert roster.publisher.versions == before
        await roster.refresh()
        assert roster.publisher.versions["cds"] != before["cds"]

    play(POOLS, scene)


REFUSING = """
gateway: {auth: none, listen: "0.0.0.0:8080", envoy_admin: "10.0.1.5:9901"}
service: {listen: ["10.0.1.5:50051"]}
admin: {listen: "10.0.1.5:9090", tokens: [{name: t, sha256: HASH_C}]}
pools:
  - {name: chat, models: [m], discovery: {agents: true}, endpoints: [{address: "10.0.0.1:80"}]}
  - {name: shut, models: [n], endpoints: [{address: "10.0.0.2:80"}]}
telemetry:
  listen: ["10.0.1.5:50052"]
  registrations_per_node_max: 2
  registrations_per_pool_max: 3
  nodes:
    - {name: a, token_sha256: HASH_A, networks: [0.0.0.0/0, "::/0"]}
    - {name: b, token_sha256: HASH_B, networks: [10.0.2.0/24]}
    - {name: c, token_sha256: HASH_C}
"""


@pytest.fixture
def refusing() -> Roster:
    text = REFUSING
    for node in "abc":
        text = text.replace(f"HASH_{node.upper()}", node * 64)
    config = loads(text)
    return Roster(config, Fleet(pool_specs(config)))


@pytest.mark.parametrize(
    ("node", "address", "why"),
    [
        ("a", "10.0.1.7:80", ""),
        ("a", "[fd00::7]:80", ""),
        ("a", "169.254.169.254:80", "not_a_host"),
        ("a", "[fe80::1]:80", "not_a_host"),
        ("a", "[::ffff:169.254.169.254]:80", "not_a_host"),
        ("a", "[64:ff9b::a9fe:a9fe]:80", "not_a_host"),
        ("a", "[2002:a9fe:a9fe::1]:80", "not_a_host"),
        ("a", "[::169.254.169.254]:80", "not_a_host"),
        ("a", "224.0.0.1:80", "not_a_host"),
        ("a", "0.0.0.0:80", "not_a_host"),
        ("a", "127.0.0.1:80", "loopback"),
        ("a", "[::1]:80", "loopback"),
        ("a", "10.0.1.5:9901", "own_listener"),
        ("a", "10.0.1.5:9090", "own_listener"),
        ("a", "10.0.1.5:50051", "own_listener"),
        ("a", "10.0.1.5:50052", "own_listener"),
        ("b", "10.0.2.7:80", ""),
        ("b", "10.0.1.7:80", "outside_networks"),
        ("c", "10.0.2.7:80", "no_networks"),
    ],
)
def test_what_an_agent_may_register(refusing: Roster, node: str, address: str, why: str) -> None:
    """Replicas within its networks; never loopback, link-local, or where the gateway itself listens."""
    refusing.heard([report(node, address)], now_ns=1)
    assert (refusing.fleet.owner(address) == "chat") is not bool(why)
    assert refusing.counts.get(f"registrations.{why}", 0) == (1 if why else 0)


def test_a_pool_that_does_not_ask_takes_no_registration(refusing: Roster) -> None:
    """It is off unless the pool says so."""
    refusing.heard([msgspec.structs.replace(report("a", "10.0.1.7:80"), pool="shut")], now_ns=1)
    assert refusing.fleet.owner("10.0.1.7:80") is None
    assert refusing.counts["registrations.refused"] == 1


def test_registrations_are_bounded_by_node_and_by_pool(refusing: Roster) -> None:
    """A node has two here, the pool three; a place is free again when one was forgotten."""
    for i in range(4):
        refusing.heard([report("a", f"10.0.1.{10 + i}:80")], now_ns=1)
        refusing.heard([report("b", f"10.0.2.{10 + i}:80")], now_ns=1)
    assert len(refusing.fleet.pools["chat"].endpoints) == 1 + 3
    assert refusing.counts["registrations.too_many"] == 5
    refusing.forget(now_ns=61_000_000_000)
    refusing.heard([report("a", "10.0.1.20:80")], now_ns=62_000_000_000)
    assert refusing.fleet.owner("10.0.1.20:80") == "chat"


def test_a_newcomer_gets_no_traffic_before_it_has_answered_us(refusing: Roster) -> None:
    """Whatever its agent says of it; then it starts slowly. Somebody without a health page is no engine."""
    refusing.heard([report("a", "10.0.1.7:80")], now_ns=1)
    endpoint = refusing.fleet.endpoint("chat", "10.0.1.7:80")
    assert endpoint is not None
    for at, look in enumerate((Look.SILENT, Look.ALIVE), 2):
        refusing.fleet.looked(endpoint.address, look, now_ns=at)
        refusing.heard([report("a", "10.0.1.7:80")], now_ns=at)
        assert (endpoint.health.value, endpoint.health.hard) == (0.0, True)
        assert endpoint.address in [each for each, _, _ in refusing.fleet.looks(newcomers=True)]
    refusing.fleet.looked(endpoint.address, Look.ANSWERED, now_ns=5)
    refusing.fleet.step(now_ns=5)
    assert endpoint.health.value == pytest.approx(0.05)
    assert not refusing.fleet.looks(newcomers=True)


@pytest.mark.parametrize(
    "state", [ReportedState.GONE, ReportedState.HUNG, ReportedState.LOADING, ReportedState.DRAINING]
)
@pytest.mark.parametrize("own", [True, False])
def test_only_ones_own_is_silenced_by_a_word(refusing: Roster, state: ReportedState, own: bool) -> None:
    """What lies in no network of the node that speaks is suspected, until our own look says the same."""
    said = msgspec.structs.replace(report("c", "10.0.0.1:80"), state=state, own=own)
    refusing.fleet.looked("10.0.0.1:80", Look.ANSWERED, now_ns=1)
    refusing.heard([said], now_ns=2)
    (endpoint,) = refusing.fleet.pools["chat"].endpoints
    assert (endpoint.health.hard or endpoint.draining) is own
    if not own:
        refusing.fleet.looked("10.0.0.1:80", Look.REFUSED, now_ns=3)
        assert endpoint.health.hard


def test_a_pool_that_asks_no_more_loses_what_was_registered(refusing: Roster) -> None:
    """Switching `discovery.agents` off is how a poisoned pool is cleaned."""
    refusing.heard([report("a", "10.0.1.7:80")], now_ns=1)
    config = refusing._config
    shut = config.pools[0].model_copy(
        update={"discovery": config.pools[0].discovery.model_copy(update={"agents": False})}
    )
    refusing.apply(config.model_copy(update={"pools": [shut, *config.pools[1:]]}))
    assert refusing.fleet.owner("10.0.1.7:80") is None
    refusing.heard([report("a", "10.0.1.7:80")], now_ns=2)
    assert refusing.fleet.owner("10.0.1.7:80") is None

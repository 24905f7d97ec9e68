"""What the roster tells Envoys, and when: a start waits for its sources, a reload for its clusters."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from extproc.app import roster as module
from extproc.app.build import pool_specs
from extproc.app.roster import Roster
from extproc.config.load import loads
from extproc.core.fleet import Fleet
from extproc.core.reports import ReplicaReport, State
from tests.stand.waits import until

POOLS = """
gateway: {auth: none}
pools:
  - name: chat
    models: [m]
    endpoints: [{address: "10.0.0.1:80"}]
"""
NODES = f"""{POOLS}
telemetry: {{nodes: [{{name: a, token_sha256: {"a" * 64}}}, {{name: b, token_sha256: {"b" * 64}}}]}}
"""


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that is not about the grace's end does not come to it."""
    monkeypatch.setattr(module, "GRACE_S", 60.0)
    return


def play(text: str, scene: Callable[[Roster], Awaitable[None]]) -> None:
    async def run() -> None:
        config = loads(text)
        roster = Roster(config, Fleet(pool_specs(config)))
        roster.start()
        await until(lambda: roster._builder is not None, "it is built in a thread")
        await scene(roster)
        await roster.stop()

    asyncio.run(run())


def report(node: str, address: str) -> ReplicaReport:
    return ReplicaReport(address=address, pool="chat", node=node, state=State.READY)


def test_a_static_configuration_is_told_at_once() -> None:
    """There is nobody to wait for."""

    async def scene(roster: Roster) -> None:
        assert roster.publisher.versions

    play(POOLS, scene)


def test_no_agent_is_waited_for_where_none_may_register() -> None:
    """Then the members are known without them."""

    async def scene(roster: Roster) -> None:
        assert roster.publisher.versions

    play(NODES.replace("models: [m]", "models: [m]\n    discovery: {agents: false}"), scene)


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

    play(NODES.replace("models: [m]", f"models: [m]\n    discovery: {{file: {file}}}"), scene)


def test_the_silent_are_not_waited_for_longer_than_the_grace(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when a reload comes in between; and the log says who they were."""
    monkeypatch.setattr(module, "GRACE_S", 0.3)

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

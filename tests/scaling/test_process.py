"""Replicas outlive the service that started them, are found by its successor, and end when there is none."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from extproc.scaling import keeper
from extproc.scaling.places import LocalPlace, LocalPlaces
from extproc.scaling.process import (
    STATE_SUFFIX,
    KeptFolder,
    KeptProcess,
    kill_marked,
    marked,
    marks,
    read_state,
)
from extproc.supervise.ports import free_ports
from tests.stand.launching import ENGINE, LauncherStand
from tests.stand.waits import until, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is swept up is found in /proc")


def started(folder: KeptFolder, *traits: str, cards: Sequence[int] = ()) -> KeptProcess:
    """An engine under a keeper."""
    (port,) = free_ports(1)
    command = [part.replace("{port}", str(port)) for part in ENGINE]
    return folder.start(
        [*command, *traits],
        environment={},
        port=port,
        stop_s=5.0,
        log_dir=None,
        facts={"pool": "chat", "cards": list(cards)},
    )


def written(process: KeptProcess) -> dict[str, object]:
    """Its state file, once the keeper has written it."""
    state = Path(process.facts["state"])
    wait_until(lambda: read_state(state).get("pid"), "the state file")
    return read_state(state)


@pytest.fixture
def folder(tmp_path: Path) -> KeptFolder:
    made = KeptFolder(tmp_path / "kept")
    made.own()
    return made


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> object:
    yield
    kill_marked({mark for mark in marks() if mark.startswith(str(tmp_path))})


def test_cards_of_another_service_s_replicas_are_not_given_out(folder: KeptFolder) -> None:
    """While they run; what is told when none is left says whose they are."""
    other = KeptFolder(folder.path.with_name("other"))
    other.own()
    process = started(other, cards=(0, 1))
    written(process)
    places = LocalPlaces(folder.cards_elsewhere)
    found = places.take((0, 0), (0, 1, 2), cards_each=1)
    assert isinstance(found, LocalPlace)
    assert found.cards == (2,)
    refused = places.take((0, 0), (0, 1, 2), cards_each=1)
    assert refused == ("no card is free: 0 of 3, and a replica takes 1; another service's replicas have 0, 1")
    process.terminate()
    wait_until(lambda: not process.alive, "its end")
    assert not folder.cards_elsewhere()
    assert isinstance(places.take((0, 0), (0, 1), cards_each=2), LocalPlace)


def test_two_launchers_do_not_begin_at_one_port() -> None:
    """Else both would give it out in the moment before a replica listens there."""
    taken = [LocalPlaces().take((0, 0), (), cards_each=1) for _ in range(4)]
    assert len({place.port for place in taken if isinstance(place, LocalPlace)}) > 1


def test_a_successor_finds_what_runs(folder: KeptFolder) -> None:
    """By its state file, with its facts; what it is told to end it ends, though it is no child of its own."""
    process = started(folder)
    written(process)
    (again,) = folder.found()
    assert (again.facts["pool"], again.facts["port"]) == ("chat", process.facts["port"])
    assert again.alive
    again.terminate()
    process._keeper.wait(timeout=60)  # type: ignore[union-attr]  # init's part, which reaps
    assert not again.alive
    assert again.ended == "was killed by signal 15"
    again.sweep()
    assert list(folder.found()) == []


def test_an_engine_without_a_service_ends(folder: KeptFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owned it is gone, and nobody takes it over in time."""
    monkeypatch.setattr("extproc.scaling.process.ORPHAN_S", 0.2)
    process = started(folder, "daemon")
    written(process)
    assert process.alive
    # A process id that came again is not the same process.
    (folder.path / "owner").write_text(f"{os.getpid()} {keeper.started(os.getpid()) + 1}")
    wait_until(lambda: not process.alive, "it ends by itself")
    assert str(process.facts["state"]) not in marks()


def test_what_a_killed_keeper_left_is_swept_up_by_the_successor(folder: KeptFolder) -> None:
    """Its state file is forgotten, and its daemon is ended."""
    process = started(folder, "daemon")
    written(process)
    wait_until(lambda: len([m for _, m in marked() if m == process.facts["state"]]) == 2, "both run")
    process.kill()
    wait_until(lambda: not process.alive, "the keeper is gone")
    assert list(folder.found()) == []
    wait_until(lambda: str(process.facts["state"]) not in marks(), "its daemon is gone")
    assert list(folder.path.glob(f"*{STATE_SUFFIX}")) == []


def test_files_that_are_broken_are_no_replicas(folder: KeptFolder) -> None:
    """Whatever lies in the folder."""
    for name, text in (("a", "{"), ("b", "[]"), ("c", '{"state": 1}'), ("d", "\0")):
        (folder.path / f"{name}{STATE_SUFFIX}").write_text(text)
    assert list(folder.found()) == []


def test_a_launcher_takes_over_what_it_finds(tmp_path: Path) -> None:
    """A member at once where it was ready before, without a new process; more than wanted leaves."""
    first, second = LauncherStand(tmp_path), LauncherStand(tmp_path)

    async def run() -> None:
        first.launcher.want(2)
        await until(lambda: len(first.members) == 2, first.launcher.status)
        pids = first.pids
        before = [each.process for each in first.launcher.replicas]
        # Its successor: the first one is simply not asked any more.
        first.launcher._closing = True
        for task in first.launcher._lives.values():
            task.cancel()
        for process in second.folder.found():
            second.launcher.adopt(process)
        await asyncio.sleep(0)
        assert len(second.members) == 2
        second.launcher.want(2)
        assert second.launcher.starts == 0
        assert second.pids == pids
        second.launcher.want(1)
        await until(lambda: len(second.launcher.replicas) == 1, second.launcher.status)
        await second.launcher.stop()
        assert not second.pids
        assert not any(process.alive for process in before if process is not None)
        assert second.loads == [], "nobody knows when it was started"

    asyncio.run(run())

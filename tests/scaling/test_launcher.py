"""The launcher with real processes: how many there are, where, and what becomes of those that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from extproc.addresses import split
from extproc.scaling import keeper, launcher
from extproc.scaling.process import kill_marked, marks
from tests.stand.launching import ENGINE, LauncherStand
from tests.stand.waits import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is swept up is found in /proc")


Play = Callable[[LauncherStand, Callable[[LauncherStand], Awaitable[None]]], None]


@pytest.fixture
def play(
    tmp_path: Path,
) -> Iterator[Callable[[LauncherStand, Callable[[LauncherStand], Awaitable[None]]], None]]:
    """Runs a scene; whatever it leaves is ended, and a launcher that was stopped has left nothing."""

    def run(stand: LauncherStand, scene: Callable[[LauncherStand], Awaitable[None]]) -> None:
        async def whole() -> None:
            try:
                await scene(stand)
            finally:
                await stand.launcher.stop()

        asyncio.run(whole())
        assert not stand.pids, "a launcher that has stopped leaves nothing behind"

    yield run
    kill_marked({mark for mark in marks() if mark.startswith(str(tmp_path))})


def test_as_many_as_are_wanted_each_at_its_own_port(tmp_path: Path, play: Play) -> None:
    """Up to three, members when they answer; down to one; the load time is told, the first as cold."""

    async def scene(stand: LauncherStand) -> None:
        stand.launcher.want(3)
        assert stand.stages == ["starting"] * 3
        await until(lambda: len(stand.members) == 3, stand.launcher.status)
        assert len(set(stand.members)) == 3
        assert stand.stages == ["ready"] * 3
        assert [(pool, hardware, cold) for pool, hardware, _, cold in stand.loads] == [
            ("chat", "NVIDIA L4", True),
            ("chat", "NVIDIA L4", False),
            ("chat", "NVIDIA L4", False),
        ]
        assert all(seconds > 0 for _, _, seconds, _ in stand.loads)
        stand.launcher.want(1, (stand.members[1],))
        gone = stand.members[1]
        await until(lambda: len(stand.launcher.replicas) == 1, stand.launcher.status)
        assert gone not in stand.members, "who was named went first"
        assert stand.drained[gone]
        assert len(stand.pids) == 1

    play(LauncherStand(tmp_path), scene)


def test_each_card_bears_one_replica(tmp_path: Path, play: Play) -> None:
    """Two cards a replica: the third finds none, and says so until one is free again."""

    async def scene(stand: LauncherStand) -> None:
        stand.launcher.want(3)
        await until(lambda: len(stand.members) == 2, stand.launcher.status)
        assert sorted(each.place.cards for each in stand.launcher.replicas) == [(0, 1), (2, 3)]
        assert "no card is free" in stand.launcher.problem
        texts = [each.process.log.read_text() for each in stand.launcher.replicas if each.process is not None]
        assert sorted(text.split("with ")[1].strip() for text in texts) == ["0,1", "2,3"]
        stand.launcher.want(2)
        assert stand.launcher.problem == ""

    settings = {"gpus": [0, 1, 2, 3], "environment": {"CARDS": "{gpu}"}}
    stand = LauncherStand(tmp_path)
    stand.launcher = stand.of(ENGINE, gpus=1)
    stand.launcher.settings = stand.launcher.settings.model_copy(update=settings)
    stand.launcher.pool = stand.launcher.pool.model_copy(update={"gpus": 2})
    play(stand, scene)


def test_a_taken_port_is_passed_over(tmp_path: Path, play: Play) -> None:
    """Somebody else listens at the range's first port; with the range used up it says which setting."""

    async def scene(stand: LauncherStand) -> None:
        stand.launcher.want(2)
        await until(lambda: len(stand.members) == 1, stand.launcher.status)
        assert split(stand.members[0])[1] == taken + 1
        assert stand.launcher.problem.startswith("steersman.yaml: pools[0].scaling.launcher: no port from")

    with contextlib.ExitStack() as stack:
        while True:
            # A bound one cannot be bound again; those before it keep their ports, so that another is tried.
            other = stack.enter_context(socket.socket())
            other.bind(("127.0.0.1", 0))
            other.listen()
            taken = other.getsockname()[1]
            with socket.socket() as next_:
                try:
                    next_.bind(("127.0.0.1", taken + 1))
                    break
                except OSError:
                    continue
        stand = LauncherStand(tmp_path)
        stand.launcher.settings = stand.launcher.settings.model_copy(update={"ports": (taken, taken + 1)})
        play(stand, scene)


def test_drained_before_it_goes_and_kept_when_it_is_wanted_again(tmp_path: Path, play: Play) -> None:
    """No new requests, its last one ends, then it is stopped; wanted meanwhile, it simply stays."""

    async def scene(stand: LauncherStand) -> None:
        stand.launcher.want(1)
        await until(lambda: stand.members, stand.launcher.status)
        (address,) = stand.members
        stand.running[address] = 2
        stand.launcher.want(0)
        await until(lambda: stand.drained.get(address), "it drains")
        assert stand.stages == ["draining"]
        await asyncio.sleep(0.3)
        assert stand.members == [address], "its requests still run"
        stand.launcher.want(1)
        await until(lambda: stand.drained[address] is False, "it is wanted again")
        assert (stand.stages, stand.launcher.starts) == (["ready"], 1)
        stand.launcher.want(0)
        await until(lambda: stand.drained[address], "it drains")
        stand.running.clear()
        await until(lambda: not stand.launcher.replicas, stand.launcher.status)

    play(LauncherStand(tmp_path), scene)


def test_a_drain_has_an_end(tmp_path: Path, play: Play) -> None:
    """A request that never ends keeps it for drain_timeout_s and no longer."""

    async def scene(stand: LauncherStand) -> None:
        stand.launcher.want(1)
        await until(lambda: stand.members, stand.launcher.status)
        stand.running[stand.members[0]] = 1
        stand.launcher.want(0)
        await until(lambda: not stand.launcher.replicas, stand.launcher.status)

    play(LauncherStand(tmp_path, drain_timeout_s=0.2), scene)


def test_started_again_after_a_crash(tmp_path: Path, play: Play) -> None:
    """A member that is killed is none at once, and another takes its place."""

    async def scene(stand: LauncherStand) -> None:
        stand.launcher.want(1)
        await until(lambda: stand.members, stand.launcher.status)
        (pid,) = stand.pids
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not stand.members, "it is no member any more")
        await until(lambda: stand.members, stand.launcher.status)
        assert (stand.launcher.crashes, stand.launcher.starts) == (1, 2)
        assert stand.launcher.problem == "", "it is ready again"

    play(LauncherStand(tmp_path), scene)


def test_one_that_exits_at_once_is_tried_with_pauses_that_double(
    tmp_path: Path, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has its last lines, the setting, and when the next start is; the pause has a bound."""

    async def scene(stand: LauncherStand) -> None:
        stand.launcher.want(1)
        pauses = []
        for crash in range(1, 5):
            await until(lambda n=crash: stand.launcher.crashes == n, stand.launcher.status)
            pauses.append(float(stand.launcher.problem.split("the next start is in ")[1].split(" s")[0]))
        assert pauses == [0.05, 0.1, 0.2, 0.2]
        assert "steersman.yaml: pools[0].scaling.launcher.command: " in stand.launcher.problem
        assert "exited with 3" in stand.launcher.problem
        assert "no such model" in stand.launcher.problem

    # Pauses as short as a test's are over before a busy machine has started a process.
    monkeypatch.setattr(launcher, "CALM_PAUSES", 1e6)
    play(LauncherStand(tmp_path, "exit=3"), scene)


def test_a_command_that_does_not_exist(tmp_path: Path, play: Play) -> None:
    """It says which setting names it, and what to write."""

    async def scene(stand: LauncherStand) -> None:
        stand.launcher.want(1)
        await until(lambda: stand.launcher.crashes, stand.launcher.status)
        assert stand.launcher.problem.startswith(
            "steersman.yaml: pools[0].scaling.launcher.command: '/no/such/engine' at 127.0.0.1:"
        )
        assert "No such file or directory; write the path of a program, or install it" in (
            stand.launcher.problem
        )

    stand = LauncherStand(tmp_path)
    stand.launcher = stand.of(["/no/such/engine"])
    play(stand, scene)


def test_a_command_that_no_system_takes(tmp_path: Path, play: Play) -> None:
    """What cannot even be asked of the system fails like any other start, with its pause."""

    async def scene(stand: LauncherStand) -> None:
        stand.launcher.want(1)
        await until(lambda: stand.launcher.crashes == 2, stand.launcher.status)
        assert "embedded null byte; the next start is in" in stand.launcher.problem

    stand = LauncherStand(tmp_path)
    stand.launcher.settings = stand.launcher.settings.model_copy(update={"command": ["a\0b"]})
    play(stand, scene)


def test_one_that_never_listens_is_ended(tmp_path: Path, play: Play) -> None:
    """After ready_timeout_s, with a hint; nothing of it stays."""

    async def scene(stand: LauncherStand) -> None:
        stand.launcher.want(1)
        await until(lambda: stand.launcher.crashes, stand.launcher.status)
        assert "did not answer its health page within 0.5 s (ready_timeout_s)" in stand.launcher.problem

    stand = LauncherStand(tmp_path)
    stand.launcher.settings = stand.launcher.settings.model_copy(
        update={"ready_timeout_s": 0.5, "command": [*ENGINE, "silent"]}
    )
    play(stand, scene)


def test_what_it_leaves_is_ended_too(tmp_path: Path, play: Play) -> None:
    """A child of its group and one that has made itself a daemon, at a stop and after a crash."""

    async def scene(stand: LauncherStand) -> None:
        stand.launcher.want(1)
        await until(lambda: stand.members, stand.launcher.status)
        await until(lambda: len(stand.pids) == 3, "engine, child, daemon")
        (main,) = {int(each.process.facts["keeper"]) for each in stand.launcher.replicas if each.process}
        before = stand.pids
        first = min(before)
        os.kill(first, signal.SIGKILL)
        await until(lambda: not stand.pids & before, "the crash's leftovers are ended")
        await until(lambda: not keeper.started(main), "its keeper has nothing left to keep")
        stand.launcher.want(0)
        await until(lambda: not stand.launcher.replicas, stand.launcher.status)
        assert not stand.pids

    play(LauncherStand(tmp_path, "child", "daemon"), scene)


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path, play: Play) -> None:
    """After stop_timeout_s, and its children with it."""

    async def scene(stand: LauncherStand) -> None:
        stand.launcher.want(1)
        await until(lambda: stand.members, stand.launcher.status)
        stand.launcher.want(0)
        await until(lambda: not stand.launcher.replicas, stand.launcher.status)

    play(LauncherStand(tmp_path, "deaf", "child", stop_timeout_s=0.3), scene)


def test_a_killed_keeper_leaves_nothing(tmp_path: Path, play: Play) -> None:
    """The kernel ends the engine, the launcher what it had started; then it is started again."""

    async def scene(stand: LauncherStand) -> None:
        stand.launcher.want(1)
        await until(lambda: stand.members and len(stand.pids) == 2, stand.launcher.status)
        before = stand.pids
        (replica,) = stand.launcher.replicas
        assert replica.process is not None
        os.kill(replica.process.facts["keeper"], signal.SIGKILL)
        await until(lambda: not stand.pids & before, "all of it is ended")
        await until(lambda: stand.members, stand.launcher.status)

    play(LauncherStand(tmp_path, "daemon"), scene)


def test_wanted_no_more_while_it_loads(tmp_path: Path, play: Play) -> None:
    """It is ended, and was never a member."""

    async def scene(stand: LauncherStand) -> None:
        stand.launcher.want(1)
        await until(lambda: stand.stages == ["loading"], stand.launcher.status)
        stand.launcher.want(0)
        await until(lambda: not stand.launcher.replicas, stand.launcher.status)
        assert (stand.members, stand.loads, stand.launcher.crashes) == ([], [], 0)

    play(LauncherStand(tmp_path, "load=60"), scene)


def test_who_loads_goes_before_who_serves(tmp_path: Path, play: Play) -> None:
    """Without a word of who is to leave, nobody loses a request by it."""

    async def scene(stand: LauncherStand) -> None:
        stand.launcher.want(1)
        await until(lambda: stand.members, stand.launcher.status)
        stand.launcher.settings = stand.launcher.settings.model_copy(update={"command": [*ENGINE, "load=60"]})
        stand.launcher.want(2)
        await until(lambda: stand.stages == ["loading", "ready"], stand.launcher.status)
        stand.launcher.want(1)
        await until(lambda: len(stand.launcher.replicas) == 1, stand.launcher.status)
        assert stand.stages == ["ready"]

    play(LauncherStand(tmp_path), scene)


def test_logs_are_bounded(tmp_path: Path) -> None:
    """A log above its bound is moved aside and begun anew: two of them at the most."""
    log = tmp_path / "log"
    spec = {"state": str(tmp_path / "s"), "owner": "", "log": str(log), "log_bytes": 10_000, "stop_s": 1}
    one = keeper.Keeper(spec, [])
    for _ in range(50):
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.write(writing, b"x" * 1_000)
        os.close(writing)
        one._copy(reading)
        os.close(reading)
    assert log.stat().st_size <= 12_000
    assert (tmp_path / "log.1").stat().st_size <= 12_000
    assert {each.name for each in tmp_path.iterdir()} == {"log", "log.1"}

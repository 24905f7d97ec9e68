"""running.py: a demo is found while it lives, by its own user alone, and a stranger is never signalled."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import ClassVar

import pytest

from extproc.demo import running
from extproc.demo.running import NoDemoError, Notes, RunningDemo, announce, announced, began, find
from extproc.supervise.admin_link import AdminLink, ServiceRefusedError
from extproc.supervise.asking import ServiceSilentError


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "steersman-demo"


def fail(line: str) -> None:
    pytest.fail(line)


def demo(pid: int, run_dir: Path, *, its: int | None = None) -> RunningDemo:
    return RunningDemo(
        pid=pid,
        began=began(pid) if its is None else its,
        url="http://127.0.0.1:1",
        service="127.0.0.1:2",
        service_pid=None,
        run_dir=str(run_dir),
        replicas=(),
        nodes=(),
    )


def test_a_running_demo_is_found_and_gone_afterwards(place: Path, tmp_path: Path) -> None:
    """The file is this user's alone, in a folder that is too."""
    with announced(tmp_path, fail) as file:
        announce(file, demo(os.getpid(), tmp_path))
        assert find() == find(os.getpid()) == demo(os.getpid(), tmp_path)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert not file.exists()
    with pytest.raises(NoDemoError, match="no demo of this user runs"):
        find()


def test_the_file_of_a_dead_demo_is_no_demo(place: Path, tmp_path: Path) -> None:
    """Neither when its pid is free nor when another process has it by now; the file goes."""
    place.mkdir(0o700)
    mine = os.getpid()
    for name, dead in (("1", demo(2**22 - 1, tmp_path)), ("2", demo(mine, tmp_path, its=12345))):
        announce(place / f"{name}.json", dead)
    (place / "3.json").write_text("{", encoding="utf-8")
    with pytest.raises(NoDemoError):
        find()
    assert [path.name for path in place.iterdir()] == ["3.json"]


def test_a_folder_that_others_may_enter_is_not_used(place: Path) -> None:
    """What lies there could make us signal anything."""
    place.mkdir(0o755)
    with pytest.raises(NoDemoError, match="is not this user's own private folder"):
        find()


def test_a_runtime_folder_that_is_read_only_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """XDG_RUNTIME_DIR may be another user's, as after su: the temporary folder serves."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with announced(tmp_path, fail) as file:
        assert file.parent == tmp_path / f"steersman-demo-{os.getuid()}"


def test_where_nothing_can_be_written_the_demo_runs_unfound(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is said once, the file lies in the run's own folder, and nobody finds what is not there."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc")
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    said: list[str] = []
    with announced(tmp_path, said.append) as file:
        assert file.parent == tmp_path
    (line,) = said
    assert line.startswith("demo-fault will not find this demo: /proc/steersman-demo")
    with pytest.raises(NoDemoError, match="/proc/steersman-demo"):
        find()


def test_only_children_are_owned(tmp_path: Path) -> None:
    """A pid that is another process's by now is nobody's part."""
    me = demo(os.getpid(), tmp_path)
    with subprocess.Popen(["sleep", "30"]) as child:
        assert me.owns(child.pid)
        child.kill()
    assert not me.owns(child.pid)
    assert not me.owns(os.getppid())
    assert not me.owns(None)


def test_notes_come_once(tmp_path: Path) -> None:
    """What was noted before is not news."""
    me = demo(os.getpid(), tmp_path)
    me.note("old")
    notes = Notes(tmp_path)
    assert notes.new() == []
    me.note("one")
    me.note("two")
    assert notes.new() == ["one", "two"]
    assert notes.new() == []
    assert (tmp_path / running.NOTES).exists()


class AService:
    """Stands for a service that answers where it is said to."""

    answering: ClassVar[set[str]] = set()

    def __init__(self, address: str) -> None:
        self.address = address
        self.closed = False

    async def status(self) -> dict[str, object]:
        if self.address not in self.answering:
            raise ServiceSilentError(f"no Steersman answers at {self.address}")
        return {}

    async def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("file", "answering", "found"),
    [
        ("service: {listen: ['127.0.0.1:7']}", {"127.0.0.1:7", running.DEFAULT_ADDRESS}, "127.0.0.1:7"),
        ("service: {listen: 'unix:/run/x.sock'}", {"unix:/run/x.sock"}, "unix:/run/x.sock"),
        (
            "service: {listen: ['127.0.0.1:7'], run_dir: /run/s}",
            {"unix:/run/s/127.0.0.1_7.orders.sock"},
            "unix:/run/s/127.0.0.1_7.orders.sock",
        ),
        ("service: {listen: ['127.0.0.1:7']}", {running.DEFAULT_ADDRESS}, running.DEFAULT_ADDRESS),
        ("service: {listen: ['127.0.0.1:7']}", set(), "127.0.0.1:7"),
        ("pools: []", {running.DEFAULT_ADDRESS}, running.DEFAULT_ADDRESS),
        ("service: {listen: [7]}", set(), running.DEFAULT_ADDRESS),
        ("service: [", set(), running.DEFAULT_ADDRESS),
        (None, set(), running.DEFAULT_ADDRESS),
    ],
)
def test_a_service_is_looked_for_where_the_configuration_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str | None, answering: set[str], found: str
) -> None:
    """A port of its own is written once, in the file; the usual one and a demo's come after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STEERSMAN_CONFIG", raising=False)
    monkeypatch.setattr(running, "ServiceLink", AService)
    monkeypatch.setattr(AService, "answering", answering)
    if file is not None:
        (tmp_path / "steersman.yaml").write_text(file, encoding="utf-8")
    link = asyncio.run(running.link_to(None))
    assert isinstance(link, AService)
    assert (link.address, link.closed) == (found, False)


def test_the_configuration_may_be_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As everywhere: STEERSMAN_CONFIG stands in for -f."""
    (tmp_path / "mine.yaml").write_text("service: {listen: ['127.0.0.1:9']}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEERSMAN_CONFIG", "mine.yaml")
    monkeypatch.setattr(running, "ServiceLink", AService)
    monkeypatch.setattr(AService, "answering", {"127.0.0.1:9"})
    assert asyncio.run(running.link_to(None)).address == "127.0.0.1:9"


def test_localhost_is_this_machine() -> None:
    """As a person writes it; another name is an admin port's elsewhere."""
    assert isinstance(asyncio.run(running.link_to("localhost:50051")), running.ServiceLink)
    assert asyncio.run(running.link_to("localhost:50051")).address == "127.0.0.1:50051"
    assert asyncio.run(running.link_to("gateway.internal:9090")).address == "http://gateway.internal:9090"


def test_who_refuses_without_a_word_is_no_admin_port() -> None:
    """Such as the gateway itself, whose 401 is in its clients' words."""
    link = AdminLink("http://127.0.0.1:8080")
    with pytest.raises(
        ServiceSilentError, match=r"no Steersman's admin port answers at http://127\.0\.0\.1:8080"
    ):
        link._told(401, {"error": {}})
    with pytest.raises(ServiceRefusedError, match=r"8080: the token is not known here; its token"):
        link._told(401, {"error": {"message": "the token is not known here"}})

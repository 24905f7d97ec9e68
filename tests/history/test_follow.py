from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from extproc.history import follow as module
from extproc.history.follow import Follow
from extproc.history.versions import ConfigHistory
from tests.stand.waits import until

#: Any account's number but root's.
NOBODY = 65534


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.01)
    monkeypatch.setattr(module, "STILL_S", 0.03)
    monkeypatch.setattr(module, "APART_S", 60.0)


class Taker:
    """Takes what is no 'bad'."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.read: list[str] = []
        self.fails = False

    def write(self, text: str) -> None:
        self.file.write_text(text)

    async def __call__(self) -> bool:
        if self.fails:
            raise RuntimeError("not foreseen")
        text = self.file.read_text() if self.file.exists() else "bad"
        self.read.append(text)
        return text != "bad"


def following(
    tmp_path: Path, drive: Callable[[Follow, Taker, Path], object], *, supervised: bool = False
) -> Taker:
    file = tmp_path / "a.yaml"
    file.write_text("one")
    taker = Taker(file)

    async def main() -> None:
        follow = Follow(file, taker, supervised=supervised)
        task = asyncio.create_task(follow.run())
        try:
            found = drive(follow, taker, file)
            assert asyncio.iscoroutine(found)
            await found
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    asyncio.run(main())
    return taker


def test_a_change_is_taken_once_and_recorded(tmp_path: Path) -> None:
    """A touch without a change is none; a bad file is told of once and not recorded."""

    async def drive(follow: Follow, taker: Taker, file: Path) -> None:
        await until(lambda: ConfigHistory(file).latest())
        taker.write("two")
        await until(lambda: len(ConfigHistory(file).read().entries) == 2)
        taker.file.touch()
        await asyncio.sleep(0.1)
        taker.write("bad")
        await until(lambda: len(taker.read) == 2)
        taker.file.unlink()
        await asyncio.sleep(0.05)
        taker.write("three")
        await until(lambda: len(ConfigHistory(file).read().entries) == 3)

    taker = following(tmp_path, drive)
    assert taker.read == ["two", "bad", "three"]
    entries = ConfigHistory(taker.file).read().entries
    assert [(each.command, each.text) for each in entries] == [
        ("found", "one"),
        ("changed outside", "two"),
        ("changed outside", "three"),
    ]


def test_a_file_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    """Until it has been still for a moment."""

    async def drive(follow: Follow, taker: Taker, file: Path) -> None:
        for i in range(20):
            taker.write("x" * (i + 2))
            await asyncio.sleep(0.01)
        await until(lambda: taker.read[-1:] == ["x" * 21])

    # On a busy machine a pause of the writer may be as long as the moment; never is every state read.
    assert len(following(tmp_path, drive).read) < 20


def test_a_signal_reads_at_once(tmp_path: Path) -> None:
    """And the watch does not read the same again."""

    async def drive(follow: Follow, taker: Taker, file: Path) -> None:
        taker.write("two")
        follow.now()
        await until(lambda: taker.read)
        await asyncio.sleep(0.1)

    assert following(tmp_path, drive).read == ["two"]


def test_a_storm_of_signals_is_one_reload_after_another(tmp_path: Path) -> None:
    """While one is read, however many come ask for one more; what was written last is what is read last."""

    async def drive(follow: Follow, taker: Taker, file: Path) -> None:
        for i in range(1_000):
            if i == 500:
                taker.write("two")
            follow.now()
            if i % 100 == 0:
                await asyncio.sleep(0)
        await until(lambda: taker.read[-1:] == ["two"])
        await asyncio.sleep(0.1)

    assert len(following(tmp_path, drive).read) <= 12


def test_an_error_ends_no_watch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What `apply` did not foresee is logged, and the next change is taken."""

    async def drive(follow: Follow, taker: Taker, file: Path) -> None:
        taker.fails = True
        follow.now()
        await until(lambda: "could not be taken" in caplog.text)
        taker.fails = False
        taker.write("two")
        await until(lambda: taker.read == ["two"])

    following(tmp_path, drive)


def test_a_supervisors_copy_is_read_when_it_says_and_not_recorded(tmp_path: Path) -> None:
    """The supervisor watches the original."""
    file = tmp_path / "a.yaml"
    file.write_text("one")
    taker = Taker(file)

    async def main() -> None:
        follow = Follow(file, taker, supervised=True)
        task = asyncio.create_task(follow.run())
        taker.write("two")
        await asyncio.sleep(0.1)
        assert taker.read == []
        follow.now()
        await until(lambda: taker.read == ["two"])
        task.cancel()

    asyncio.run(main())
    assert not ConfigHistory(file).exists


def test_a_storm_of_signals_is_one_reading_at_a_time(tmp_path: Path) -> None:
    """The first is read at once; all that come until the next may be read are one, with the last text."""
    waits: list[float] = []

    async def drive(follow: Follow, taker: Taker, file: Path) -> None:
        over = asyncio.Event()

        async def pause(seconds: float) -> None:
            waits.append(seconds)
            await over.wait()

        follow.pause = pause
        follow.now()
        await until(lambda: taker.read == ["one"])
        for number in range(200):
            taker.write(str(number))
            follow.now()
            await asyncio.sleep(0)
        await until(lambda: waits)
        assert taker.read == ["one"]
        over.set()
        await until(lambda: taker.read == ["one", "199"])

    taker = following(tmp_path, drive, supervised=True)
    assert taker.read == ["one", "199"]
    assert len(waits) == 1
    assert 0.0 < waits[0] <= module.APART_S


def test_a_history_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says so."""

    async def drive(follow: Follow, taker: Taker, file: Path) -> None:
        ConfigHistory(file).path.mkdir()
        for text in ("two", "three"):
            taker.write(text)
            await until(lambda text=text: taker.read[-1:] == [text])
            await asyncio.sleep(0.05)

    following(tmp_path, drive)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "are not recorded" in warnings[0].message


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that cannot be written, for root neither: it is another user's, and root becomes a third."""
    folder = Path(tempfile.mkdtemp())
    (folder / "a.yaml").write_text("one")
    (folder / "a.yaml").chmod(0o666)
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_folder_that_cannot_be_written_is_said_once_and_is_no_fault(
    read_only: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a pod with a mounted configuration: no warning at each start; changes are taken all the same."""
    caplog.set_level(logging.INFO)

    async def drive(follow: Follow, taker: Taker, file: Path) -> None:
        await until(lambda: "no history" in caplog.text)
        for text in ("two", "three"):
            taker.write(text)
            await until(lambda text=text: taker.read[-1:] == [text])
            await asyncio.sleep(0.05)

    following(read_only, drive)
    said = [record for record in caplog.records if "history" in record.message]
    told = f"no history of {read_only}/a.yaml is kept: its folder cannot be written; "
    told += "undo a change where it comes from"
    assert [(record.levelno, record.message) for record in said] == [(logging.INFO, told)]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

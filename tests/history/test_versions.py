from __future__ import annotations

import errno
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from extproc.history.change import change
from extproc.history.versions import FILES_KEPT, ConfigHistory, HistoryError, digest, write_whole

SMALL = "gateway: {auth: none}\npools: [{name: a, models: [m], endpoints: [{address: '127.0.0.1:9'}]}]\n"


def history(tmp_path: Path, *, bytes_max: int = 1 << 20) -> ConfigHistory:
    return ConfigHistory(tmp_path / "a.yaml", bytes_max=bytes_max)


def add(books: ConfigHistory, text: str) -> int:
    return books.append(text, who="ann", why="because", command="test").version


def test_versions_are_numbered_and_chained(tmp_path: Path) -> None:
    """Each knows the hash of the one before."""
    books = history(tmp_path)
    assert [add(books, text) for text in ("one", "two")] == [1, 2]
    first, second = books.read().entries
    assert (first.previous, second.previous) == ("", first.hash)
    assert (second.text, second.sha256) == ("two", digest("two"))
    assert books.latest() == second
    assert books.read().version(1) == first


def test_the_time_is_utc(tmp_path: Path) -> None:
    """To the second."""
    entry = history(tmp_path).note("x", now=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert entry is not None
    assert (entry.at, entry.command) == ("2026-01-02T03:04:05Z", "found")


def test_a_note_is_of_what_is_new(tmp_path: Path) -> None:
    """The same text again is no version."""
    books = history(tmp_path)
    add(books, "one")
    assert books.note("one") is None
    outside = books.note("two")
    assert outside is not None
    assert outside.command == "changed outside"


def test_old_versions_are_put_aside(tmp_path: Path) -> None:
    """The chain goes on over the files; those beyond the bound are gone, which is no break."""
    books = history(tmp_path, bytes_max=900)
    for i in range(40):
        assert add(books, f"text {i}") == i + 1
    reading = books.read()
    assert reading.problems == []
    assert reading.entries[-1].version == 40
    assert 1 < len(reading.entries) < 40
    assert len(list(tmp_path.iterdir())) == FILES_KEPT + 1
    books.path.unlink()
    assert books.latest() is not None


def test_a_line_that_was_cut_off_is_named_and_survived(tmp_path: Path) -> None:
    """A crash in the middle of a write loses that version alone."""
    books = history(tmp_path)
    add(books, "one")
    with books.path.open("ab") as file:
        file.write(b'{"version": 2, "at"')
    assert add(books, "three") == 2
    reading = books.read()
    assert [each.text for each in reading.entries] == ["one", "three"]
    assert len(reading.problems) == 1
    assert "is no entry" in reading.problems[0]


@pytest.mark.parametrize("line", [b"\xff\xfe", b'{"version":"\xff"}', b"[" * 50_000, b"\0" * 64])
def test_a_line_of_garbage_is_named_and_survived(tmp_path: Path, line: bytes) -> None:
    """Whatever a disk has put there: the versions before and after it count."""
    books = history(tmp_path)
    add(books, "one")
    with books.path.open("ab") as file:
        file.write(line)
    assert add(books, "three") == 2
    assert [each.text for each in books.read().entries] == ["one", "three"]
    assert len(books.read().problems) == 1


def test_what_was_taken_out_shows(tmp_path: Path) -> None:
    """A chain with a gap."""
    books = history(tmp_path)
    for text in ("one", "two", "three"):
        add(books, text)
    first, _, third = books.path.read_bytes().splitlines(keepends=True)
    books.path.write_bytes(first + third)
    assert "what was before version 3 is missing" in books.read().problems[0]


def test_a_key_in_clear_is_not_recorded(tmp_path: Path) -> None:
    """Not even in a comment; the message names the line and not the key."""
    key = "sk-steer-" + "a" * 43
    with pytest.raises(HistoryError, match="line 2 holds an API key") as caught:
        add(history(tmp_path), f"x: 1\n# {key}\n")
    assert key not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    """Through a link, with its mode, and nothing lies about."""
    real, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    real.write_text("old")
    real.chmod(0o604)
    link.symlink_to(real)
    write_whole(link, "new\r\n")
    assert real.read_bytes() == b"new\r\n"
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o604
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("wrong", [errno.EACCES, errno.ENOSPC, errno.EROFS])
def test_a_folder_that_takes_no_file_has_no_version_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    """A history that tells of a change that nobody made would be believed."""
    file = tmp_path / "steersman.yaml"
    file.write_text(SMALL)

    def none(**_: object) -> tuple[int, str]:
        raise OSError(wrong, os.strerror(wrong))

    monkeypatch.setattr(tempfile, "mkstemp", none)
    with pytest.raises(HistoryError, match=f"cannot be written: {os.strerror(wrong)}"):
        change(file, lambda text, _: text + "# more\n", why="x", command="y")
    assert file.read_text() == SMALL
    assert [each.text for each in ConfigHistory(file).read().entries] in ([], [SMALL])


def test_a_history_that_takes_no_version_leaves_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was, and nothing beside it."""
    file = tmp_path / "steersman.yaml"
    file.write_text(SMALL)

    def none(*_: object, **__: object) -> None:
        raise HistoryError("no room")

    monkeypatch.setattr(ConfigHistory, "append", none)
    with pytest.raises(HistoryError, match="no room"):
        change(file, lambda text, _: text + "# more\n", why="x", command="y")
    assert file.read_text() == SMALL
    assert sorted(each.name for each in tmp_path.iterdir()) == [file.name, f"{file.name}.history.jsonl"]

"""The SQLite file: killed, full, broken, unwritable."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from extproc.observe.analytics import Retention, StoredRow, StoreError
from extproc.observe.analytics.spans import DAY, HOUR, MINUTE, Stretch
from extproc.observe.analytics.sqlite_store import FILE, SqliteStore

KEPT = Retention()


def entries(minutes: range, *, size: int = 10) -> list[StoredRow]:
    return [StoredRow(MINUTE, 60 * i, "w", b"k", os.urandom(size)) for i in minutes]


def count(store: SqliteStore, length_s: int = MINUTE) -> int:
    return sum(1 for _ in store.read(Stretch(length_s, 0, 10**11)))


def test_a_kill_leaves_what_was_written(tmp_path: Path) -> None:
    """kill -9 in the middle of writing: every write that returned is there, none is there in part."""
    script = (
        "import sys\n"
        "from extproc.observe.analytics import Retention, StoredRow\n"
        "from extproc.observe.analytics.sqlite_store import SqliteStore\n"
        "store = SqliteStore(sys.argv[1], bytes_max=1 << 30)\n"
        "for i in range(10**9):\n"
        "    store.write([StoredRow(60, 60 * i, 'w', b'%d' % j, b'x' * 99) for j in range(7)], Retention())\n"
        "    print(i, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= 20:
                child.send_signal(signal.SIGKILL)
                break
    store = SqliteStore(tmp_path, bytes_max=1 << 30)
    found = count(store)
    assert found >= 7 * 21
    assert found % 7 == 0
    store.close()


def test_a_full_file_gives_up_its_oldest_minutes(tmp_path: Path) -> None:
    """It never grows above its bound, hours and days stay, and what is new is written."""
    store = SqliteStore(tmp_path, bytes_max=1 << 20)
    store.write([StoredRow(HOUR, 0, "w", b"k", b"x"), StoredRow(DAY, 0, "w", b"k", b"x")], KEPT)
    for begin in range(0, 2_000, 50):
        store.write(entries(range(begin, begin + 50), size=2_000), KEPT)
    found = sorted(each.begin_s for each in store.read(Stretch(MINUTE, 0, 10**11)))
    assert found[-1] == 60 * 1_999
    assert found == list(range(found[0], 60 * 2_000, 60))
    assert store.early == 2_000 - len(found) > 0
    assert (count(store, HOUR), count(store, DAY)) == (1, 1)
    assert (tmp_path / FILE).stat().st_size <= 1 << 20
    store.close()


def test_what_does_not_fit_at_all_is_said(tmp_path: Path) -> None:
    """Nothing is left that could be given up: the write fails whole and what was there stays."""
    store = SqliteStore(tmp_path, bytes_max=1 << 20)
    store.write(entries(range(1)), KEPT)
    with pytest.raises(StoreError, match="full"):
        store.write([StoredRow(MINUTE, 0, "w", b"%d" % i, b"x" * 2_000) for i in range(1_000)], KEPT)
    assert count(store) == 1
    store.close()


def test_a_broken_file_is_set_aside(tmp_path: Path) -> None:
    """It is said, what was in it is kept for people, and a new one is begun."""
    (tmp_path / FILE).write_bytes(b"no database at all" * 1_000)
    store = SqliteStore(tmp_path, bytes_max=1 << 30)
    with pytest.raises(StoreError, match="not a database"):
        store.write(entries(range(1)), KEPT)
    store.write(entries(range(1)), KEPT)
    assert count(store) == 1
    (aside,) = tmp_path.glob(f"{FILE}.broken-*")
    assert aside.read_bytes().startswith(b"no database")
    store.close()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    """Each time, and it is tried again."""
    (tmp_path / "file").touch()
    store = SqliteStore(tmp_path / "file" / "folder", bytes_max=1 << 30)
    for _ in range(2):
        with pytest.raises(StoreError, match="Not a directory"):
            store.write(entries(range(1)), KEPT)
    (tmp_path / "file").unlink()
    store.write(entries(range(1)), KEPT)
    assert (tmp_path / "file" / "folder" / FILE).stat().st_mode & 0o077 == 0
    store.close()


def test_two_services_share_a_file(tmp_path: Path) -> None:
    """Each writes its own rows; a claim is given to one of them."""
    one, two = (SqliteStore(tmp_path, bytes_max=1 << 30) for _ in range(2))
    one.write(entries(range(2)), KEPT)
    two.write([each._replace(writer="v") for each in entries(range(3))], KEPT)
    assert count(one) == count(two) == 5
    assert one.claim(["a"]) + two.claim(["a"]) == [True, False]
    one.close()
    two.close()

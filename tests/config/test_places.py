"""places.py: where a service's socket is, by what it listens at alone."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from extproc.config.places import address_of, name_of, orders_socket, run_folder


@pytest.mark.parametrize(
    ("listen", "name"),
    [
        ("127.0.0.1:50051", "127.0.0.1_50051"),
        ("[::1]:50051", "___1__50051"),
        ("unix:/run/steersman/extproc.sock", "extproc"),
        ("unix:/run/steersman/extproc", "extproc"),
    ],
)
def test_a_service_is_called_by_what_it_listens_at(listen: str, name: str) -> None:
    """In characters that any file may have."""
    assert name_of(listen) == name


def test_the_folder_that_is_given_is_made(tmp_path: Path) -> None:
    """For its owner alone; and beside a unix socket it is that one's folder."""
    given = tmp_path / "a" / "b"
    assert run_folder("127.0.0.1:1", str(given)) == given
    assert given.stat().st_mode & 0o077 == 0
    assert run_folder(f"unix:{tmp_path}/s.sock") == tmp_path
    assert address_of("127.0.0.1:1", None) == "127.0.0.1:1"
    assert address_of("127.0.0.1:1", "/r") == f"unix:{orders_socket(Path('/r'), '127.0.0.1:1')}"


def test_a_folder_whose_path_leaves_no_room_for_a_socket_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket's path has 107 bytes: the next place is taken."""
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    short = Path(tempfile.mkdtemp(prefix="s-"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    try:
        assert run_folder("127.0.0.1:1").parent == short
    finally:
        for each in short.iterdir():
            each.rmdir()
        short.rmdir()


def test_a_folder_that_others_may_enter_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else may have made it: said, and not used."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "steersman").mkdir(mode=0o755)
    monkeypatch.setattr("extproc.config.places.SOCKET_PATH_BYTES_MAX", 300)
    with pytest.raises(OSError, match="not this user's own private folder"):
        run_folder("127.0.0.1:1")

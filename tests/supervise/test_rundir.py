"""rundir.py: a private folder that goes, one that stays, and the word where none can be had."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

import pytest

from extproc.supervise.rundir import run_directory, state_directory


def test_a_temporary_one_is_private_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything in it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with run_directory(None) as folder:
        assert folder.parent == tmp_path
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "log").touch()
    assert list(tmp_path.iterdir()) == []


def test_a_named_one_is_made_and_stays(tmp_path: Path) -> None:
    """With its parents."""
    with run_directory(tmp_path / "a" / "b") as folder:
        (folder / "log").touch()
    assert (tmp_path / "a" / "b" / "log").exists()


def test_where_there_is_no_place_for_it_the_option_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way out, not only the folders that were tried."""

    def none(**_: str) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "mkdtemp", none)
    with pytest.raises(OSError, match="name one that this user may write to") as caught, run_directory(None):
        pass
    assert caught.value.filename == "--run-dir"


def test_quotas_outlive_runs_beside_the_configuration_or_in_the_run_folder_that_is_kept(
    tmp_path: Path,
) -> None:
    """A private folder; none where nothing can be written."""
    file = tmp_path / "steersman.yaml"
    assert state_directory(file, None) == tmp_path / "steersman.yaml.state"
    assert state_directory(file, tmp_path / "run") == tmp_path / "run" / "state"
    assert stat.S_IMODE((tmp_path / "run" / "state").stat().st_mode) == 0o700
    (tmp_path / "file").touch()
    assert state_directory(tmp_path / "file" / "steersman.yaml", None) is None

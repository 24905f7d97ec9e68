"""A real redis-server of a test's own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from gateway import free_ports, listens, wait_for
from processes import Process


class Redis:
    """Context manager: a child process on a free port, which keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            reason = "no redis-server on PATH; apt-get install redis-server"
            pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
        self._port = free_ports(1)[0]
        self._arguments = [
            *(binary, "--port", str(self._port), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--save", "", "--appendonly", "no", "--daemonize", "no"),
        ]
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Start (again)."""
        self._process = Process(self._arguments, Path(os.devnull))
        wait_for("redis", lambda: listens(self._port))

    def kill(self) -> None:
        """kill -9, and wait for it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(5)
            self._process = None

    def __enter__(self) -> Redis:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

"""A real redis-server of a test's own."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from gateway import free_ports, listens, wait_for
from processes import STOP_S, Process


class Redis:
    """Context manager: a child process on a free port, which keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        """Without a redis-server the test skips with the reason, and in CI fails."""
        binary = shutil.which("redis-server")
        if binary is None:
            pytest.skip("no redis-server on PATH; apt-get install redis-server")
        self.port = free_ports(1)[0]
        self._arguments = [
            *(binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--save", "", "--appendonly", "no", "--daemonize", "no"),
        ]
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *options: str) -> None:
        """Start (again)."""
        self._process = Process([*self._arguments, *options], Path(os.devnull))
        wait_for("redis", lambda: listens(self.port))

    def command(self, *arguments: Any) -> Any:
        """One command's answer."""
        import redis

        with redis.Redis(port=self.port, socket_timeout=20, protocol=2) as client:
            return client.execute_command(*arguments)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait for it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_S)
            self._process = None

    def __enter__(self) -> Redis:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

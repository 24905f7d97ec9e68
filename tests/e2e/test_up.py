"""`steersman up`: what a user runs, with real Envoy, over simulated replicas on this loop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from extproc.demo.stand import stand, stand_config
from extproc.sim.fleet import start_replicas
from extproc.sim.spec import ReplicaSpec
from extproc.supervise.asking import ServiceLink, ServiceSilentError
from extproc.supervise.envoy import EnvoyMissingError, find_envoy

pytestmark = pytest.mark.envoy
KEY = "sk-test"
START_S_MAX = 60.0


@pytest.fixture(scope="module", autouse=True)
def envoy() -> str:
    """The real Envoy: a CI without one fails, since a skip would prove nothing."""
    try:
        return find_envoy()
    except EnvoyMissingError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


def specs(count: int = 2, **settings: Any) -> list[ReplicaSpec]:
    return [ReplicaSpec(name=f"r{i}", time_scale=5.0, seed=i, **settings) for i in range(count)]


def running_with(text: str) -> list[int]:
    """Processes that name a text in their command line (the run folder's, unique to a test)."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if text in command:
            found.append(int(entry.name))
    return found


async def until(
    condition: Callable[[], Any], *, s_max: float, what: str, said: Callable[[], str] = str
) -> None:
    deadline = time.monotonic() + s_max
    while not condition():
        assert time.monotonic() < deadline, f"not within {s_max} s: {what}\n{said()}"
        await asyncio.sleep(0.05)


class Up:
    """A running `steersman up`."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self.file = folder / "steersman.yaml"
        self.write(config)
        self.run_dir = folder / "run"
        self.url = f"http://{config['gateway']['listen']}"
        self.ports = [
            int(address.rpartition(":")[2])
            for address in (config["gateway"]["listen"], config["gateway"]["envoy_admin"])
        ]
        self.log = folder / "up.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "extproc.cli", "up", "-f", str(self.file)),
                    *("--run-dir", str(self.run_dir), "--concurrency", "1", "--no-table"),
                ],
                stdout=log,
                stderr=log,
            )

    def write(self, config: dict[str, Any]) -> None:
        self.file.write_text(yaml.safe_dump(config), encoding="utf-8")

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def times_said(self, text: str) -> int:
        return self.said().count(text)

    def pid_of(self, child: str) -> int:
        """The child's process, from its last `(pid N)` line."""
        lines = [line for line in self.said().splitlines() if f"{child}: ready" in line]
        return int(lines[-1].partition("(pid ")[2].rstrip(")"))

    async def ask(self, session: aiohttp.ClientSession, *, tokens: int = 3, model: str | None = None) -> int:
        headers = {"Authorization": f"Bearer {KEY}"} | ({"x-model": model} if model else {})
        body = {"inputs": f"ahoy [[sim:out={tokens}]]", "parameters": {"max_new_tokens": tokens}}
        try:
            async with session.post(self.url + "/generate", json=body, headers=headers) as answer:
                await answer.read()
                return answer.status
        except aiohttp.ClientConnectionError:
            return 0

    async def ask_until_decided(
        self, session: aiohttp.ClientSession, *, other_than: tuple[int, ...] = (0, 503)
    ) -> int:
        """503 until Envoy's health check (every 0.5 s) has noticed that the service is back."""
        for _ in range(200):
            if (status := await self.ask(session)) not in other_than:
                return status
            await asyncio.sleep(0.05)
        return status

    async def wait(self, s_max: float = 15.0) -> int:
        await until(lambda: self.process.poll() is not None, s_max=s_max, what="an end", said=self.said)
        return int(self.process.returncode)


@asynccontextmanager
async def up(
    folder: Path, settings: dict[str, Any] | None = None
) -> AsyncIterator[tuple[Up, dict[str, Any]]]:
    """Two replicas and a `steersman up` that serves."""
    async with await start_replicas(specs()) as replicas:
        config = stand_config({"chat": replicas.addresses}, keys={"acme": KEY}, settings=settings)
        running = Up(folder, config)
        try:
            await until(
                lambda: "serving at" in running.said() or running.process.poll() is not None,
                s_max=START_S_MAX,
                what="a start",
                said=running.said,
            )
            assert running.process.poll() is None, running.said()
            yield running, config
        finally:
            if running.process.poll() is None:
                running.process.kill()
                running.process.wait()


def test_a_killed_service_comes_back_and_traffic_goes_on(tmp_path: Path) -> None:
    """kill -9 of the service: it is restarted, requests are served again; SIGTERM ends with 0, ports free."""

    async def main() -> None:
        async with up(tmp_path) as (gateway, _), aiohttp.ClientSession() as session:
            assert await gateway.ask(session) == 200
            old = gateway.pid_of("service")
            os.kill(old, signal.SIGKILL)
            await until(
                lambda: gateway.times_said("service: ready") == 2,
                s_max=15,
                what=f"a restart\n{gateway.said()}",
            )
            assert "service: was killed by SIGKILL; restart 1 of 5" in gateway.said()
            assert gateway.pid_of("service") != old
            assert await gateway.ask_until_decided(session) == 200
            # A request that runs when the stop begins is served to its end.
            late = asyncio.create_task(gateway.ask(session, tokens=200))
            await asyncio.sleep(0.15)
            gateway.process.send_signal(signal.SIGTERM)
            assert await late == 200
            assert await gateway.wait() == 0, gateway.said()
            for port in gateway.ports:
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
            assert running_with(str(gateway.run_dir)) == []

    asyncio.run(main())


def test_a_bad_reload_changes_nothing_and_a_crash_still_has_the_last_good_one(tmp_path: Path) -> None:
    """SIGHUP with a broken file keeps serving, even through a crash of the service; a good one applies."""

    async def main() -> None:
        async with up(tmp_path) as (gateway, config), aiohttp.ClientSession() as session:
            gateway.file.write_text("pools: []\nwhat: 1\n", encoding="utf-8")
            gateway.process.send_signal(signal.SIGHUP)
            refused = "reload refused, the last good configuration stays"
            await until(
                lambda: gateway.times_said(refused) >= 2, s_max=15, what="refusals", said=gateway.said
            )
            assert await gateway.ask(session) == 200
            os.kill(gateway.pid_of("service"), signal.SIGKILL)
            await until(
                lambda: gateway.times_said("service: ready") == 2,
                s_max=20,
                what="a restart",
                said=gateway.said,
            )
            config["tenants"] = [{"name": "other", "keys": [{"sha256": "0" * 64}]}]
            gateway.write(config)
            gateway.process.send_signal(signal.SIGHUP)
            # Until the service has taken it, the old key is good.
            assert await gateway.ask_until_decided(session, other_than=(0, 200, 503)) == 401
            assert gateway.times_said(f"reloaded {gateway.file}") == 1
            gateway.process.send_signal(signal.SIGINT)
            assert await gateway.wait() == 0

    asyncio.run(main())


def test_a_reload_adds_an_endpoint_and_a_pool_that_take_traffic_and_nothing_restarts(tmp_path: Path) -> None:
    """SIGHUP alone: no process is replaced, a running stream goes on, both are served through Envoy."""

    async def main() -> None:
        async with (
            await start_replicas([ReplicaSpec(name=f"new{i}", time_scale=5.0) for i in range(2)]) as more,
            up(tmp_path) as (gateway, config),
            aiohttp.ClientSession() as session,
        ):
            assert await gateway.ask(session) == 200
            pids = [gateway.pid_of(child) for child in ("service", "envoy")]
            running = asyncio.create_task(gateway.ask(session, tokens=1500))
            second, third = more.addresses
            config["pools"][0]["endpoints"].append({"address": second})
            config["pools"].append({"name": "code", "models": ["code"], "endpoints": [{"address": third}]})
            gateway.write(config)
            gateway.process.send_signal(signal.SIGHUP)
            link = ServiceLink(config["service"]["listen"][0])
            served: dict[str, int] = {}
            deadline_s = time.monotonic() + 10
            while not (served.get(second) and served.get(third)):
                assert time.monotonic() < deadline_s, f"{served}\n{gateway.said()}"
                statuses = await asyncio.gather(
                    *(gateway.ask(session, tokens=20) for _ in range(4)),
                    gateway.ask(session, model="code"),
                )
                assert set(statuses[:4]) == {200}
                # Nobody knows the new model at first, and then Envoy does not know its endpoint yet.
                assert statuses[4] in (200, 404, 503)
                served = {each["address"]: each["ok"] for each in (await link.status())["endpoints"]}
            await link.close()
            assert await running == 200
            assert [gateway.pid_of(child) for child in ("service", "envoy")] == pids
            assert "restart 1" not in gateway.said()
            assert "needs a restart" not in gateway.said()

    asyncio.run(main())


def test_kill_nine_of_up_leaves_nothing_behind(tmp_path: Path) -> None:
    """The children die with their parent even when it cannot say so; over a unix socket, and again."""
    path = tmp_path / "s.sock"
    settings = {"service": {"listen": [f"unix:{path}"]}}

    async def main() -> None:
        for _ in range(2):  # the second start finds the first one's stale socket
            async with up(tmp_path, settings) as (gateway, _), aiohttp.ClientSession() as session:
                assert await gateway.ask(session) == 200
                link = ServiceLink(f"unix:{path}")
                assert (await link.status())["tenants"]["acme"]["decided"] == 1
                assert len(running_with(str(gateway.run_dir))) == 3
                gateway.process.kill()
                gateway.process.wait()
                await until(lambda: not running_with(str(tmp_path / "run")), s_max=3, what="an end of all")
                with pytest.raises(ServiceSilentError):
                    await link.status()
                await link.close()
            assert path.exists()

    asyncio.run(main())


def test_a_taken_port_is_named_with_its_setting(tmp_path: Path) -> None:
    """Nothing is started when an address is taken; the message names the setting and what to do."""
    config = stand_config({"chat": ["127.0.0.1:9"]}, keys={"acme": KEY})
    host, _, port = config["gateway"]["listen"].rpartition(":")
    with socket.socket() as taken:
        taken.bind((host, int(port)))
        taken.listen()
        gateway = Up(tmp_path, config)
        assert asyncio.run(gateway.wait()) == 1
    assert f"gateway.listen: {host}:{port} is taken by another process" in gateway.said()
    assert "Traceback" not in gateway.said()


def test_a_stand_serves_and_tells_its_status(tmp_path: Path) -> None:
    """The context manager that other end-to-end tests use: replicas, service and Envoy in one."""

    async def main() -> None:
        async with (
            stand(tmp_path, {"chat": specs(2)}, tenants=("acme", "globex")) as whole,
            aiohttp.ClientSession() as session,
        ):
            body = {"model": "chat", "messages": [{"role": "user", "content": "[[sim:out=4]]"}]}
            headers = {"Authorization": f"Bearer {whole.keys['globex']}"}
            url = whole.url + "/v1/chat/completions"
            async with session.post(url, json=body, headers=headers) as answer:
                assert answer.status == 200
                assert (await answer.json())["usage"]["completion_tokens"] == 4
            assert "globex" in (await whole.status())["tenants"]
        assert running_with(str(tmp_path)) == []

    asyncio.run(main())

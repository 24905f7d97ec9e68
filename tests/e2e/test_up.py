"""`steersman up`: what a user runs, with real Envoy, over simulated replicas on this loop."""

from __future__ import annotations

import asyncio
import copy
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from gateway import envoy_binary, wait_for
from processes import INSTALLED, Process, steersman
from replicas import Replicas

from extproc.core.tenant import hash_key
from extproc.sim.listening import start_replicas
from extproc.sim.spec import ReplicaSpec
from extproc.state.kept_file import NAME
from extproc.state.kept_lines import read
from extproc.supervise.asking import ServiceLink, ServiceSilentError
from tests.stand.gateway_stand import stand, stand_config

pytestmark = pytest.mark.envoy
KEY = "sk-test-up"
WAIT_S_MAX = 60.0
#: It comes back at a token in half a minute.
BUDGET = 100_000.0


@pytest.fixture(scope="module", autouse=True)
def envoy() -> str:
    """The real Envoy: a CI without one fails, since a skip would prove nothing."""
    return envoy_binary()


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


async def until(condition: Callable[[], Any], *, what: str, said: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S_MAX} s: {what}\n{said()}"
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
        self.log.unlink(missing_ok=True)
        arguments = ["up", "-f", str(self.file), "--run-dir", str(self.run_dir), "--concurrency", "1"]
        self.process = Process([INSTALLED, *arguments, "--no-table"], self.log)

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
        deadline = time.monotonic() + WAIT_S_MAX
        while True:
            if (status := await self.ask(session)) not in other_than:
                return status
            if time.monotonic() > deadline:
                return status
            await asyncio.sleep(0.05)

    async def kill_service(self) -> int:
        """kill -9 of the service, and wait for its successor; the old process's number."""
        old, times = self.pid_of("service"), self.times_said("service: ready")
        os.kill(old, signal.SIGKILL)
        await until(
            lambda: self.times_said("service: ready") > times and self.pid_of("service") != old,
            what="a restart",
            said=self.said,
        )
        return old

    async def wait(self) -> int:
        await until(lambda: self.process.poll() is not None, what="an end", said=self.said)
        assert self.process.returncode is not None
        return self.process.returncode


@contextmanager
def up(
    folder: Path, settings: dict[str, Any] | None = None, *, pool: dict[str, Any] | None = None
) -> Iterator[tuple[Up, dict[str, Any]]]:
    """Two replicas and a `steersman up` that serves."""
    with Replicas(specs()) as replicas:
        config = stand_config({"chat": replicas.addresses}, keys={"acme": KEY}, settings=settings)
        config["pools"][0] |= pool or {}
        running = Up(folder, config)
        try:
            wait_for("a start", lambda: "serving at" in running.said() or running.process.poll() is not None)
            assert running.process.poll() is None, running.said()
            yield running, config
        finally:
            running.process.kill()
            running.process.wait()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Up, dict[str, Any]]]:
    """One for what does not end it: each test leaves it as it was. Ctrl-C ends it with 0; nothing is left."""
    acme = {"name": "acme", "keys": [{"sha256": hash_key(KEY)}], "quota": {"budget_per_month": BUDGET}}
    price = {"price": {"output_per_million": 1_000_000.0}}
    with up(tmp_path_factory.mktemp("up"), {"tenants": [acme]}, pool=price) as (gateway, config):
        yield gateway, config
        gateway.process.send_signal(signal.SIGINT)
        assert asyncio.run(gateway.wait()) == 0, gateway.said()
        assert "Traceback" not in gateway.said()
        assert running_with(str(gateway.run_dir)) == []


def test_a_killed_service_forgets_no_quota_and_charges_what_ran_across_it_once(
    shared: tuple[Up, dict[str, Any]],
) -> None:
    """kill -9 while an answer is made: the month's budget is what it was, and its end corrects it once."""
    gateway, config = shared
    running = gateway.run_dir / "state" / NAME

    async def used(link: ServiceLink) -> float:
        limits = (await link.status())["use"]["tenants"]["acme"]["limits"]
        return float(next(each["used"] for each in limits if each["limit"] == "budget_per_month"))

    def own(others: set[str]) -> set[str]:
        return set(read(running).state.held) - others

    async def becomes(link: ServiceLink, expected: float) -> None:
        deadline_s = time.monotonic() + WAIT_S_MAX
        while abs((found := await used(link)) - expected) > 2:
            assert time.monotonic() < deadline_s, f"{found} is not {expected}\n{gateway.said()}"
            await asyncio.sleep(0.05)

    async def main() -> None:
        link = ServiceLink(config["service"]["listen"][0])
        async with aiohttp.ClientSession() as session:
            assert await gateway.ask_until_decided(session) == 200
            # What an earlier test's kill left is held until it expires.
            others = set(read(running).state.held)
            before = await used(link)
            assert await gateway.ask(session, tokens=400) == 200
            await becomes(link, before + 400)
            await until(lambda: not own(others), what="its end written", said=gateway.said)
            for tokens in (3_000, 12_000, 24_000):
                across = asyncio.create_task(gateway.ask(session, tokens=tokens))
                await until(lambda: own(others), what="its place in the journal", said=gateway.said)
                await gateway.kill_service()
                # On a machine where a start takes longer than this answer, a longer one is asked for.
                if not across.done():
                    break
                others.update(own(others))
                before = await used(link) - 400
            assert not across.done()
            assert await used(link) >= before + 398
            assert await across == 200
            await becomes(link, before + 400 + tokens)
            # As the next tests find it.
            assert await gateway.ask_until_decided(session) == 200
        await link.close()

    asyncio.run(main())


def test_a_killed_service_comes_back_and_traffic_goes_on(shared: tuple[Up, dict[str, Any]]) -> None:
    """kill -9 of the service: it is restarted, and requests are served again."""
    gateway, _ = shared

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            assert await gateway.ask_until_decided(session) == 200
            old = await gateway.kill_service()
            assert re.search(r"service: was killed by SIGKILL; restart \d+ in", gateway.said())
            assert gateway.pid_of("service") != old
            assert await gateway.ask_until_decided(session) == 200

    asyncio.run(main())


def test_a_bad_reload_changes_nothing_and_a_crash_still_has_the_last_good_one(
    shared: tuple[Up, dict[str, Any]],
) -> None:
    """SIGHUP with a broken file keeps serving, even through a crash of the service; a good one applies, and
    is undone by a rollback."""
    gateway, config = shared

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            assert await gateway.ask_until_decided(session) == 200
            refused, reloaded = (
                "reload refused, the last good configuration stays",
                f"reloaded {gateway.file}",
            )
            refusals, reloads = gateway.times_said(refused), gateway.times_said(reloaded)
            gateway.file.write_text("pools: []\nwhat: 1\n", encoding="utf-8")
            gateway.process.send_signal(signal.SIGHUP)
            await until(
                lambda: gateway.times_said(refused) >= refusals + 2, what="refusals", said=gateway.said
            )
            assert await gateway.ask(session) == 200
            await gateway.kill_service()
            gateway.write({**config, "tenants": [{"name": "other", "keys": [{"sha256": "0" * 64}]}]})
            gateway.process.send_signal(signal.SIGHUP)
            # Until the service has taken it, the old key is good.
            assert await gateway.ask_until_decided(session, other_than=(0, 200, 503)) == 401
            assert gateway.times_said(reloaded) == reloads + 1
            # The first version is what `up` was started with; a rollback needs no signal.
            where = ("-f", str(gateway.file))
            await asyncio.to_thread(steersman, "config", "rollback", "1", "--why", "undo", *where)
            assert gateway.file.read_text(encoding="utf-8") == yaml.safe_dump(config)
            assert await gateway.ask_until_decided(session, other_than=(0, 401, 503)) == 200

    asyncio.run(main())


def test_a_reload_adds_an_endpoint_and_a_pool_that_take_traffic_and_nothing_restarts(
    shared: tuple[Up, dict[str, Any]],
) -> None:
    """SIGHUP alone: no process is replaced, a running stream goes on, both are served through Envoy."""
    gateway, config = shared

    async def main() -> None:
        async with (
            await start_replicas([ReplicaSpec(name=f"new{i}", time_scale=5.0) for i in range(2)]) as more,
            aiohttp.ClientSession() as session,
        ):
            assert await gateway.ask_until_decided(session) == 200
            pids = [gateway.pid_of(child) for child in ("service", "envoy")]
            restarts = gateway.times_said("; restart ")
            running = asyncio.create_task(gateway.ask(session, tokens=1500))
            second, third = more.addresses
            larger = copy.deepcopy(config)
            larger["pools"][0]["endpoints"].append({"address": second})
            larger["pools"].append({"name": "code", "models": ["code"], "endpoints": [{"address": third}]})
            gateway.write(larger)
            gateway.process.send_signal(signal.SIGHUP)
            link = ServiceLink(config["service"]["listen"][0])
            served: dict[str, int] = {}
            deadline_s = time.monotonic() + WAIT_S_MAX
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
            assert gateway.times_said("; restart ") == restarts
            gateway.write(config)
            gateway.process.send_signal(signal.SIGHUP)
            while await gateway.ask(session, model="code") != 404:
                assert time.monotonic() < deadline_s, gateway.said()

    asyncio.run(main())


@pytest.mark.soak
def test_kill_nine_of_up_leaves_nothing_behind_and_sigterm_cuts_nothing(tmp_path: Path) -> None:
    """Killed, its children die with it, and a second start takes its stale socket over; SIGTERM lets what
    runs end, exits with 0, frees the ports."""
    path = tmp_path / "s.sock"
    settings = {"service": {"listen": [f"unix:{path}"]}}

    async def served(gateway: Up, session: aiohttp.ClientSession) -> None:
        assert await gateway.ask(session) == 200
        link = ServiceLink(f"unix:{path}")
        assert (await link.status())["tenants"]["acme"]["decided"] == 1
        await link.close()
        assert len(running_with(str(gateway.run_dir))) == 3

    async def killed(gateway: Up) -> None:
        async with aiohttp.ClientSession() as session:
            await served(gateway, session)
            gateway.process.kill()
            gateway.process.wait()
            await until(lambda: not running_with(str(gateway.run_dir)), what="an end of all")
            link = ServiceLink(f"unix:{path}")
            with pytest.raises(ServiceSilentError):
                await link.status()
            await link.close()
        assert path.exists()

    async def ended(gateway: Up) -> None:
        async with aiohttp.ClientSession() as session:
            await served(gateway, session)
            link = ServiceLink(f"unix:{path}")
            late = asyncio.create_task(gateway.ask(session, tokens=200))
            while (await link.status())["in_flight"] == 0:
                assert not late.done()
            await link.close()
            gateway.process.send_signal(signal.SIGTERM)
            assert await late == 200
            assert await gateway.wait() == 0, gateway.said()
        for port in gateway.ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        assert running_with(str(gateway.run_dir)) == []

    for then in (killed, ended):
        with up(tmp_path, settings) as (gateway, _):
            asyncio.run(then(gateway))


def test_a_taken_port_is_named_with_its_setting(tmp_path: Path) -> None:
    """Nothing is started when an address is taken; the message names the setting and what to do."""
    config = stand_config({"chat": ["127.0.0.1:9"]}, keys={"acme": KEY})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        host, port = taken.getsockname()
        config["gateway"]["listen"] = f"{host}:{port}"
        gateway = Up(tmp_path, config)
        assert asyncio.run(gateway.wait()) == 1
    assert f"gateway.listen: {host}:{port} is taken by another process" in gateway.said()
    assert "Traceback" not in gateway.said()


@pytest.mark.soak
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

"""A live `steersman demo`, broken in every way on request: `steersman fleet` follows, clients do not notice.

One demo for all of it, in the order of the file: starting one costs more than breaking it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import steersman

from extproc.supervise.envoy import EnvoyMissingError, find_envoy

#: By conftest.py: also where the order of tests is random.
IN_ORDER = True
pytestmark = [pytest.mark.envoy, pytest.mark.slow, pytest.mark.timeout(400)]
#: How long the fleet may take to show a fault, or its end, on a machine that does much else.
START_S = 200.0
FOLLOWS_S = SLOW_FOLLOWS_S = HEALS_S = 60.0
ABSENT: dict[str, Any] = {
    **dict.fromkeys(("announced", "ready", "draining"), False),
    **dict.fromkeys(("state", "age_ms", "node", "zone")),
    "health": 0.0,
    "causes": {},
    "gpus": [],
    "ok": 0,
    "running": 0,
}
CHAT_A, CHAT_H, CODE_A, CODE_H = range(4)


class LiveDemo:
    """A running demo without a terminal, and the commands that a person would type beside it."""

    def __init__(self, folder: Path) -> None:
        here = folder / "here"
        here.mkdir()
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
        self.environment.pop("STEERSMAN_ADDRESS", None)
        self.lines: list[str] = []
        self._watching: subprocess.Popen[str] | None = None
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "extproc.cli", "demo", "--no-faults"),
                *("--run-dir", str(folder / "run")),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=here,
            env=self.environment,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        try:
            self._begin()
        except BaseException:
            self.stop()
            raise

    def _begin(self) -> None:
        self.until(
            lambda: any("was in no list" in line for line in self.lines), s_max=START_S, what="traffic"
        )
        self.addresses = re.findall(
            r"^  \d  \S+ +(\S+)  node", self.command("demo-fault", "--list"), re.MULTILINE
        )
        self.service = re.findall(r"service at (\S+)", self.command("demo-fault", "--list"))[0]
        assert len(self.addresses) == 4

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def command(self, *arguments: str) -> str:
        """A command's output; it must succeed."""
        return steersman(*arguments, environment=self.environment)

    def fault(self, *arguments: str) -> None:
        said = self.command("demo-fault", *arguments)
        assert said.startswith("did: ")
        assert "watch: " in said

    def watch(self) -> None:
        """Run `steersman fleet --json --watch`, anew where a service's end has ended it."""
        if self._watching is not None and self._watching.poll() is None:
            return
        self.end_watch()
        self._watching = subprocess.Popen(
            [*(sys.executable, "-m", "extproc.cli", "fleet", "--json", "--watch"), "--address", self.service],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self.environment,
        )

    def end_watch(self) -> None:
        if self._watching is not None:
            self._watching.kill()
            self._watching.communicate()
            self._watching = None

    def fleet(self) -> list[dict[str, Any]]:
        """The endpoints as told from now on, by their numbers; one that is not in the fleet is ABSENT."""
        asked_unix_s = time.time()
        told: dict[str, Any] = {"at": 0.0}
        while told["at"] < asked_unix_s:
            self.watch()
            assert self._watching is not None
            assert self._watching.stdout is not None
            if not (line := self._watching.stdout.readline()):
                return [ABSENT] * 4
            told = json.loads(line)
        found = {endpoint["address"]: endpoint for endpoint in told["endpoints"]}
        return [found.get(address, ABSENT) for address in self.addresses]

    def sees(
        self, seen: Callable[[list[dict[str, Any]]], bool], *, what: str, s_max: float = FOLLOWS_S
    ) -> None:
        """Wait until `steersman fleet --json --watch` shows it."""
        began_s = time.monotonic()
        while not seen(fleet := self.fleet()):
            short = [{k: each[k] for k in ("health", "state", "age_ms", "causes")} for each in fleet]
            told = f"not within {s_max} s: {what}\n{json.dumps(short, indent=1)}"
            assert time.monotonic() - began_s < s_max, told

    @property
    def failed(self) -> int:
        """Requests that clients saw fail, by the demo's next line."""
        before = len(self.lines)
        found: list[str] = []

        def told() -> bool:
            found[:] = [line for line in self.lines[before:] if "sent" in line]
            return bool(found)

        self.until(told, s_max=FOLLOWS_S, what="a line of figures")
        return sum(int(count) for count in re.findall(r"failed (\d+)", found[-1]))

    def until(self, condition: Callable[[], bool], *, s_max: float, what: str) -> None:
        deadline_s = time.monotonic() + s_max
        while not condition():
            assert time.monotonic() < deadline_s, f"not within {s_max} s: {what}\n{''.join(self.lines)}"
            assert self.process.poll() is None, "".join(self.lines)
            time.sleep(0.05)

    def stop(self) -> int:
        self.end_watch()
        self.process.terminate()
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join()
            assert self.process.stdout is not None
            self.process.stdout.close()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDemo]:
    """Fails where CI has no Envoy: a skip would prove nothing."""
    try:
        find_envoy()
    except EnvoyMissingError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("demo")
    demo = LiveDemo(folder)
    try:
        yield demo
    finally:
        code = demo.stop()
    assert code == 0, "".join(demo.lines)
    assert "Traceback" not in "".join(demo.lines)
    assert list((folder / "steersman-demo").iterdir()) == []


def test_a_replica_in_no_list_is_registered_by_its_agent_and_served(live: LiveDemo) -> None:
    """The fourth; all are healthy, told of within the heartbeat, with their cards."""
    assert any("4 strong-h100 was in no list: node-h registered it" in line for line in live.lines)
    live.sees(
        lambda now: all(each["announced"] and each["state"] == "ready" for each in now), what="all are ready"
    )
    fleet = live.fleet()
    assert [each["node"] for each in fleet] == ["node-a", "node-h", "node-a", "node-h"]
    assert [each["zone"] for each in fleet] == ["zone-a", "zone-h", "zone-a", "zone-h"]
    assert all(len(each["gpus"]) == 1 and each["gpus"][0]["memory_used_bytes"] for each in fleet)
    live.sees(lambda now: now[CODE_H]["ok"] > 0, what="the registered one serves", s_max=FOLLOWS_S)


def test_gpu_faults_move_health_and_no_client_notices(live: LiveDemo) -> None:
    """XID 79 silences, ECC errors halve, heat leaves the clock's share; a drain is a drain."""
    live.fault("xid=79", "cheap-a100")
    live.fault("throttle=0.3", "3")
    live.sees(
        lambda now: (
            now[CHAT_A]["health"] == 0.0
            and now[CHAT_A]["causes"]["gpu xid 79"]["kind"] == "hard"
            and now[CHAT_A]["gpus"][0]["lost"]
            and now[CODE_A]["health"] <= 0.31
            and now[CODE_A]["causes"]["gpu throttle"]["factor"] == 0.3
        ),
        what="XID and throttle",
    )
    live.fault("ecc", "2")
    live.fault("drain", "4")
    live.sees(
        lambda now: (
            now[CHAT_H]["causes"].get("gpu ecc", {}).get("factor") == 0.5
            and now[CODE_H]["draining"]
            and not now[CODE_H]["ready"]
        ),
        what="ECC and drain",
    )
    live.fault("clear")
    live.sees(
        lambda now: (
            all(each["ready"] for each in now)
            and not any(name.startswith("gpu") for each in now for name in each["causes"])
        ),
        what="clear",
    )


@pytest.mark.soak
def test_silent_agents_and_stragglers_are_suspects_and_no_client_notices(live: LiveDemo) -> None:
    """A halted agent's figures go stale and its replicas serve on; a killed one is back; slow is seen."""
    before = live.fleet()
    live.fault("slow", "cheap-a100")
    live.fault("agent=stop", "node-h")
    live.sees(
        lambda now: "telemetry" in now[CHAT_H]["causes"] and now[CHAT_H]["ready"] and now[CODE_H]["ready"],
        what="a silent agent",
    )
    live.sees(
        lambda now: (
            ("latency" in now[CHAT_A]["causes"] and now[CHAT_A]["health"] < 0.9)
            # What steer itself learns of its speed; or it had no use for it, and so nothing to learn.
            or now[CHAT_A]["speed_factor"] > 1.5
            or now[CHAT_H]["ok"] - before[CHAT_H]["ok"] > 20 + 4 * (now[CHAT_A]["ok"] - before[CHAT_A]["ok"])
        ),
        what="a straggler",
        s_max=SLOW_FOLLOWS_S,
    )
    live.fault("clear")
    live.sees(lambda now: (now[CHAT_H]["age_ms"] or 1e9) < 1500, what="the agent is back")
    live.fault("agent=kill", "node-a")
    live.until(
        lambda: any("agent node-a: was killed by SIGKILL" in line for line in live.lines),
        s_max=FOLLOWS_S,
        what="a death",
    )
    live.sees(lambda now: (now[CODE_A]["age_ms"] or 1e9) < 1500, what="the agent is back")
    assert live.failed == 0


def test_a_hung_and_a_crashed_replica_lose_at_most_what_ran_there(live: LiveDemo) -> None:
    """Both are silenced within seconds; whatever was asked afterwards is served."""
    ran = sum(each["running"] or 0 for each in live.fleet())
    live.fault("crash", "2")
    live.fault("hang", "3")
    live.sees(
        lambda now: (
            (now[CHAT_H]["state"], now[CHAT_H]["health"]) == ("gone", 0.0)
            and (now[CODE_A]["state"], now[CODE_A]["health"]) == ("hung", 0.0)
        ),
        what="hung and gone",
    )
    assert live.failed <= ran + 8
    live.fault("clear")
    live.sees(lambda now: now[CHAT_H]["ready"] and now[CODE_A]["ready"], what="back", s_max=FOLLOWS_S)


@pytest.mark.soak
def test_a_killed_service_comes_back_and_knows_the_fleet_again(live: LiveDemo) -> None:
    """Also the replica that was registered; and after `clear` everything is whole."""
    live.fault("service")
    live.until(
        lambda: sum("service: ready" in line for line in live.lines) == 2, s_max=FOLLOWS_S, what="a restart"
    )
    live.fault("clear")
    live.sees(lambda now: all(each["state"] == "ready" for each in now), what="all are known")
    live.sees(
        lambda now: all(each["ready"] and each["health"] > 0.75 for each in now), what="healed", s_max=HEALS_S
    )
    before = live.failed
    assert live.failed == before

"""One running demo for the tests of this folder: starting one costs more than breaking it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from processes import steersman

#: How long the fleet may take to show a fault, or its end, on a machine that does much else.
START_S = 200.0
FOLLOWS_S = SLOW_FOLLOWS_S = HEALS_S = 60.0
#: Half of what a person sees: the traffic is what costs.
SPEED = "1"
ABSENT: dict[str, Any] = {
    **dict.fromkeys(("announced", "ready", "draining"), False),
    **dict.fromkeys(("state", "age_ms", "node", "zone")),
    "health": 0.0,
    "causes": {},
    "gpus": [],
    "ok": 0,
    "running": 0,
}


class LiveDemo:
    """A running demo without a terminal, and the commands that a person would type beside it."""

    def __init__(self, folder: Path) -> None:
        self.run_dir = folder / "run"
        here = folder / "here"
        here.mkdir()
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
        self.environment.pop("STEERSMAN_ADDRESS", None)
        self.lines: list[str] = []
        self._watching: subprocess.Popen[str] | None = None
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "extproc.cli", "demo", "--no-table", "--no-faults"),
                *("--speed", SPEED, "--run-dir", str(self.run_dir)),
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
        self.url = re.findall(r"page to look at: (\S+)", "".join(self.lines))[0]
        self.token = self.url.partition("#token=")[2]
        self.api = self.url.partition("#")[0] + "api/v1/"

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

    def get(self, path: str) -> Any:
        """An answer of the page's API."""
        with urllib.request.urlopen(self.api + path, timeout=10) as answer:
            return json.load(answer)

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

"""Every documented installation, for real: `python tests/installs/installs.py` (`make installs`).

Builds the source distribution and the wheel out of it, installs the wheel with each set of extras into an
empty virtual environment, on the oldest and the newest Python that are found, and does there what the pages
say: help, `check`, `serve` to ready, `init` and `up` with the real Envoy to a first answer, `demo`, `agent`.
What a set lacks has to say so in one line and exit 2. Needs Python's standard library and the package index;
`uv` makes it quick, where it is on PATH or can be installed. Exits 1 with every failure named.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import urllib.error
import urllib.request
import venv
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]
#: The base, each extra alone, and the sets that pages name.
SETS = [(), *((extra,) for extra in EXTRAS), ("charts", "envoy", "redis")]
OLDEST = (3, 11)
#: How long each step may take on a busy machine.
STEP_S = 240.0
PACKAGES = {"extproc", "steersman_agent"}
CONFIG = """
gateway: {{auth: none, listen: "127.0.0.1:{0}", envoy_admin: "127.0.0.1:{1}", services: ["127.0.0.1:{2}"]}}
service: {{listen: ["127.0.0.1:{2}"]}}
admin: {{listen: "127.0.0.1:{3}"}}
pools: [{{name: p, models: [m], endpoints: [{{address: "127.0.0.1:{4}"}}]}}]
"""
#: What an extra is for, in a configuration.
SECTIONS = {
    "redis": "sharing: {redis: 'redis://127.0.0.1:1/0'}\n",
    "otel": "otel: {endpoint: 'http://127.0.0.1:1'}\n",
}


class WrongError(Exception):
    """A step did not do what the pages say."""


def run(*argv: str | Path, cwd: Path, code: int = 0, env: dict[str, str] | None = None) -> str:
    """A command's output, both streams; WrongError for another exit code, and for any traceback."""
    try:
        done = subprocess.run(
            list(map(str, argv)),
            cwd=cwd,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=STEP_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise WrongError(f"{shown(argv)}: not done within {STEP_S:.0f} s\n{error.output}") from None
    if done.returncode != code or "Traceback" in done.stdout:
        raise WrongError(f"{shown(argv)}: exit code {done.returncode}, not {code}\n{done.stdout[-2000:]}")
    return done.stdout


def shown(argv: Sequence[str | Path]) -> str:
    """For people."""
    return " ".join([Path(argv[0]).name, *map(str, argv[1:])])


#: Process groups of their own, which a signal to this one does not reach.
_ALIVE: set[int] = set()


def end_all(*_: object) -> None:
    """At SIGTERM: nothing that was started stays."""
    for pid in list(_ALIVE):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    os._exit(128 + signal.SIGTERM)


@contextlib.contextmanager
def running(*argv: str | Path, cwd: Path, env: dict[str, str]) -> Iterator[Callable[[], str]]:
    """A program meanwhile, ended by SIGINT. Yields its output so far; that raises WrongError if it ended."""
    log = cwd / f"{Path(argv[1]).name}.log"
    with log.open("wb") as out:
        child = subprocess.Popen(
            list(map(str, argv)), cwd=cwd, env=env, stdout=out, stderr=out, start_new_session=True
        )
    _ALIVE.add(child.pid)

    def said() -> str:
        text = log.read_text(errors="replace")
        if child.poll() is not None:
            raise WrongError(f"{shown(argv)}: ended with exit code {child.returncode}\n{text[-2000:]}")
        return text

    try:
        yield said
        said()
        child.send_signal(signal.SIGINT)
        if child.wait(60) != 0 or "Traceback" in log.read_text(errors="replace"):
            raise WrongError(
                f"{shown(argv)}: did not end well: {child.returncode}\n{log.read_text()[-2000:]}"
            )
    finally:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        _ALIVE.discard(child.pid)


def until(what: str, found: Callable[[], object], *, alive: Callable[[], str]) -> None:
    """Wait until something is so, while a program lives."""
    end = time.monotonic() + STEP_S
    while not found():
        text = alive()
        if time.monotonic() > end:
            raise WrongError(f"{what}: not within {STEP_S:.0f} s\n{text[-2000:]}")
        time.sleep(0.2)


def fetch(url: str, *, key: str = "", body: object = None) -> tuple[int, bytes]:
    """Status and body; 0 where nobody answers."""
    request = urllib.request.Request(url, data=None if body is None else json.dumps(body).encode())
    request.add_header("content-type", "application/json")
    if key:
        request.add_header("authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


_TAKEN: set[int] = set()
_LOCK = threading.Lock()


def ports(count: int) -> list[int]:
    """Free ones, each given out once by this run."""
    found: list[int] = []
    with _LOCK, contextlib.ExitStack() as held:
        while len(found) < count:
            listener = held.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
            if port not in _TAKEN:
                _TAKEN.add(port)
                found.append(port)
    return found


@dataclass(frozen=True)
class Tools:
    """`uv`, or None: plain pip then. `folder` has what is made meanwhile."""

    folder: Path
    uv: str | None = None

    @classmethod
    def found(cls, folder: Path, *, plain: bool) -> Tools:
        """uv from PATH, else into an environment of its own, else none."""
        if plain:
            return cls(folder)
        if (uv := shutil.which("uv")) is not None:
            return cls(folder, uv)
        venv.create(folder / "uv", with_pip=True)
        try:
            run(folder / "uv/bin/python", "-m", "pip", "install", "-q", "uv", cwd=folder)
        except WrongError as error:
            print(f"no uv, so with pip: {str(error).splitlines()[-1]}")
            return cls(folder)
        return cls(folder, str(folder / "uv/bin/uv"))

    def environment(self, name: str, python: str) -> Path:
        """An empty virtual environment's interpreter."""
        place = self.folder / name
        if self.uv is not None:
            run(self.uv, "venv", "-q", "--no-project", "-p", python, place, cwd=self.folder)
        else:
            run(python, "-m", "venv", place, cwd=self.folder)
        return place / "bin/python"

    def install(self, python: Path, *what: str) -> None:
        """Into an environment."""
        pip: list[str | Path] = [python, "-m", "pip", "install", "-q"]
        run(
            *(pip if self.uv is None else [self.uv, "pip", "install", "-q", "-p", python]),
            *what,
            cwd=self.folder,
        )

    def build(self) -> Path:
        """The wheel, out of the source distribution: so that has all that it needs."""
        out = self.folder / "dist"
        if self.uv is not None:
            run(self.uv, "build", "-q", "--out-dir", out, ROOT, cwd=self.folder)
        else:
            python = self.environment("build", sys.executable)
            self.install(python, "build")
            run(python, "-m", "build", "-o", out, ROOT, cwd=self.folder)
        (wheel,) = out.glob("*.whl")
        return wheel


def look_into(wheel: Path) -> None:
    """It has both packages with their types, what is not Python, and nothing beside."""
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        about = file.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    wanted = {f"{package}/py.typed" for package in PACKAGES} | {
        "extproc/_pb/telemetry_pb2.pyi",
        "extproc/admin/static/index.html",
        "extproc/control/lua/first_chunk.lua",
        "extproc/state/quota/lua/reserve.lua",
    }
    if tops != PACKAGES or not wanted <= names:
        raise WrongError(f"{wheel.name}: packages {sorted(tops)}, lacks {sorted(wanted - names)}")
    extras = re.findall(r"^Provides-Extra: (.*)$", about, re.MULTILINE)
    if set(extras) != set(EXTRAS) or "License-Expression: Apache-2.0" not in about:
        raise WrongError(f"{wheel.name}: extras {extras}")


class Stranger:
    """One who installs a set of extras and follows the pages."""

    def __init__(self, python: Path, extras: Sequence[str], folder: Path) -> None:
        self.python, self.folder = python, folder
        self.has = {*extras, *(("agent", "charts", "envoy") if "demo" in extras else ())}
        # Nothing else that is installed on this machine is found, above all no other Envoy.
        self.env = {"PATH": f"{python.parent}:/usr/bin:/bin", "HOME": str(folder), "LANG": "C.UTF-8"}
        if shutil.which("envoy", path="/usr/bin:/bin"):
            self.env["PATH"] = str(python.parent)
        self.steersman = python.parent / "steersman"

    def does(self, *argv: str, code: int = 0) -> str:
        """A command of ours."""
        return run(self.steersman, *argv, cwd=self.folder, code=code, env=self.env)

    def lacks(self, extra: str, *argv: str) -> None:
        """A command needs an extra that is not there: one line says so."""
        lines = self.does(*argv, code=2).splitlines()
        if not any(
            f"'{extra}': pip install 'steersman[{extra}]' (in {self.python.parent.parent})" in line
            for line in lines
        ):
            raise WrongError(f"steersman {' '.join(argv)}: does not name the extra '{extra}': {lines}")

    def looks(self) -> None:
        """What needs no service."""
        self.does("--version")
        self.does("--help")
        (self.folder / "good.yaml").write_text(CONFIG.format(*ports(5)), encoding="utf-8")
        self.does("check", "-f", "good.yaml")
        self.does("envoy-config", "-f", "good.yaml")
        run(self.python, "-m", "steersman_agent", "--help", cwd=self.folder, env=self.env)

    def serves(self) -> None:
        """`serve` to ready, with all that the set brings; the page, its charts and the metrics answer."""
        taken = ports(5)
        wanted = [section for extra, section in SECTIONS.items() if extra in self.has]
        file = self.folder / "serve.yaml"
        file.write_text(CONFIG.format(*taken) + "".join(wanted), encoding="utf-8")
        page = f"http://127.0.0.1:{taken[3]}"
        health = ROOT / "deploy/docker/bin/health.py"
        with running(self.steersman, "serve", "-f", file, cwd=self.folder, env=self.env) as said:
            until("serve: its page", lambda: fetch(f"{page}/")[0] == 200, alive=said)
            run(self.python, health, f"127.0.0.1:{taken[2]}", cwd=self.folder, env=self.env)
            self.does("status", "--address", f"127.0.0.1:{taken[2]}")
            self.does("report", "--address", f"127.0.0.1:{taken[2]}")
            charts = 200 if "charts" in self.has else 404
            for path, status in (("/metrics", 200), ("/static/vendor/plotly.min.js", charts)):
                if fetch(page + path)[0] != status:
                    raise WrongError(f"serve: {path} is not answered {status}, but {fetch(page + path)}")
        for extra, section in SECTIONS.items():
            if extra not in self.has:
                file.write_text(CONFIG.format(*taken) + section, encoding="utf-8")
                self.lacks(extra, "serve", "-f", str(file))

    def ups(self) -> None:
        """`init`, `check` and `up` with the real Envoy, to a first answer of a replica (simulated)."""
        if "envoy" not in self.has:
            self.lacks("envoy", "up", "-f", "good.yaml", "--no-table")
            return
        replica, listen = ports(2)
        with running(
            self.steersman, "sim-replica", "--port", str(replica), cwd=self.folder, env=self.env
        ) as alive:
            until("sim-replica", lambda: fetch(f"http://127.0.0.1:{replica}/health")[0] == 200, alive=alive)
            made = self.does(
                "init", f"127.0.0.1:{replica}", "--listen", f"127.0.0.1:{listen}", "-y", "--json"
            )
            key = json.loads(made[made.index("{") :])["key"]
            self.does("check")
            body = {"model": "meta-llama/Meta-Llama-3-8B-Instruct", "max_tokens": 5}
            body |= {"messages": [{"role": "user", "content": "Hello"}]}
            url = f"http://127.0.0.1:{listen}/v1/chat/completions"
            # As the pages say: on the default ports, which are one machine's.
            up = running(self.steersman, "up", "--no-table", cwd=self.folder, env=self.env)
            with DEFAULT_PORTS, up as said:
                until("up: a first 200", lambda: fetch(url, key=key, body=body)[0] == 200, alive=said)

    def agents(self) -> None:
        """One look at the node; no card is needed."""
        if "agent" not in self.has:
            self.lacks("agent", "agent", "--once")
            return
        if '"gpus"' not in self.does("agent", "--once", "--json"):
            raise WrongError("agent --once --json: no gpus")
        run(self.python, "-m", "steersman_agent", "--once", cwd=self.folder, env=self.env)

    def demos(self) -> None:
        """The smoke: every client and route, JSON at the end."""
        if "demo" not in self.has:
            self.lacks("demo", "demo", "--smoke")
            return
        result = json.loads(self.does("demo", "--smoke").splitlines()[-1])
        if result["failed"]:
            raise WrongError(f"demo --smoke: {result}")

    def tries(self) -> None:
        """Plots of a small simulation, and the optimiser's own answer to a record that is none."""
        simulate = ["simulate", "--limit", "20", "--strategy", "least_work", "--load", ".5", "--out", "out"]
        if "lab" not in self.has:
            self.lacks("lab", *simulate)
            self.lacks("lab", "tune", "good.yaml")
            return
        self.does(*simulate)
        if not list((self.folder / "out").glob("*.png")):
            raise WrongError("simulate --out: no plot")
        run(self.python, "-c", "import optuna", cwd=self.folder, env=self.env)
        self.does("tune", "good.yaml", code=1)


#: `up` keeps to the ports of the documentation: one at a time.
DEFAULT_PORTS = threading.Lock()
STEPS = ("looks", "serves", "ups", "agents", "demos", "tries")


def tried(tools: Tools, wheel: Path, python: str, extras: Sequence[str]) -> list[str]:
    """Install one set on one Python, and follow the pages; what went wrong."""
    name = f"{Path(python).parent.parent.name}-{'+'.join(extras) or 'base'}"
    began = time.monotonic()
    folder = tools.folder / f"at-{name}"
    folder.mkdir()
    wrong: list[str] = []
    try:
        interpreter = tools.environment(name, python)
        tools.install(interpreter, f"{wheel}[{','.join(extras)}]" if extras else str(wheel))
    except WrongError as error:
        return [f"{name}: install: {error}"]
    stranger = Stranger(interpreter, extras, folder)
    for step in STEPS:
        try:
            getattr(stranger, step)()
        except WrongError as error:
            wrong.append(f"{name}: {step}: {error}")
    print(f"{'FAILED' if wrong else 'good  '}  {name}  ({time.monotonic() - began:.0f} s)", flush=True)
    shutil.rmtree(tools.folder / name, ignore_errors=True)
    return wrong


def version_of(python: str) -> tuple[int, ...] | None:
    """None for what cannot be run, is older, or is no release."""
    ask = "import sys as s, venv; v = s.version_info; print(*v[:3], v.releaselevel, s.implementation.name)"
    try:
        done = subprocess.run([python, "-c", ask], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    *numbers, level, name = done.stdout.split()
    version = tuple(map(int, numbers))
    return version if version[:2] >= OLDEST and level == "final" and name == "cpython" else None


def pythons() -> list[str]:
    """The oldest and the newest that this machine has: this one, PATH's, pyenv's and uv's."""
    shared = [Path.home() / ".pyenv/versions", Path.home() / ".local/share/uv/python"]
    places = [each for folder in shared for each in folder.glob("*3.*/bin/python3")]
    on_path = [shutil.which(f"python3.{minor}") for minor in range(OLDEST[1], 20)]
    # This one may be of a virtual environment: an environment of it would be one of its base.
    own = str(Path(sys.base_prefix) / "bin/python3")
    found = {own, *map(str, places), *(each for each in on_path if each)}
    versions = sorted((version, python) for python in found if (version := version_of(python)) is not None)
    ends = {versions[0][0][:2]: versions[0][1], versions[-1][0][:2]: versions[-1][1]}
    return list(ends.values())


def main() -> int:
    """Exit codes: 0 all is as the pages say, 1 something is not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--python", action="append", help="an interpreter to try; again for more")
    parser.add_argument(
        "--set", action="append", dest="sets", help="extras, such as envoy,redis; '' is the base"
    )
    parser.add_argument(
        "--pip", action="store_true", help="without uv, as on a machine that has Python alone"
    )
    parser.add_argument("--workers", type=int, default=2, help="environments at a time (default 2)")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, end_all)
    sets = SETS if given.sets is None else [tuple(filter(None, each.split(","))) for each in given.sets]
    with tempfile.TemporaryDirectory(prefix="installs-") as name:
        tools = Tools.found(Path(name), plain=given.pip)
        try:
            wheel = tools.build()
            look_into(wheel)
        except WrongError as error:
            print(f"the wheel: {error}")
            return 1
        chosen = given.python or pythons()
        print(f"{wheel.name}, {'uv' if tools.uv else 'pip'}, on {', '.join(chosen)}", flush=True)
        with ThreadPoolExecutor(given.workers) as pool:
            # The longest first.
            jobs = [
                pool.submit(tried, tools, wheel, python, extras)
                for extras in sorted(sets, key=lambda each: "demo" not in each)
                for python in chosen
            ]
            wrong = [each for job in jobs for each in job.result()]
    print("\n\n".join(wrong) or f"{len(jobs)} installations, each as the pages say")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Other routers that the package index ships, each in a virtual environment of its own, before our replicas.

Owns installing, starting and leaving out. A peer has its default configuration; further arms name a policy
of it, and nothing else is set but addresses, ports and how often it looks whether its replicas are there.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import yaml
from gateway import Child, free_ports, wait_for
from scenario import text
from stand import MODEL, Front, Replicas

#: Where the environments are kept, below the repository; git ignores it.
FOLDER = Path(__file__).parents[3] / ".peers"
#: What clients of peers show: litellm wants a key that is not weak, the others read past it.
KEY = "sk-" + secrets.token_hex(32)
#: How long an installation, and a start, may take.
INSTALL_S, START_S = 600.0, 120.0
#: Requests that a peer is asked before it is measured, one at a time, until every replica has had one: some
#: take workers in one after the other. Where all replicas are idle some policies choose one and the same.
PROBES_MAX = 40
_TAIL = 600


class PeerMissingError(Exception):
    """A peer that cannot take part, with the reason."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One arm: a package, the policy that is asked of it ("" its default), and its version once known."""

    package: str
    policy: str = ""
    version: str = ""

    @property
    def name(self) -> str:
        """As tables name it."""
        return f"{self.package} {self.policy or '(default)'}"


def _sglang(bin_: Path, urls: Sequence[str], port: int, metrics: int, policy: str, _: Path) -> list[str]:
    return [str(bin_ / "python"), "-m", "sglang_router.launch_router", *_launch(urls, port, metrics, policy)]


def _vllm(bin_: Path, urls: Sequence[str], port: int, metrics: int, policy: str, _: Path) -> list[str]:
    return [str(bin_ / "vllm-router"), *_launch(urls, port, metrics, policy)]


def _smg(bin_: Path, urls: Sequence[str], port: int, metrics: int, policy: str, _: Path) -> list[str]:
    return [str(bin_ / "smg"), "launch", *_launch(urls, port, metrics, policy)]


def _launch(urls: Sequence[str], port: int, metrics: int, policy: str) -> list[str]:
    """The three have one ancestor, and its options."""
    chosen = ["--policy", policy] if policy else []
    where = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics)]
    return [*where, "--worker-startup-check-interval", "1", *chosen, "--worker-urls", *urls]


def _litellm(bin_: Path, urls: Sequence[str], port: int, _: int, policy: str, folder: Path) -> list[str]:
    deployments = [
        {
            "model_name": MODEL,
            "litellm_params": {
                "model": f"text-completion-openai/{MODEL}",
                "api_base": f"{url}/v1",
                "api_key": "none",
            },
        }
        for url in urls
    ]
    settings = {"router_settings": {"routing_strategy": policy}} if policy else {}
    settings["general_settings"] = {"master_key": KEY}
    file = folder / "litellm.yaml"
    file.write_text(yaml.safe_dump({"model_list": deployments, **settings}))
    return [str(bin_ / "litellm"), "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]


Command = Callable[[Path, Sequence[str], int, int, str, Path], list[str]]


@dataclass(frozen=True, slots=True)
class _Package:
    """What is installed, how it is started, and the policies that are asked besides its default."""

    requirement: str
    command: Command
    policies: tuple[str, ...] = ()


#: By name on the package index. The first three's default policy is their cache_aware, litellm's a shuffle.
PACKAGES: Mapping[str, _Package] = MappingProxyType(
    {
        "sglang-router": _Package("sglang-router", _sglang),
        "vllm-router": _Package("vllm-router", _vllm, ("sticky_least_loaded",)),
        "smg": _Package("smg", _smg),
        "litellm": _Package("litellm[proxy]", _litellm, ("least-busy",)),
    }
)


def install(package: str, folder: Path = FOLDER) -> str:
    """Make the package's environment unless it is there; its version. Raises `PeerMissingError`."""
    place = folder / package
    python = place / "bin" / "python"
    done = place / ".installed"
    if not done.exists():
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        requirement = PACKAGES[package].requirement
        if uv := shutil.which("uv"):
            _run([uv, "venv", "--quiet", "--python", sys.executable, str(place)])
            _run(
                [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), requirement]
            )
        else:
            _run([sys.executable, "-m", "venv", str(place)])
            _run([str(python), "-m", "pip", "install", "--quiet", requirement])
        done.touch()
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return _run([str(python), "-c", code]).strip()


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerMissingError(str(error)) from None
    if done.returncode:
        told = (done.stderr or done.stdout).strip()
        raise PeerMissingError(f"{Path(command[0]).name} ended with {done.returncode}: {told[-_TAIL:]}")
    return done.stdout


@contextmanager
def balanced_by(peer: Peer, replicas: Replicas, folder: Path = FOLDER) -> Iterator[Front]:
    """The peer before these replicas, once each of them has answered through it.

    Raises `PeerMissingError` where it ends, or does not serve within `START_S`.
    """
    with tempfile.TemporaryDirectory(prefix="steersman-peer-") as name:
        port, metrics = free_ports(2)
        urls = [f"http://{address}" for address in replicas.addresses]
        bin_ = folder / peer.package / "bin"
        command = PACKAGES[peer.package].command(bin_, urls, port, metrics, peer.policy, Path(name))
        child = Child(peer.package, command, Path(name))
        child.start()
        try:
            try:
                wait_for(peer.name, lambda: _serves(port, 0) or _ended(child), timeout_s=START_S)
            except TimeoutError as error:
                raise PeerMissingError(f"{error}: {_log(child)}") from None
            if _ended(child):
                raise PeerMissingError(f"ended at its start: {_log(child)}")
            _warm(peer, replicas, port)
            assert child.process is not None
            yield Front(port, (child.pid,))
        finally:
            child.stop(timeout_s=10)


def _warm(peer: Peer, replicas: Replicas, port: int) -> None:
    for number in range(1, PROBES_MAX):
        if all(state["served"] for state in replicas.state()):
            return
        _serves(port, number)
    idle = [i for i, state in enumerate(replicas.state()) if not state["served"]]
    print(f"# {peer.name}: {PROBES_MAX} probes, one at a time, reached none of replicas {idle}", flush=True)


def _serves(port: int, number: int) -> bool:
    """It answers a request, which is like no other."""
    body = {"model": MODEL, "prompt": text(f"probe/{number}", 32) + "[[sim:out=1]]", "max_tokens": 1}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        data=json.dumps(body).encode(),
        headers={
            "content-type": "application/json",
            "authorization": f"Bearer {KEY}",
            "x-session-id": f"probe-{number}",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _ended(child: Child) -> bool:
    return child.process is not None and child.process.poll() is not None


def _log(child: Child) -> str:
    return child.log.read_text(errors="replace").strip()[-_TAIL:] if child.log.exists() else ""

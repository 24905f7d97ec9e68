"""docker-compose.yml's containers without containers: each command of ours runs here as it stands, with
addresses and folders mapped to this machine, and each container's own health check must pass.

What cannot run here is said in docs/deploy.md: Grafana, the collector, and the images themselves.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from gateway import Child, envoy_binary, free_ports, show_logs

#: Where each container listens.
LISTENS = {
    "steersman": (50051, 50052, 9090),
    "envoy": (8080, 9901),
    "redis": (6379,),
    "replicas": (8001, 8002, 8003, 8004),
    "collector": (4317, 4318, 8888, 13133),
    "prometheus": (9090,),
}
#: In the order in which they depend on each other. Redis' and Prometheus' are the distribution's programs.
STARTED = ("redis", "replicas", "steersman", "envoy", "agent", "traffic", "prometheus")
#: Somebody else's programs: their own arguments say what an image's entry point would.
PROGRAMS = {"redis": "redis-server", "prometheus": "prometheus"}
HEALTHY_S = 60.0


class Here:
    """The compose file's containers as processes of this machine."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self.compose = yaml.safe_load((root / "docker-compose.yml").read_text(encoding="utf-8"))
        self.services = self.compose["services"]
        every = [(name, port) for name, ports in LISTENS.items() for port in ports]
        self.ports = dict(zip(every, free_ports(len(every)), strict=True))
        self.images = self._images((root / "deploy/docker/Dockerfile").read_text(encoding="utf-8"))
        self.children: dict[str, Child] = {}

    @staticmethod
    def _images(dockerfile: str) -> dict[str, tuple[list[str], list[str]]]:
        """Entry point and command of each target."""
        found = {}
        for stage in re.split(r"^FROM ", dockerfile, flags=re.MULTILINE)[1:]:
            target = stage.splitlines()[0].rpartition(" AS ")[2]
            entry = re.search(r"^ENTRYPOINT (.*)$", stage, re.MULTILINE)
            command = re.search(r"^CMD (.*)$", stage, re.MULTILINE)
            if entry and command:
                found[target] = (yaml.safe_load(entry[1]), yaml.safe_load(command[1]))
        return found

    def mapped(self, text: str, name: str) -> str:
        """A text as a container of that name means it: its addresses and folders, here."""
        for (owner, port), here in self.ports.items():
            address = self.services[owner]["networks"]["fleet"]["ipv4_address"]
            text = re.sub(rf"\b({owner}|{re.escape(address)}):{port}\b", f"127.0.0.1:{here}", text)
        for (owner, port), here in self.ports.items():
            # What is said to listen, or asked at loopback, is the container's own; Envoy and the service
            # read one file.
            if owner == name or (name, owner) in (("envoy", "steersman"), ("steersman", "envoy")):
                text = re.sub(rf"\b(0\.0\.0\.0|127\.0\.0\.1):{port}\b", f"127.0.0.1:{here}", text)
            text = re.sub(rf"\bport: {port}\b", f"port: {here}", text)
            if text == str(port):
                text = str(here)
        for there, here in (
            ("host: 0.0.0.0", "host: 127.0.0.1"),
            ("172.30.77.0/24", "127.0.0.0/8"),
            ("/opt/steersman/", f"{self.root}/deploy/docker/bin/"),
            ("/etc/steersman/", f"{self.folder}/{name}/"),
            ("/etc/prometheus/", f"{self.folder}/{name}/"),
            ("/run/secrets/", f"{self.folder}/{name}/secrets/"),
            ("/run/steersman/", f"{self.folder}/{name}/run/"),
            ("/var/lib/steersman", f"{self.folder}/{name}/data"),
            ("=/prometheus", f"={self.folder}/{name}/data"),
        ):
            text = text.replace(there, here)
        return text

    def start(self, name: str) -> None:
        """Its files, then its command."""
        service = self.services[name]
        for made in ("secrets", "run", "data"):
            (self.folder / name / made).mkdir(parents=True)
        for config in service.get("configs", []):
            text = (self.root / self.compose["configs"][config["source"]]["file"]).read_text(encoding="utf-8")
            target = self.folder / name / Path(config["target"]).name
            target.write_text(self.mapped(text, name), encoding="utf-8")
        for secret in service.get("secrets", []):
            source = self.root / self.compose["secrets"][secret]["file"]
            shutil.copy(source, self.folder / name / "secrets" / secret)
        entry, command = self.images.get(self._target(service), ([], []))
        entry, command = service.get("entrypoint", entry), service.get("command", command)
        if name in PROGRAMS:
            entry = [PROGRAMS[name]] if command[0] != PROGRAMS[name] else []
        arguments = [self.mapped(part, name) for part in (*entry, *command)]
        if name == "redis":
            arguments += ["--port", str(self.ports["redis", 6379]), "--dir", str(self.folder / name / "data")]
        self.children[name] = Child(name, ["env", *self._environment(name), *arguments], self.folder)
        self.children[name].start()

    def _target(self, service: dict[str, Any]) -> str:
        same = [
            s["build"]["target"]
            for s in self.services.values()
            if s["image"] == service["image"] and "build" in s
        ]
        return same[0] if same else ""

    def _environment(self, name: str) -> list[str]:
        beside = f"{Path(sys.executable).parent}:{Path(envoy_binary()).parent}:{os.environ['PATH']}"
        given = self.services[name].get("environment", {})
        return [f"PATH={beside}", *(f"{key}={self.mapped(value, name)}" for key, value in given.items())]

    def healthy(self, name: str) -> bool:
        """Whether the container's own check passes within a minute."""
        kind, *check = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        arguments = [self.mapped(part, name) for part in check]
        if name == "redis":
            arguments[1:1] = ["-p", str(self.ports["redis", 6379])]
        deadline = time.monotonic() + HEALTHY_S
        while time.monotonic() < deadline:
            done = subprocess.run(
                ["env", *self._environment(name), *arguments], capture_output=True, check=False
            )
            if done.returncode == 0:
                return True
            process = self.children[name].process
            assert process is not None
            if process.poll() is not None:
                return False
            time.sleep(0.2)
        print(f"{name}: {shlex.join(arguments)}: {done.stderr.decode(errors='replace')}")
        return False

    def stop(self) -> None:
        """Everything, in the opposite order."""
        for child in reversed(self.children.values()):
            child.stop()


def _needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on PATH; apt-get install {program}")


@pytest.fixture(scope="module")
def here(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    """All of them, started in order, each once those before it were healthy."""
    _needs("redis-server", "prometheus")
    stack = Here(root, tmp_path_factory.mktemp("compose"))
    try:
        for name in STARTED:
            stack.start(name)
            if "test" in stack.services[name]["healthcheck"]:
                assert stack.healthy(name), name
        yield stack
    except BaseException:
        show_logs(list(stack.children.values()))
        raise
    finally:
        stack.stop()


def _get(url: str, token: Path | None = None) -> str:
    headers = {"authorization": f"Bearer {token.read_text(encoding='utf-8')}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
        return str(answer.read().decode())


def _eventually(condition: Any, *, timeout_s: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return bool(condition())


@pytest.mark.envoy
@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(300)
class TestStack:
    """The started stack."""

    def test_each_container_is_healthy(self, here: Here) -> None:
        """Every command that the file gives is still running after all have started."""
        for name, child in here.children.items():
            assert child.process is not None
            assert child.process.poll() is None, name

    def test_traffic_goes_through_and_shows(self, here: Here, root: Path) -> None:
        """The traffic's requests are answered by the simulated replicas and counted at /metrics."""
        metrics = f"http://127.0.0.1:{here.ports['steersman', 9090]}/metrics"
        token = root / "deploy/compose/metrics.token"
        counted = re.compile(r'^steersman_requests_total\{[^}]*outcome="ok"[^}]*tenant="acme"', re.MULTILINE)
        loose = re.compile(r'^steersman_requests_total\{[^}]*tenant="acme"[^}]*outcome="ok"', re.MULTILINE)
        assert _eventually(lambda: counted.search(text := _get(metrics, token)) or loose.search(text))

    def test_agent_tells_of_the_cards(self, here: Here, root: Path) -> None:
        """The node agent's view of the simulated cards reaches /metrics."""
        metrics = f"http://127.0.0.1:{here.ports['steersman', 9090]}/metrics"
        token = root / "deploy/compose/metrics.token"
        assert _eventually(lambda: "steersman_gpu_temperature_celsius{" in _get(metrics, token))

    def test_prometheus_scrapes_the_service(self, here: Here) -> None:
        """Prometheus, with the file's own configuration, finds the service up and its rules good."""
        base = f"http://127.0.0.1:{here.ports['prometheus', 9090]}/api/v1"
        wanted = '"job":"steersman"'

        def up() -> bool:
            targets = yaml.safe_load(_get(f"{base}/targets"))["data"]["activeTargets"]
            return any(t["labels"]["job"] == "steersman" and t["health"] == "up" for t in targets)

        assert _eventually(up), wanted
        assert yaml.safe_load(_get(f"{base}/rules"))["data"]["groups"]

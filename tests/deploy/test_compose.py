"""docker-compose.yml: what it refers to is there, what it promises about its containers holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from extproc.config.load import load, loads
from extproc.control.bootstrap import render_bootstrap

#: Our own images, by the target that makes them.
TARGETS = {"service", "gateway", "agent", "sim"}


@pytest.fixture(scope="module")
def compose(root: Path) -> dict[str, Any]:
    """The file, merges resolved as YAML does."""
    tree: dict[str, Any] = yaml.safe_load((root / "docker-compose.yml").read_text(encoding="utf-8"))
    return tree


def test_keeps_to_the_specification(compose: dict[str, Any]) -> None:
    """Every key that the file uses is one that the Compose Specification has, of its kind."""
    schema = json.loads((Path(__file__).parent / "schemas" / "compose.json").read_text(encoding="utf-8"))
    problems = [
        f"{'/'.join(map(str, e.absolute_path))}: {e.message}"
        for e in jsonschema.Draft202012Validator(schema).iter_errors(compose)
    ]
    assert problems == []


def test_everything_referred_to_is_there(compose: dict[str, Any], root: Path) -> None:
    """Configs, secrets, volumes, networks and files exist, and none is left over."""
    used: dict[str, set[str]] = {"configs": set(), "secrets": set(), "volumes": set(), "networks": set()}
    for name, service in compose["services"].items():
        used["configs"] |= {each["source"] for each in service.get("configs", [])}
        used["secrets"] |= set(service.get("secrets", []))
        used["networks"] |= set(service["networks"])
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("./"):
                assert (root / source).exists(), f"{name}: {source}"
            else:
                used["volumes"].add(source)
    for kind, names in used.items():
        assert names == set(compose[kind]), kind
    for kind in ("configs", "secrets"):
        for name, each in compose[kind].items():
            assert (root / each["file"]).is_file(), f"{kind}.{name}: {each['file']}"


def test_order_of_start_is_by_health(compose: dict[str, Any]) -> None:
    """Whatever another container waits for says itself whether it is healthy, and is in its profiles."""
    for name, service in compose["services"].items():
        for needed, how in service.get("depends_on", {}).items():
            other = compose["services"][needed]
            assert how == {"condition": "service_healthy"}, f"{name} on {needed}"
            assert "test" in other["healthcheck"], needed
            assert set(other.get("profiles", [])) <= set(service.get("profiles", [])), f"{name} on {needed}"


def test_containers_are_restrained(compose: dict[str, Any]) -> None:
    """Not root, read-only, without capabilities, bounded in memory, processor and processes, restarted."""
    for name, service in compose["services"].items():
        assert re.fullmatch(r"[1-9]\d*:\d+", service["user"]) or name == "traffic", name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}, name
        assert "healthcheck" in service, name


def test_images_are_pinned(compose: dict[str, Any]) -> None:
    """No image floats: each has a tag that is a version, and ours are made by the Dockerfile's targets."""
    built = set()
    for name, service in compose["services"].items():
        assert re.search(r":v?\d+\.\d+\.\d+(-[a-z0-9.]+)?$", service["image"]), name
        if "build" in service:
            built.add(service["build"]["target"])
    assert built == TARGETS


def test_nothing_is_open_beyond_this_machine(compose: dict[str, Any]) -> None:
    """Ports are published on loopback alone, each once."""
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len({port.rpartition(":")[0] for port in ports}) == len(ports)
    addresses = [service["networks"]["fleet"]["ipv4_address"] for service in compose["services"].values()]
    assert len(set(addresses)) == len(addresses)


def test_envoy_refuses_before_it_is_killed(compose: dict[str, Any], root: Path) -> None:
    """Envoy's own heap bound lies below its container's memory."""
    text = (root / "deploy/compose/steersman.yaml").read_text(encoding="utf-8")
    text = text.replace("/run/secrets/decision_token", str(root / "deploy/compose/decision.token"))
    manager = render_bootstrap(loads(text)).overload_manager
    assert manager is not None
    heap = next(m for m in manager.resource_monitors if "heap" in m.name).typed_config
    assert heap is not None
    bound = heap.unpack().max_heap_size_bytes
    memory = compose["services"]["envoy"]["deploy"]["resources"]["limits"]["memory"]
    assert memory.endswith("M")
    assert bound < int(memory[:-1]) * 1024 * 1024


def test_a_container_outlives_its_drain(compose: dict[str, Any], root: Path) -> None:
    """The service is given longer to stop than it may drain."""
    grace = compose["services"]["steersman"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > load(root / "deploy/compose/steersman.yaml").service.drain_s

"""`steersman doctor` against the real Envoy, service, Redis and agents: a well deployment, and faults.

Each plant is one thing done wrong in an otherwise well deployment; doctor must name it, and the mend.
"""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from agents_harness import PUSH, Processes, telemetry, token
from click.testing import CliRunner
from doctor_plants import (
    bodiless,
    dead,
    disobedient,
    elsewhere,
    expired,
    exposed,
    greedy,
    misnamed,
    misordered,
    no_folder,
    other_engine,
    responding,
    trusting,
    undecided,
    unlogged,
    unretried,
    without_metadata,
)
from gateway import ASK_S, KEYS, Gateway, wait_for
from redis_harness import Redis
from replicas import Replicas, specs

from extproc._pb import telemetry_pb2 as pb
from extproc.cli import group

pytestmark = pytest.mark.envoy

Plant = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A Redis that may be killed."""
    with Redis(tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    """Agents."""
    with Processes() as started:
        yield started


@pytest.fixture(scope="module")
def deployment(redis: Redis, processes: Processes) -> Iterator[Gateway]:
    """Two replicas, the service with Redis and an agent, Envoy."""
    with (
        Replicas(specs(2)) as replicas,
        Gateway(
            {"chat": {"models": ["tiny-chat"], "addresses": replicas.addresses}},
            telemetry=telemetry(["node-a"]),
            sharing={"redis": redis.url},
        ) as gateway,
    ):
        processes.agent(gateway, "node-a", "chat", replicas.addresses)
        complete(gateway)
        yield gateway


def complete(gateway: Gateway) -> None:
    """The agent has told of its replicas, Redis and Envoy are reached."""

    def told() -> bool:
        status = gateway.status()
        agents = {each["node"] for each in status["endpoints"] if each["health"] == 1.0}
        return agents == {"node-a"} and bool(status["sharing"]["connected"])

    wait_for("the agent and Redis", told)
    wait_for("Envoy", gateway.ready)


@pytest.fixture
def fresh(deployment: Gateway) -> Gateway:
    """With a service that has refused nobody yet."""
    deployment.service.kill()
    deployment.start_service()
    complete(deployment)
    return deployment


def diagnose(gateway: Gateway, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of one look."""
    result = CliRunner().invoke(group, ["doctor", "-f", str(gateway.config_file), "--json", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, json.loads(result.stdout)


def finds(gateway: Gateway, id_: str, *, seen: str, mend: str, severity: str = "error") -> None:
    """A look finds this, and says what to do; with an error the exit code is 1.

    It looks again until then: what doctor sees is of the moment, and on a busy machine an agent that tries
    again within two seconds takes three.
    """
    last: list[dict[str, Any]] = []

    def found() -> bool:
        code, report = diagnose(gateway)
        last[:] = [each for each in report["findings"] if each["id"] == id_]
        said = any(
            seen in each["seen"] and mend in each["mend"] and each["severity"] == severity for each in last
        )
        return said and (severity != "error" or (code, report["well"]) == (1, False))

    try:
        wait_for("the finding", found)
    except TimeoutError:
        raise AssertionError(f"{id_}: {last}") from None


@contextlib.contextmanager
def envoy_with(gateway: Gateway, plant: Plant) -> Iterator[None]:
    """Envoy started anew from a bootstrap that was spoilt; from the good one again afterwards."""
    file = gateway.folder / "envoy.yaml"
    good = file.read_text()
    bad = json.loads(good)
    plant(bad)
    gateway.envoy.stop()
    file.write_text(json.dumps(bad))
    gateway.envoy.start()
    try:
        admin = f"http://127.0.0.1:{gateway.admin_port}"
        wait_for("Envoy's admin port", lambda: diagnosable(admin))
        yield
    finally:
        gateway.envoy.stop()
        file.write_text(good)
        gateway.envoy.start()
        wait_for("Envoy", gateway.ready)


def diagnosable(admin: str) -> bool:
    """Envoy is live."""
    import urllib.request

    with urllib.request.urlopen(f"{admin}/ready", timeout=2) as answer:
        return bool(answer.status == 200)


@contextlib.contextmanager
def file_with(gateway: Gateway, plant: Plant) -> Iterator[None]:
    """The file with something wrong in it."""
    good = copy.deepcopy(gateway.config)
    plant(gateway.config)
    gateway.write_config()
    try:
        yield
    finally:
        gateway.config.clear()
        gateway.config.update(good)
        gateway.write_config()


def test_a_well_deployment_has_no_error_and_a_prompt_passes(fresh: Gateway) -> None:
    """Exit 0; the probe is answered, settled, and its first token told; nothing asked was left out."""
    last: dict[str, Any] = {}

    def well() -> bool:
        # On a busy machine an agent may call a replica hung for a moment, and doctor says so.
        code, report = diagnose(fresh, "--key", KEYS["acme"])
        last.update(report)
        errors = [each for each in report["findings"] if each["severity"] != "note"]
        return (code, report["well"], errors) == (0, True, [])

    try:
        wait_for("a well deployment", well)
    except TimeoutError:
        raise AssertionError(last["findings"]) from None
    assert {"service.probe", "redis.eviction", "agents.refused", "envoy.filter-order"} <= set(last["passed"])
    assert set(last["left_out"]) == {"machine.disks", "machine.memory"}


def test_the_text_names_what_is_well_and_ends_with_a_count(fresh: Gateway) -> None:
    """No colour where nobody looks; -v lists every check."""
    look = lambda: CliRunner().invoke(group, ["doctor", "-f", str(fresh.config_file), "-v"])  # noqa: E731
    wait_for("a well deployment", lambda: look().exit_code == 0)
    result = look()
    assert "✓ envoy.filter-order\n" in result.stdout
    assert "checks passed, " in result.stdout.splitlines()[-1]
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("plant", "id_", "severity", "seen", "mend"),
    [
        (
            misordered,
            "envoy.filter-order",
            "error",
            "lua → json_to_metadata",
            "json_to_metadata → lua → router",
        ),
        (unlogged, "envoy.access-log", "error", "no gRPC access log", "envoy.access_loggers.http_grpc"),
        (
            without_metadata,
            "envoy.metadata",
            "error",
            "drops the decision's metadata envoy.lb",
            "receiving_namespaces",
        ),
        (elsewhere, "envoy.service", "error", "ext_proc calls 127.0.0.1:", "point cluster steersman"),
        (exposed, "envoy.admin-port", "error", "listens on 0.0.0.0:", "bind it to 127.0.0.1"),
        (trusting, "envoy.trust", "error", "lets clients set x-steersman-cluster", "early_header_mutation"),
        (disobedient, "envoy.pools", "error", "does not balance by override_host", "override_host"),
        (
            undecided,
            "envoy.route",
            "error",
            "no route takes its cluster",
            "cluster_header: x-steersman-cluster",
        ),
        (unretried, "envoy.retries", "warning", "has no retry_policy", "retriable_status_codes"),
        (
            responding,
            "envoy.ext-proc",
            "error",
            "sends responses to the service",
            "response_header_mode SKIP",
        ),
        (bodiless, "envoy.ext-proc", "error", "sends body NONE", "request_body_mode BUFFERED"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_is_wrong_in_envoy_is_found(
    deployment: Gateway, plant: Plant, id_: str, severity: str, seen: str, mend: str
) -> None:
    """The real Envoy runs the spoilt bootstrap; its config_dump gives it away."""
    with envoy_with(deployment, plant):
        finds(deployment, id_, severity=severity, seen=seen, mend=mend)


@pytest.mark.parametrize(
    ("plant", "id_", "severity", "seen", "mend"),
    [
        (
            expired,
            "config.keys",
            "error",
            "tenant acme has no valid key; the last ended 2026-01-31",
            "tenant key new acme",
        ),
        (
            misnamed,
            "replicas.models",
            "warning",
            "serves tiny-chat, while pool chat is for llama-70b",
            "add tiny-chat",
        ),
        (
            greedy,
            "replicas.permits",
            "error",
            "max_concurrent 500, but the engine takes 128",
            "max_concurrent: 128",
        ),
        (dead, "replicas.reachable", "error", "does not answer: Connection refused", "start the engine"),
        (
            other_engine,
            "replicas.engine",
            "error",
            "runs tgi, but pool chat says engine: vllm",
            "set engine: tgi",
        ),
        (no_folder, "machine.disks", "error", "there is no folder /nowhere/at/all", "make the folder"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_is_wrong_in_the_file_is_found(
    deployment: Gateway, plant: Plant, id_: str, severity: str, seen: str, mend: str
) -> None:
    """The file says other than what is there."""
    with file_with(deployment, plant):
        finds(deployment, id_, severity=severity, seen=seen, mend=mend)


def test_an_agent_with_a_wrong_token_is_found(deployment: Gateway, processes: Processes) -> None:
    """It tries again and again: the refusals grow between two readings."""
    agent = processes.agent(deployment, "node-b", "chat", ["127.0.0.1:9"])
    try:
        rejected = lambda: deployment.status()["telemetry"]["counts"].get("rejected.unauthenticated", 0)  # noqa: E731
        wait_for("a refusal", rejected)
        finds(deployment, "agents.refused", seen="token", mend="token_sha256")
    finally:
        agent.child.stop()


def test_an_agent_with_an_old_clock_is_found(deployment: Gateway) -> None:
    """Its reports are refused; the mend is the clock."""
    report = pb.Report(node="node-a", boot_id=99, sequence=1, sent_unix_ms=int(time.time() * 1000) - 600_000)
    with grpc.insecure_channel(deployment.config["telemetry"]["listen"][0]) as channel:
        call = channel.stream_stream(PUSH)
        metadata = (("authorization", f"Bearer {token('node-a')}"),)
        answer = next(iter(call(iter([report.SerializeToString()]), metadata=metadata, timeout=ASK_S)))
        assert pb.Ack.FromString(answer).rejected == "clock_skew"
    finds(
        deployment,
        "agents.refused",
        severity="warning",
        seen="clock differs from the service's by more than a minute",
        mend="synchronise the clocks",
    )


def test_a_dead_redis_is_found(deployment: Gateway, redis: Redis) -> None:
    """By doctor's own connection, and by the service's word."""
    redis.kill()
    try:
        wait_for("the loss", lambda: not deployment.status()["sharing"]["connected"])
        finds(deployment, "redis.reachable", seen="Redis does not answer", mend="sharing.redis")
        finds(deployment, "redis.connected", seen="is not connected to Redis", mend="sharing.redis")
    finally:
        redis.start()
        wait_for("Redis again", lambda: deployment.status()["sharing"]["connected"])


def test_a_dead_service_is_found(deployment: Gateway) -> None:
    """Three ways: nobody answers its port, Envoy finds it unwell, and clients get 503."""
    deployment.service.kill()
    try:
        wait_for("Envoy to notice", lambda: not deployment.ready())
        finds(deployment, "service.reachable", seen="no service at 127.0.0.1:", mend="steersman serve")
        finds(deployment, "envoy.health", seen="no healthy service", mend="start the service")
        finds(deployment, "service.gateway", seen="gives 503", mend="does not reach the service")
    finally:
        deployment.start_service()
        wait_for("Envoy", deployment.ready)


def test_a_dead_envoy_is_found_and_the_rest_is_still_looked_at(deployment: Gateway) -> None:
    """What needs Envoy is left out with the reason; the service is well."""
    deployment.envoy.stop()
    try:
        code, report = diagnose(deployment)
        ids = [each["id"] for each in report["findings"] if each["severity"] == "error"]
        assert (code, ids) == (1, ["envoy.reachable", "service.gateway"])
        assert "Connection refused" in report["left_out"]["envoy.filter-order"]
        assert "service.reachable" in report["passed"]
    finally:
        deployment.envoy.start()
        wait_for("Envoy", deployment.ready)


def test_a_probe_with_a_wrong_key_is_found(deployment: Gateway) -> None:
    """The mend says how to make one."""
    code, report = diagnose(deployment, "--key", "sk-nobody")
    found = [each for each in report["findings"] if each["id"] == "service.probe"]
    assert code == 1
    assert "401" in found[0]["seen"]
    assert "tenant key new" in found[0]["mend"]


def test_offline_needs_nobody(deployment: Gateway, tmp_path: Path) -> None:
    """The file and the machine alone; exit 2 with every mistake for a file that cannot be used."""
    code, report = diagnose(deployment, "--offline")
    assert (code, report["well"]) == (0, True)
    assert report["left_out"]["envoy.filter-order"] == "Envoy's admin port: not asked"
    bad = tmp_path / "bad.yaml"
    bad.write_text("pools: []\n")
    result = CliRunner().invoke(group, ["doctor", "-f", str(bad), "--json"])
    assert result.exit_code == 2
    assert json.loads(result.stdout)["problems"][0]["path"] == "pools"

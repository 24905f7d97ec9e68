"""A changed file and a quota's dry run, through a real service process; no Envoy is needed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from gateway import KEYS, STATUS_METHOD, free_ports, wait_for
from processes import STEERSMAN, Child, steersman

from extproc._pb import ext_proc_pb2 as ext_proc
from extproc.core.tenant import hash_key
from extproc.history.versions import History

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
TAKEN_S_MAX = 10.0


class Service:
    """`steersman serve` on a file of its own."""

    def __init__(self, folder: Path) -> None:
        self.file, self.audit = folder / "steersman.yaml", folder / "audit.jsonl"
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        config = {
            "service": {"listen": [self.address], "drain_s": 0},
            "audit": {"file": str(self.audit)},
            "pools": [{"name": "chat", "models": ["m"], "endpoints": [{"address": "127.0.0.1:9"}]}],
            "probes": {"enabled": False},  # nobody is there, and decisions are all that is asked for
            "tenants": [{"name": name, "keys": [{"sha256": hash_key(key)}]} for name, key in KEYS.items()],
        }
        self.file.write_text("# ours\n" + yaml.safe_dump(config, sort_keys=False))
        arguments = [*STEERSMAN, "serve", "-f", str(self.file)]
        self.child = Child("service", arguments, folder)
        self.channel = grpc.insecure_channel(self.address)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.channel.unary_unary(STATUS_METHOD)(b"", timeout=3))
        return found

    def ask(self, key: str) -> int:
        """One decision; 200 where it was routed."""
        headers = {":method": "POST", ":path": "/v1/completions", "authorization": f"Bearer {key}"}
        first = ext_proc.ProcessingRequest()
        for name, value in headers.items():
            first.request_headers.headers.headers.add(key=name, raw_value=value.encode())
        body = ext_proc.ProcessingRequest()
        body.request_body.body = b'{"model": "m", "prompt": "a secret prompt", "max_tokens": 5}'
        body.request_body.end_of_stream = True
        messages = [first.SerializeToString(), body.SerializeToString()]
        for data in self.channel.stream_stream(PROCESS)(iter(messages), timeout=5):
            answer = ext_proc.ProcessingResponse.FromString(data)
            if answer.HasField("immediate_response"):
                return int(answer.immediate_response.status.code)
        return 200

    def limits(self, tenant: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.status()["use"]["tenants"][tenant]["limits"]
        return found

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in self.audit.read_text().splitlines()]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    found = Service(tmp_path)
    found.child.start()
    try:
        wait_for("the service", found.status)
        yield found
    finally:
        found.child.stop()
        found.channel.close()


def taken(condition: Callable[[], Any], what: str) -> None:
    wait_for(what, condition, timeout_s=TAKEN_S_MAX)


def test_a_command_and_an_editor_are_taken_live(service: Service) -> None:
    """Without a signal; a bad file changes nothing; the history has every version once."""
    steersman("tenant", "set", "acme", "--requests-per-minute", "2", "--why", "x", "-f", str(service.file))
    taken(lambda: service.limits("acme"), "the quota")
    assert [service.ask(KEYS["acme"]) for _ in range(3)] == [200, 200, 429]
    [limit] = service.limits("acme")
    assert (limit["limit"], limit["allowed"], limit["throttled"]) == ("requests_per_minute", 2.0, 1)
    assert service.status()["use"]["tenants"]["acme"]["in_flight"] == 2
    good = service.file.read_text()
    service.file.write_text("pools: [")
    taken(lambda: service.status()["counts"].get("reload.refused"), "the refusal")
    service.file.write_text(good.replace("requests_per_minute: 2", "requests_per_minute: 4"))
    taken(lambda: service.limits("acme")[0]["allowed"] == 4.0, "the editor's quota")
    taken(lambda: len(History(service.file).read().entries) == 3, "the record")
    reading = History(service.file).read()
    assert [each.command for each in reading.entries] == ["found", "tenant set acme", "changed outside"]
    assert reading.problems == []
    shown = json.loads(steersman("tenants", "--json", "--address", service.address))
    assert shown["tenants"]["acme"]["rejected"] == 1
    one = json.loads(steersman("tenant", "show", "acme", "--json", "--address", service.address))
    assert one["limits"][0]["allowed"] == 4.0
    assert "requests_per_minute" in steersman("tenants", "--address", service.address)
    steersman("tenant", "show", "nobody", "--address", service.address, code=1)


def test_a_dry_run_counts_and_changes_nothing(service: Service) -> None:
    """What the quota had refused of the last requests, by limit."""
    before = service.file.read_text()
    for _ in range(10):
        assert service.ask(KEYS["globex"]) == 200
    arguments = ["tenant", "set", "globex", "--requests-per-minute", "4", "--shadow"]
    where = ["--address", service.address, "-f", str(service.file)]
    found = json.loads(steersman(*arguments, "--json", *where))
    assert (found["requests"], found["refused_then"]) == (10, 0)
    assert found["as_it_is"]["never_idle"]["refused"] == 0
    assert found["proposed"]["never_idle"] == {"refused": 6, "by_limit": {"requests_per_minute (tenant)": 6}}
    assert "proposed: 6 would be refused" in steersman(*arguments, *where)
    assert service.file.read_text() == before
    assert len(History(service.file).read().entries) == 1  # the one that the service started with
    assert service.limits("globex") == []


def test_who_is_refused_is_audited_without_the_key(service: Service) -> None:
    """Source, reason and means; no key and no prompt anywhere."""
    assert service.ask("sk-wrong-key") == 401
    taken(service.audit.exists, "the audit log")
    steersman("tenant", "set", "acme", "--weight", "2", "--why", "x", "-f", str(service.file))
    taken(lambda: "config_reloaded" in service.events(), "the reload's event")
    assert service.events()[0] == "identity_failed"
    event = json.loads(service.audit.read_text().splitlines()[0])
    assert (event["code"], event["methods"]) == ("invalid_api_key", ["key"])
    time.sleep(0.5)
    said = service.audit.read_text() + service.child.log.read_text()
    assert "sk-wrong-key" not in said
    assert "secret prompt" not in said

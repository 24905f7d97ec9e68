"""A changed file and a quota's dry run, through a real service process; no Envoy is needed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway import KEYS, wait_for
from lone_service import Service, serving
from processes import steersman

from extproc.history.versions import ConfigHistory

TAKEN_S_MAX = 10.0


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path) as found:
        yield found


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
    taken(lambda: len(ConfigHistory(service.file).read().entries) == 3, "the record")
    reading = ConfigHistory(service.file).read()
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
    # That of the start.
    taken(
        lambda: [each.command for each in ConfigHistory(service.file).read().entries] == ["found"],
        "one version",
    )
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

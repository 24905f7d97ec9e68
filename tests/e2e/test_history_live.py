"""A running gateway's first change can be undone, whoever made it; through the real commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gateway import KEYS, wait_for
from lone_service import ACME, serving
from processes import steersman


def versions(file: Path) -> list[dict[str, Any]]:
    """As `steersman config history` lists them."""
    found: list[dict[str, Any]] = json.loads(steersman("config", "history", "--json", "-f", str(file)))
    return found


def test_an_editors_first_change_is_undone_by_rollback(tmp_path: Path) -> None:
    """The file is recorded when the service starts; version 1 is what stood there, comments and all."""
    with serving(tmp_path) as service:
        wait_for("the first version", service.history.exists)
        before = service.file.read_text()
        service.edit(ACME, f"{ACME}  quota: {{requests_per_minute: 1}}\n")
        wait_for("the editor's quota", lambda: service.limits("acme"))
        wait_for("its version", lambda: len(versions(service.file)) == 2)
        assert [service.ask(KEYS["acme"]) for _ in range(2)] == [200, 429]
        steersman("config", "rollback", "1", "--why", "too tight", "-f", str(service.file))
        assert service.file.read_text() == before
        wait_for("the rollback", lambda: not service.limits("acme"))
        assert service.ask(KEYS["acme"]) == 200
        wait_for("the audit log", lambda: service.events().count("config_reloaded") == 2)
        assert [each["command"] for each in versions(service.file)] == [
            "found",
            "changed outside",
            "config rollback 1",
        ]


def test_a_commands_first_change_is_undone_by_rollback(tmp_path: Path) -> None:
    """`tenant set` writes over the version that the start has recorded."""
    with serving(tmp_path) as service:
        before = service.file.read_text()
        arguments = ("--requests-per-minute", "1", "--why", "x", "-f", str(service.file))
        steersman("tenant", "set", "acme", *arguments)
        wait_for("the quota", lambda: service.limits("acme"))
        steersman("config", "rollback", "1", "--why", "y", "-f", str(service.file))
        assert service.file.read_text() == before
        wait_for("the rollback", lambda: not service.limits("acme"))
        found = [each["command"] for each in versions(service.file)]
        assert found == ["found", "tenant set acme", "config rollback 1"]

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from extproc.config.model import Audit
from extproc.core.tenant import Credentials
from extproc.observe.audit import (
    FILES_KEPT,
    IDENTITY_LINES_PER_S,
    PENDING_MAX,
    AuditLog,
    append,
    aside,
    offered,
)


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def log_at(path: Path, **settings: Any) -> tuple[AuditLog, Clock]:
    clock = Clock()
    return AuditLog(Audit(file=str(path), **settings), wall_clock=clock), clock


def failed(audit: AuditLog, source: str = "10.0.0.9") -> None:
    audit.identity_failed(
        source=source, code="invalid_api_key", reason="unknown API key", methods=["key"], blocked=False
    )


def test_without_a_file_nothing_is_kept() -> None:
    """Not even in memory."""
    audit = AuditLog(Audit())
    failed(audit)
    audit.event("quota_changed")
    assert not audit.waiting
    audit.flush(last=True)


def test_events_are_lines(tmp_path: Path) -> None:
    """Time, event and facts; the file is its owner's alone."""
    path = tmp_path / "audit.jsonl"
    audit, clock = log_at(path)
    audit.event("quota_changed", tenant="acme", before={}, after={"burst": 1.0})
    clock.now_s += 0.25
    audit.identity_failed(source="::1", code="c", reason="r" * 999, methods=["jwt"], blocked=True)
    assert not path.exists()
    audit.flush()
    first, second, third = lines(path)
    assert first == {
        "time": "1970-01-01T00:16:40.000Z",
        "event": "quota_changed",
        "tenant": "acme",
        "before": {},
        "after": {"burst": 1.0},
    }
    assert (second["event"], second["source"]) == ("identity_blocked", "::1")
    assert (third["event"], third["time"], len(third["reason"])) == (
        "identity_failed",
        "1970-01-01T00:16:40.250Z",
        200,
    )
    assert path.stat().st_mode & 0o777 == 0o600
    assert not audit.waiting


def test_a_flood_of_failures_is_counted(tmp_path: Path) -> None:
    """So many lines a second, then one with the number of the rest; the next second begins anew."""
    path = tmp_path / "audit.jsonl"
    audit, clock = log_at(path)
    for _ in range(1_000):
        failed(audit)
    audit.flush()
    assert len(lines(path)) == IDENTITY_LINES_PER_S
    clock.now_s += 1
    failed(audit)
    audit.flush()
    *_, more, one = lines(path)
    assert more["event"] == "identity_failed_more"
    assert (more["count"], more["by_code"]) == (980, {"invalid_api_key": 980})
    assert one["event"] == "identity_failed"


def test_a_flood_that_ends_is_summed_up_too(tmp_path: Path) -> None:
    """A later flush, or the last one, says it."""
    path = tmp_path / "audit.jsonl"
    audit, _ = log_at(path)
    for _ in range(IDENTITY_LINES_PER_S + 3):
        failed(audit)
    audit.flush(last=True)
    assert lines(path)[-1]["count"] == 3


def test_what_waits_is_bounded(tmp_path: Path) -> None:
    """Above it the newest are dropped, counted, and the file says so."""
    path = tmp_path / "audit.jsonl"
    audit, _ = log_at(path)
    for _ in range(PENDING_MAX + 5):
        audit.event("x")
    audit.flush()
    assert lines(path)[-1]["event"] == "dropped"
    assert (lines(path)[-1]["count"], audit.counts["audit.dropped"]) == (5, 5)


def test_the_file_is_put_aside_and_so_many_are_kept(tmp_path: Path) -> None:
    """The newest of the old ones is .1."""
    path = tmp_path / "audit.jsonl"
    for i in range(10):
        append(path, f"{i}\n".encode() * 10, bytes_max=25)
    assert path.read_text() == "9\n" * 10
    assert aside(path, 1).read_text() == "8\n" * 10
    assert len(list(tmp_path.iterdir())) == FILES_KEPT + 1
    append(path, b"x" * 100, bytes_max=25)
    assert path.read_bytes() == b"x" * 100


def test_a_disk_that_refuses_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line in the log when it begins, one when it is over."""
    path = tmp_path / "missing" / "audit.jsonl"
    audit, _ = log_at(path)
    for _ in range(3):
        audit.event("x")
        audit.flush()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert audit.counts["audit.lost"] == 3
    path.parent.mkdir()
    audit.event("x")
    audit.flush()
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING]
    assert len(lines(path)) == 1


def test_the_means_of_proof() -> None:
    """What was tried, not what it said."""
    assert offered(Credentials()) == []
    assert offered(Credentials(authorization="Bearer k", sans=("a",))) == ["key", "certificate"]
    assert offered(Credentials(authorization="Bearer t", jwt="s", proxy_tenant="acme")) == ["jwt", "proxy"]
    assert offered(Credentials(api_key="k", jwt_failure="expired")) == ["key", "jwt"]

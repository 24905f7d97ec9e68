"""A large file that changes while requests run, and signals without end: through the real service."""

from __future__ import annotations

import signal
from pathlib import Path

from gateway import KEYS, wait_for
from lone_service import ACME, Client, serving

TENANTS = 1_000
#: Signals sent while the file is read.
STORM = 300


def test_a_quota_in_a_large_file_holds_soon_after_an_edit_under_load(tmp_path: Path) -> None:
    """Of 1,000 tenants' file; every request is decided meanwhile, by the old quota or by the new.

    How soon, and how long a decision waits at most, is measured in the bench (`reload`).
    """
    with serving(tmp_path, tenants=TENANTS) as service, Client(service, KEYS["acme"]) as client:
        wait_for("load", lambda: client.statuses[200] > 20)
        service.edit(ACME, f"{ACME}  quota: {{requests_per_minute: 1}}\n")
        wait_for("the quota", lambda: client.statuses[429])
        assert service.status()["counts"]["reload.applied"] == 1
    assert set(client.statuses) == {200, 429}


def test_a_storm_of_signals_under_load_ends_with_the_last_text(tmp_path: Path) -> None:
    """Many SIGHUPs are few reloads; requests are decided all the while, and the file's end state holds."""
    with serving(tmp_path, tenants=TENANTS) as service, Client(service, KEYS["acme"]) as client:
        wait_for("load", lambda: client.statuses[200] > 20)
        for number in range(STORM):
            service.child.signal(signal.SIGHUP)
            if number == STORM // 2:
                service.edit(ACME, f"{ACME}  quota: {{requests_per_minute: 1}}\n")
        wait_for("the quota", lambda: client.statuses[429])
        counts = service.status()["counts"]
        assert 1 <= counts["reload.applied"] < STORM / 4
        assert "reload.refused" not in counts
    assert set(client.statuses) == {200, 429}

"""What tests of the node agent share."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from steersman_agent.nvml_fake import FakeNvml


@pytest.fixture
def xids_watched(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once a wait for XID events has begun: what happened before it was registered is never told."""
    waits = threading.Event()
    wait = FakeNvml.nvmlEventSetWait_v2

    def told(self: FakeNvml, *arguments: Any) -> Any:
        waits.set()
        return wait(self, *arguments)

    monkeypatch.setattr(FakeNvml, "nvmlEventSetWait_v2", told)
    return waits

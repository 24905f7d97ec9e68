"""The demo of all files here; tests/stand/sharing.py gives them to one worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gateway import envoy_binary
from live.live_demo import LiveDemo


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDemo]:
    """Fails where CI has no Envoy: a skip would prove nothing."""
    envoy_binary()
    folder = tmp_path_factory.mktemp("demo")
    demo = LiveDemo(folder)
    try:
        yield demo
    finally:
        code = demo.stop()
    assert code == 0, "".join(demo.lines)
    assert "Traceback" not in "".join(demo.lines)
    assert list((folder / "steersman-demo").iterdir()) == []


@pytest.fixture(scope="module", autouse=True)
def whole(live: LiveDemo) -> None:
    """What another file broke is mended."""
    live.fault("clear")

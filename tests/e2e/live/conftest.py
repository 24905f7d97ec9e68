"""The demo of all files here; tests/stand/sharing.py gives them to one worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gateway import envoy_binary
from live.live_demo import LiveDemo


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LiveDemo]]:
    """The demo that runs, if one does. Fails where CI has no Envoy: a skip would prove nothing."""
    envoy_binary()
    running = [LiveDemo(tmp_path_factory.mktemp("demo"))]
    try:
        yield running
    finally:
        end(running)


def end(running: list[LiveDemo]) -> None:
    """It ends well and leaves nothing. Where none runs any more there is nothing to say."""
    while running:
        demo = running.pop()
        code = demo.stop()
        assert code == 0, "".join(demo.lines)
        assert "Traceback" not in "".join(demo.lines)
        assert list((demo.run_dir.parent / "steersman-demo").iterdir()) == []


@pytest.fixture(scope="module")
def live(started: list[LiveDemo]) -> LiveDemo:
    """The one of all files here."""
    return started[0]


@pytest.fixture(scope="module", autouse=True)
def whole(live: LiveDemo, started: list[LiveDemo], request: pytest.FixtureRequest) -> None:
    """What another file broke is mended; with the folder's last test the demo ends.

    The session goes on in its worker for minutes, and a demo takes a third of a core.
    """
    request.node.parent.addfinalizer(lambda: end(started))
    live.fault("clear")

"""The demo of all files here; tests/stand/sharing.py gives them to one worker."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from live.live_demo import LiveDemo

from extproc.supervise.envoy import EnvoyMissingError, find_envoy


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDemo]:
    """Fails where CI has no Envoy: a skip would prove nothing."""
    try:
        find_envoy()
    except EnvoyMissingError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
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

"""A service of these tests' own, on a loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from recorded_traffic import record

from extproc.config.load import loads
from extproc.service.app import App
from tests.stand.waits import PATIENCE_S

ADDRESS = "10.9.9.1:8000"
CONFIG = """
gateway: {{auth: none}}
service: {{listen: ['{listen}'], drain_s: 0}}
pools: [{{name: chat, models: [m], endpoints: [{{address: '{address}', zone: z}}]}}]
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of 150 requests, twenty a second."""
    path = tmp_path_factory.mktemp("record") / "record.jsonl"
    record(path, requests=150, per_s=20.0)
    return path


@contextmanager
def running(config: str, *, stepped: bool = False) -> Iterator[App]:
    """A service of this configuration, until the block ends; its parts are stepped as in life where asked."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    steps: list[asyncio.Task[None]] = []

    async def start() -> App:
        app = App(loads(config))
        await app.start()
        if stepped:
            steps.append(asyncio.create_task(step(app)))
        return app

    async def step(app: App) -> None:
        while True:
            app.operating.step(now_ns=app.clock())
            await asyncio.sleep(0.25)

    async def stop(app: App) -> None:
        for each in steps:
            each.cancel()
        assert app.server is not None
        assert app.rpc.server is not None
        await app.roster.stop()
        await app.operating.stop()
        await app.server.drain(0.0)
        await app.rpc.server.stop()

    app = asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE_S)
    try:
        yield app
    finally:
        asyncio.run_coroutine_threadsafe(stop(app), loop).result(PATIENCE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service's address: where commands find it whatever their environment says of folders."""
    address = f"unix:{tmp_path_factory.mktemp('service')}/s.sock"
    with running(CONFIG.format(listen=address, address=ADDRESS)):
        yield address


@pytest.fixture(scope="module")
def scaling_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same, of a pool that scales."""
    address = f"unix:{tmp_path_factory.mktemp('scaling')}/s.sock"
    config = CONFIG.format(listen=address, address=ADDRESS)
    scaling = "scaling: {max_replicas: 4, min_replicas: 2, load_time_s: 30}"
    config = config.replace("zone: z}]", f"zone: z}}], {scaling}")
    with running(config + "scaling: {interval_s: 0.5}\n", stepped=True):
        yield address

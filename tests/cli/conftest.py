"""A service of these tests' own, on a loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

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
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service's address: where commands find it whatever their environment says of folders."""
    address = f"unix:{tmp_path_factory.mktemp('service')}/s.sock"
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> App:
        app = App(loads(CONFIG.format(listen=address, address=ADDRESS)))
        await app.start()
        return app

    async def stop(app: App) -> None:
        assert app.server is not None
        assert app.rpc.server is not None
        await app.roster.stop()
        await app.operating.stop()
        await app.server.drain(0.0)
        await app.rpc.server.stop()

    app = asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE_S)
    yield address
    asyncio.run_coroutine_threadsafe(stop(app), loop).result(PATIENCE_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()

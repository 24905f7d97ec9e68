"""A service of these tests' own, on a loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from extproc.app import App
from extproc.config.load import loads
from extproc.supervise.ports import free_ports
from tests.stand.waits import PATIENCE_S

ADDRESS = "10.9.9.1:8000"
CONFIG = """
gateway: {{auth: none}}
service: {{listen: ['127.0.0.1:{port}'], drain_s: 0}}
pools: [{{name: chat, models: [m], endpoints: [{{address: '{address}', zone: z}}]}}]
"""


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    """A service's address."""
    port = free_ports(1)[0]
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> App:
        app = App(loads(CONFIG.format(port=port, address=ADDRESS)))
        await app.start()
        return app

    async def stop(app: App) -> None:
        assert app.server is not None
        await app.roster.stop()
        await app.operating.stop()
        await app.server.drain(0.0)

    app = asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE_S)
    yield f"127.0.0.1:{port}"
    asyncio.run_coroutine_threadsafe(stop(app), loop).result(PATIENCE_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()

"""A web application of a test's on a port of this machine."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

PageHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def one_page(handler: PageHandler) -> web.Application:
    """An application that has one answer for whatever it is asked."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    return app


@asynccontextmanager
async def listening(app: web.Application, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Its address, until the end of the block; requests under way are not waited for."""
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()

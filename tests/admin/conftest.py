"""A service with its admin port, on this loop; nothing of Envoy, and no gRPC."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from gateway import free_ports

from extproc.config.admin import Admin
from extproc.config.load import loads
from extproc.config.model import Config
from extproc.core.outcome import Outcome, Reservation, Routed
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.tenant import Tenant, hash_key
from extproc.service.app import App

CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=400, max_new_tokens=50)
READER, WRITER = "reader-token-0123456789", "writer-token-0123456789"


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


TOKENS = (
    f"[{{name: reader, sha256: {sha256(READER)}}}, {{name: writer, sha256: {sha256(WRITER)}, scope: write}}]"
)
CONFIG = f"""
pools:
  - name: chat
    models: [m]
    endpoints: [{{address: "10.0.0.1:80"}}, {{address: "10.0.0.2:80"}}]
tenants:
  - name: acme
    keys: [{{sha256: {hash_key("a-key")}}}]
    quota: {{requests_per_minute: 100}}
  - name: globex
    keys: [{{sha256: {hash_key("g-key")}}}]
"""


#: (id, event, data) as they come.
Events = AsyncIterator[tuple[str, str, Any]]


class Standing:
    """The running port, and a client of it."""

    def __init__(self, app: App, url: str, session: aiohttp.ClientSession) -> None:
        self.app, self.url, self.session = app, url, session

    async def get(self, path: str, token: str = "", **headers: str) -> tuple[int, Any]:
        return await self.ask("GET", path, token, **headers)

    async def ask(
        self, method: str, path: str, token: str = "", body: Any = None, **headers: str
    ) -> tuple[int, Any]:
        if token:
            headers["Authorization"] = f"Bearer {token}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        more = {"json": body} if body is not None else {}
        async with self.session.request(method, self.url + path, headers=named, **more) as answer:
            text = await answer.text()
            if not answer.headers.get("Content-Type", "").startswith("application/json"):
                return answer.status, text
            # In a thread: reading is this client's work, and some tests measure the server's.
            return answer.status, await asyncio.to_thread(json.loads, text)

    def admit(self, tenant: str = "acme") -> Reservation:
        """One request routed, as the wire would have it."""
        found: Tenant = self.app.processor.directory.tenants[tenant]
        routed = self.app.scheduler.admit(CHAT, found, now_ns=self.app.clock())
        assert isinstance(routed, Routed), routed
        return routed.reservation

    def settle(self, reservation: Reservation, **facts: Any) -> None:
        given = {"status": 200, "served_by": reservation.address, "attempts": 1, "final": True, **facts}
        self.app.settle(Outcome(reservation=reservation, **given))

    @asynccontextmanager
    async def events(
        self, token: str = "", last_id: str = ""
    ) -> AsyncIterator[AsyncIterator[tuple[str, str, Any]]]:
        """Follow the live events."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if last_id:
            headers["Last-Event-ID"] = last_id
        async with self.session.get(self.url + "api/v1/events", headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            assert answer.headers["Content-Type"].startswith("text/event-stream")

            async def read() -> Events:
                found: dict[str, str] = {}
                while True:
                    line = (await answer.content.readuntil(b"\n")).decode().rstrip("\n")
                    if line:
                        name, _, value = line.partition(": ")
                        found[name] = value
                    elif "data" in found:
                        yield found["id"], found["event"], json.loads(found["data"])
                        found = {}
                    else:
                        found = {}

            yield read()


def free_port() -> int:
    return free_ports(1)[0]


Body = Callable[[Standing], Awaitable[None]]


@pytest.fixture
def stand() -> Callable[..., None]:
    """Run a test's body beside a running port. `admin` are further lines of its section."""

    def run(
        body: Body,
        admin: str = "",
        config: str | Config = CONFIG,
        *,
        prepare: Callable[[App], None] | None = None,
    ) -> None:
        async def main() -> None:
            listen = f"127.0.0.1:{free_port()}"
            app = App(
                loads(f"{config}\nadmin: {{listen: '{listen}'{admin}}}\n")
                if isinstance(config, str)
                else config.model_copy(update={"admin": Admin(listen=listen)})
            )
            if prepare is not None:
                prepare(app)
            await app.administering.start()
            # A client of its own bounds: nothing of a test may wait for a free connection.
            connector = aiohttp.TCPConnector(limit=0)
            try:
                async with aiohttp.ClientSession(
                    connector=connector, read_bufsize=2**24, timeout=aiohttp.ClientTimeout(total=20)
                ) as session:
                    async with asyncio.timeout(60):
                        await body(Standing(app, app.administering.url, session))
            finally:
                await app.administering.stop()

        asyncio.run(main())

    return run


@pytest.fixture
def tokens() -> str:
    """A section's lines with a reader's and a writer's token."""
    return f", tokens: {TOKENS}"

"""A fleet whose pool counts its prompts, beside a test's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from extproc.config.load import loads
from extproc.core.decide import resolve
from extproc.core.fleet import Fleet
from extproc.core.ledger import Ledger
from extproc.core.outcome import Reject
from extproc.core.request import Request
from extproc.core.tenant import ANONYMOUS
from extproc.service.build import pool_specs
from extproc.service.tokens import TokensPart
from extproc.upstream import PLAIN, ReplicaAccess

S = 1_000_000_000


def text_of(tokenizer: str, *, address: str = "127.0.0.1:9", engine: str = "vllm", more: str = "") -> str:
    return f"""
gateway: {{auth: none}}
pools:
  - name: p
    models: [m]
    engine: {engine}
    endpoints: [{{address: "{address}"}}]
    {tokenizer}
    {more}
"""


class Counting:
    """A fleet whose pool counts, beside a test's event loop."""

    def __init__(self, text: str, access: ReplicaAccess = PLAIN) -> None:
        self.config = loads(text)
        self.fleet = Fleet(pool_specs(self.config))
        self.part = TokensPart(self.config, self.fleet, way=lambda _: (access, ""))

    @property
    def pool(self) -> dict[str, Any]:
        found = self.part.status()["p"]
        assert isinstance(found, dict)
        return found

    def tokens(self, request: Request) -> int:
        found = resolve(
            request,
            ANONYMOUS,
            self.fleet,
            Ledger(ttl_ns=S, remembered_max=10),
            id="i",
            default_model="m",
            reservations_max=10,
        )
        assert not isinstance(found, Reject)
        return found.input_tokens

    def reload(self, text: str) -> None:
        self.config = loads(text)
        self.fleet.apply(pool_specs(self.config))
        self.part.apply(self.config)


@asynccontextmanager
async def running(counting: Counting) -> Any:
    for endpoint in counting.fleet.endpoints:
        endpoint.refresh()
    await counting.part.start()
    try:
        yield counting
    finally:
        await counting.part.stop()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 (threads and a server set no event of ours)
            await asyncio.sleep(0.005)


def play(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scene())  # type: ignore[arg-type]

"""One simulated replica behind HTTP, asked by a test's scene."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from extproc.sim.listening import ReplicaSpec, start_replicas

Ask = Callable[..., Awaitable[tuple[int, Any, str]]]
Scene = Callable[[Ask], Awaitable[None]]


def scene(play: Scene, **settings: Any) -> None:
    """Run a scene against one replica, a hundred times faster than life."""

    async def run() -> None:
        spec = ReplicaSpec(name="solo", **{"time_scale": 100.0, **settings})
        async with await start_replicas([spec]) as running, aiohttp.ClientSession() as session:
            base = f"http://{running.addresses[0]}"

            async def ask(path: str, body: object = None, **options: Any) -> tuple[int, Any, str]:
                method = "GET" if body is None and "data" not in options else "POST"
                if body is not None:
                    options["json"] = body
                async with session.request(method, base + path, **options) as response:
                    return response.status, response.headers, await response.text()

            ask.session, ask.base = session, base  # type: ignore[attr-defined]
            await play(ask)

    asyncio.run(run())


def frames(body: str) -> list[Any]:
    """The JSON of each `data:` frame; `[DONE]` as it is."""
    assert body.endswith("\n\n")
    found = []
    for piece in body.removesuffix("\n\n").split("\n\n"):
        assert piece.startswith("data: ")
        text = piece.removeprefix("data: ")
        found.append(text if text == "[DONE]" else json.loads(text))
    return found


async def state(ask: Ask) -> dict[str, Any]:
    return json.loads((await ask("/sim/state"))[2])


async def until(ask: Ask, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Poll the state; the test's own timeout is the limit."""
    while not reached(seen := await state(ask)):  # noqa: ASYNC110 — the server has no event to offer
        await asyncio.sleep(0.01)
    return seen


# Whole answers.

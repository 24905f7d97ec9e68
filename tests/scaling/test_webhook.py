"""The webhook, against a server of our own on a real port."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from extproc.config.scaling import ScalingWebhook
from extproc.core.scaling.values import PoolPlan
from extproc.scaling.webhook import ScalingNotices
from tests.stand.waits import until
from tests.stand.web_server import listening


def plan(wanted: int, pool: str = "llama", *, at_ns: int = 5_000_000_000) -> PoolPlan:
    return PoolPlan(
        pool=pool,
        at_ns=at_ns,
        wanted=wanted,
        ready=1,
        loading=0,
        draining=0,
        why="more come",
        leaving=("a:1",),
    )


class Receiver:
    """Answers as it is told, and keeps what it was sent."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.seen: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        self.seen.append(json.loads(await request.text()))
        self.headers.append(request.headers.copy())
        await self.gate.wait()
        return web.Response(status=self.answers.pop(0) if self.answers else 204)

    @property
    def told(self) -> list[tuple[str, int]]:
        return [(each["pool"], each["wanted"]) for each in self.seen]


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    found = Receiver()
    app = web.Application()
    app.router.add_post("/hook", found.take)
    async with listening(app) as address:
        found.url = f"http://{address}/hook"
        yield found


def driven(run: Any) -> None:
    asyncio.run(asyncio.wait_for(run(), 60))


def test_each_change_is_told_once(tmp_path: Path) -> None:
    """With what it was before, when, why, and the token; a plan that wants the same says nothing."""
    token = tmp_path / "token"
    token.write_text("first-token\n")

    async def run() -> None:
        async with receiver() as there:
            settings = ScalingWebhook(url=there.url, bearer_file=str(token))
            notices = ScalingNotices(settings, wall_ns=100_000_000_000)
            notices.start()
            notices.heard(plan(2))
            await until(lambda: notices.delivered == 1)
            notices.heard(plan(2))
            token.write_text("second-token\n")
            notices.heard(plan(3))
            notices.heard(plan(1, "mistral"))
            await until(lambda: notices.delivered == 3)
            await notices.stop()
            assert there.told == [("llama", 2), ("llama", 3), ("mistral", 1)]
            assert there.seen[1] == {
                "pool": "llama",
                "wanted": 3,
                "told_before": 2,
                "ready": 1,
                "loading": 0,
                "draining": 0,
                "leaving": ["a:1"],
                "kind": "",
                "bound": "",
                "why": "more come",
                "at_unix_s": 105.0,
            }
            assert [each["authorization"] for each in there.headers] == [
                "Bearer first-token",
                "Bearer second-token",
                "Bearer second-token",
            ]

    driven(run)


def test_after_a_failure_the_newest_is_told() -> None:
    """What was wanted meanwhile is not told any more; a number that may have been heard is told again."""

    async def run() -> None:
        async with receiver() as there:
            there.answers = [204, 500]
            notices = ScalingNotices(ScalingWebhook(url=there.url), wall_ns=0, retry_s=0.05)
            notices.start()
            notices.heard(plan(2))
            await until(lambda: notices.delivered == 1)
            notices.heard(plan(3))
            await until(lambda: notices.failures == 1)
            assert notices.trouble == "answered 500"
            for wanted in (4, 5, 2):
                notices.heard(plan(wanted))
            await until(lambda: notices.delivered == 2)
            assert there.told == [("llama", 2), ("llama", 3), ("llama", 2)]
            assert notices.trouble == ""
            await notices.stop()

    driven(run)


def test_who_does_not_answer_keeps_nobody_waiting() -> None:
    """While an answer is awaited plans go on; then the newest of each pool is told, also where it is what
    had been told before."""

    async def run() -> None:
        async with receiver() as there:
            notices = ScalingNotices(ScalingWebhook(url=there.url, timeout_s=30.0), wall_ns=0)
            notices.start()
            notices.heard(plan(1))
            await until(lambda: notices.delivered == 1)
            there.gate.clear()
            notices.heard(plan(2))
            await until(lambda: len(there.seen) == 2)
            for wanted in range(3, 500):
                notices.heard(plan(wanted))
            notices.heard(plan(1))
            notices.heard(plan(7, "mistral"))
            assert notices.status()["waiting"] == 2
            there.gate.set()
            await until(lambda: notices.delivered == 4)
            assert there.told[1:] == [("llama", 2), ("llama", 1), ("mistral", 7)]
            await notices.stop()

    driven(run)


def test_nobody_there_and_no_token(tmp_path: Path) -> None:
    """A port where nobody listens, a late answer and an empty token file are said in words; the end comes in
    time."""
    (tmp_path / "token").write_text("\n")

    async def run() -> None:
        async with receiver() as there:
            there.gate.clear()
            for settings, said in (
                (ScalingWebhook(url="http://127.0.0.1:1/x", timeout_s=5.0), "127.0.0.1"),
                (ScalingWebhook(url=there.url, timeout_s=0.1), "no answer within 0.1 s"),
                (ScalingWebhook(url=there.url, bearer_file=str(tmp_path / "token")), "holds no token"),
                (ScalingWebhook(url=there.url, bearer_file=str(tmp_path / "none")), "No such file"),
            ):
                notices = ScalingNotices(settings, wall_ns=0, retry_s=30.0)
                notices.start()
                notices.heard(plan(2))
                await until(lambda notices=notices: notices.failures == 1)
                assert said in notices.trouble
                await notices.stop()
            there.gate.set()

    driven(run)

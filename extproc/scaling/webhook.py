"""Tells one URL of each change of how many replicas are wanted.

Owns what is sent and when again. Who plans never waits for an answer: of each pool only the newest is kept,
and sent as soon as the one before it was answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Any, Final

import msgspec

from extproc.config.scaling import ScalingWebhook
from extproc.core.scaling.values import PoolPlan
from extproc.observe.alerts.post import post

log = logging.getLogger(__name__)

#: How long after a failure it is tried again; doubled each time, up to the longest.
RETRY_S, RETRY_S_MAX = 1.0, 60.0
#: How long what was not told may still take when the service ends.
STOP_S: Final = 1.0
USER_AGENT: Final = "steersman-scaling"


class ScalingNotices:
    """One webhook. `wall_ns` is added to a plan's time to make it unix time."""

    def __init__(self, settings: ScalingWebhook, *, wall_ns: int, retry_s: float = RETRY_S) -> None:
        self.settings, self._wall_ns, self._retry_s = settings, wall_ns, retry_s
        #: What is to be told, the newest of each pool; and what each was told last.
        self._new: dict[str, PoolPlan] = {}
        self._told: dict[str, int] = {}
        self._sending = ""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.delivered = self.failures = 0
        self.trouble = ""

    def heard(self, plan: PoolPlan) -> None:
        """A new plan; told if another number is wanted than was told last. Returns at once."""
        if self._told.get(plan.pool) == plan.wanted and self._sending != plan.pool:
            # Back to what it knows, before it heard otherwise.
            self._new.pop(plan.pool, None)
            return
        self._new[plan.pool] = plan
        self._wake.set()

    def start(self) -> None:
        """Begin to send; on the event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Give what waits a last moment."""
        if self._task is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                while self._new and not self.trouble:  # noqa: ASYNC110 (for a second, once)
                    await asyncio.sleep(0.02)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def status(self) -> dict[str, object]:
        """How it goes."""
        return {
            "url": self.settings.url.partition("?")[0],
            "delivered": self.delivered,
            "failures": self.failures,
            "waiting": len(self._new),
            "trouble": self.trouble,
        }

    async def _run(self) -> None:
        wait_s = self._retry_s
        while True:
            if not self._new:
                self._wake.clear()
                await self._wake.wait()
            pool, plan = next(iter(self._new.items()))
            self._sending = pool
            trouble = await self._send(plan)
            self._sending = ""
            if trouble:
                # It may have been heard all the same: whatever is wanted next is told.
                self._told.pop(pool, None)
                if not self.trouble:
                    log.warning("scaling.webhook: %s; trying again", trouble)
                self.failures += 1
                self.trouble = trouble
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_S_MAX)
                continue
            wait_s, self.trouble = self._retry_s, ""
            self.delivered += 1
            self._told[pool] = plan.wanted
            # What came meanwhile stays; unless it says what was just told.
            if (newest := self._new.get(pool)) is not None and newest.wanted == plan.wanted:
                del self._new[pool]

    async def _send(self, plan: PoolPlan) -> str:
        """What went wrong; "" where it was taken."""
        settings = self.settings
        try:
            given = {"content-type": "application/json", "user-agent": USER_AGENT}
            if settings.bearer_file is not None:
                # Read anew each time: secrets are rotated.
                token = await asyncio.to_thread(bearer_of, settings.bearer_file)
                given["authorization"] = f"Bearer {token}"
            body = msgspec.json.encode(self._message(plan))
            status = await post(settings.url, body, given, timeout_s=settings.timeout_s)
        except TimeoutError:
            return f"no answer within {settings.timeout_s:g} s"
        except (OSError, ValueError) as error:
            return str(error) or type(error).__name__
        return "" if 200 <= status < 300 else f"answered {status}"

    def _message(self, plan: PoolPlan) -> dict[str, Any]:
        return {
            "pool": plan.pool,
            "wanted": plan.wanted,
            "told_before": self._told.get(plan.pool),
            "ready": plan.ready,
            "loading": plan.loading,
            "draining": plan.draining,
            "leaving": list(plan.leaving),
            "kind": plan.kind,
            "bound": plan.bound,
            "why": plan.why,
            "at_unix_s": round((plan.at_ns + self._wall_ns) / 1e9, 3),
        }


def bearer_of(file: str) -> str:
    """The token of a file. Raises OSError or ValueError where there is none."""
    token = Path(file).read_text(encoding="latin-1").strip()
    if not token or any(each in token for each in "\r\n\0"):
        raise ValueError(f"bearer_file {file} holds no token; write one into it, on one line")
    return token

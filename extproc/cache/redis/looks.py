"""Looks for answers in Redis: what comes in one turn of the loop, or while one waits, is one round trip.

Owns the wait of each and the bound of all. A look that is late costs its request the budget and no more; its
round trip goes on, since to cancel it would cost the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from extproc.cache.redis.scripts import ScriptBook
from extproc.state.redis_client import OPERATION_TIMEOUT_S

#: Looks under way, those that are late among them; above it nothing is looked up.
LOOKS_MAX: Final = 64

Command = tuple[Any, ...]


class AnswerLooks:
    """Commands that wait for their answers. `asker` is whom to ask now; `ended` hears of each round trip that
    is over, with what went wrong."""

    def __init__(
        self,
        scripts: ScriptBook,
        *,
        asker: Callable[[], Redis],
        ended: Callable[[Exception | None], None],
    ) -> None:
        self._scripts, self._asker, self._ended = scripts, asker, ended
        self._gathered: list[tuple[Command, asyncio.Future[Any]]] = []
        #: The task that asks, while there is something to ask.
        self.rounds: set[asyncio.Task[None]] = set()
        self._busy = False
        #: Whom to ask, and the connection to it.
        self._held: tuple[Any, Any] | None = None
        self._under_way = 0

    @property
    def full(self) -> bool:
        """Whether as many are under way as may be."""
        return self._under_way >= LOOKS_MAX

    async def ask(self, command: Command, *, budget_s: float) -> Any:
        """The answer to one command. Raises TimeoutError after the budget, or what the server said."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._gathered.append((command, answer))
        self._under_way += 1
        if not self._busy:
            # Its first step is the loop's next turn: whoever asks in this one comes along.
            self._busy = True
            task = loop.create_task(self._work())
            self.rounds.add(task)
            task.add_done_callback(self.rounds.discard)
        timer = loop.call_later(budget_s, _late, answer)
        try:
            return await answer
        finally:
            timer.cancel()

    async def _work(self) -> None:
        """Ask all that was gathered; what comes until that is answered is in the round trip after it."""
        try:
            while self._gathered:
                gathered, self._gathered = self._gathered, []
                await self._round(gathered)
        finally:
            self._busy = False

    async def _round(self, gathered: list[tuple[Command, asyncio.Future[Any]]]) -> None:
        wrong: Exception | None = None
        results: list[Any] = [ConnectionError("it is closed")] * len(gathered)
        try:
            async with asyncio.timeout(OPERATION_TIMEOUT_S):
                results = await self._results([command for command, _ in gathered])
            wrong = next((each for each in results if isinstance(each, Exception)), None)
        except Exception as error:  # noqa: BLE001 (told to all that wait, and to the session)
            wrong, results = error, [error] * len(gathered)
        finally:
            self._under_way -= len(gathered)
            for (_, answer), result in zip(gathered, results, strict=True):
                _tell(answer, result)
        self._ended(wrong)

    async def _results(self, commands: list[Command]) -> list[Any]:
        """Their answers, errors of the server among them."""
        client = self._asker()
        pool: Any = getattr(client, "connection_pool", None)
        if pool is not None:
            results = await self._piped(pool, commands)
        else:
            # A cluster's: each scope may be on another node.
            pipeline = client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            results = await pipeline.execute(raise_on_error=False)
        for at, result in enumerate(results):
            if isinstance(result, NoScriptError):
                results[at] = await self._scripts.call(client, commands[at])
        return results

    async def _piped(self, pool: Any, commands: list[Command]) -> list[Any]:
        """Answers on our connection to one server, for a third of what a client's own commands cost."""
        connection = await self._connected(pool)
        results: list[Any] = []
        try:
            await connection.send_packed_command(b"".join(map(_spelled, commands)), check_health=False)
            for _ in commands:
                try:
                    results.append(await connection.read_response())
                except ResponseError as error:
                    results.append(error)
        except BaseException:
            # What is not read yet must not be the answer to the next one.
            await connection.disconnect(nowait=True)
            raise
        return results

    async def _connected(self, pool: Any) -> Any:
        """Its connection, for as long as the pool is whom to ask: a pool that is closed closes it."""
        if self._held is None or self._held[0] is not pool:
            connection = await pool.get_connection()
            # One timeout for all instead of one for each write and read, of which each costs a tenth.
            connection.socket_timeout = None
            self._held = pool, connection
        return self._held[1]


def _spelled(command: Command) -> bytes:
    """A command as RESP has it: an array of strings."""
    parts = [b"*%d\r\n" % len(command)]
    for each in command:
        word = each if isinstance(each, bytes) else str(each).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(word), word))
    return b"".join(parts)


def _late(answer: asyncio.Future[Any]) -> None:
    _tell(answer, TimeoutError())


def _tell(answer: asyncio.Future[Any], result: Any) -> None:
    """Once; nobody waits for what was late."""
    if answer.done():
        return
    if isinstance(result, BaseException):
        answer.set_exception(result)
    else:
        answer.set_result(result)

"""Looks for answers in Redis: what comes in one turn of the loop is one round trip, on one connection.

Owns the wait of each and the bound of all. A look that is late costs its request the budget and no more; its
answer is still read, since to cancel it would cost the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from extproc.cache.redis.line import AnswerLine
from extproc.cache.redis.scripts import ScriptBook
from extproc.state.redis_client import OPERATION_TIMEOUT_S

#: Looks under way, those that are late among them; above it nothing is looked up.
LOOKS_MAX: Final = 64
#: Words of commands kept as they are spelled (keys of scopes, scripts, tenants); above it they are made anew.
WORDS_MAX: Final = 10_000

Command = tuple[Any, ...]
#: A command, and who waits for its answer.
Gathered = tuple[Command, asyncio.Future[Any]]


class AnswerLooks:
    """Commands that wait for their answers. `asker` is whom to ask now; `ended` hears what went wrong."""

    def __init__(
        self,
        scripts: ScriptBook,
        *,
        asker: Callable[[], Redis],
        ended: Callable[[Exception], None],
    ) -> None:
        self._scripts, self._asker, self._ended = scripts, asker, ended
        self._gathered: list[Gathered] = []
        #: Those that ask where there is no line yet.
        self.rounds: set[asyncio.Task[None]] = set()
        #: Whom the line asks, and its connection.
        self._pool: Any = None
        self._connection: Any = None
        self._line: AnswerLine | None = None
        self._under_way = 0
        self._words: dict[Any, bytes] = {}

    @property
    def full(self) -> bool:
        """Whether as many are under way as may be."""
        return self._under_way >= LOOKS_MAX

    async def ask(self, command: Command, *, budget_s: float) -> Any:
        """The answer to one command. Raises TimeoutError after the budget, or what the server said."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        if not self._gathered:
            # In the loop's next turn: whoever asks in this one comes along.
            loop.call_soon(self._go)
        self._gathered.append((command, answer))
        self._under_way += 1
        timer = loop.call_later(budget_s, _late, answer)
        try:
            return await answer
        finally:
            timer.cancel()

    def _go(self) -> None:
        """Ask all that was gathered, at once where there is a line."""
        gathered, self._gathered = self._gathered, []
        line = self._line
        pool = getattr(self._asker(), "connection_pool", None)
        if line is not None and line.open and not self.rounds and pool is self._pool:
            self._send(line, gathered)
            return
        self._begin(self._round(gathered))

    def _begin(self, asking: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(asking)
        self.rounds.add(task)
        task.add_done_callback(self.rounds.discard)

    def _send(self, line: AnswerLine, gathered: list[Gathered]) -> None:
        spelled = b"".join([self._spelled(command) for command, _ in gathered])
        line.send(spelled, [partial(self._heard, command, answer) for command, answer in gathered])

    def _heard(self, command: Command, answer: asyncio.Future[Any], result: Any) -> None:
        """One answer is there."""
        if isinstance(result, NoScriptError):
            self._begin(self._again(command, answer))  # it is under way until that ends
            return
        self._under_way -= 1
        if isinstance(result, ResponseError):
            self._ended(result)
        _tell(answer, result)

    async def _again(self, command: Command, answer: asyncio.Future[Any]) -> None:
        """The server had forgotten the script."""
        wrong: Exception | None = None
        try:
            async with asyncio.timeout(OPERATION_TIMEOUT_S):
                _tell(answer, await self._scripts.call(self._asker(), command))
        except Exception as error:  # noqa: BLE001 (told to who waits, and to the session)
            wrong = error
        finally:
            self._under_way -= 1
            _tell(answer, wrong or ConnectionError("it is closed"))
        if wrong is not None:
            self._ended(wrong)

    async def _round(self, gathered: list[Gathered]) -> None:
        """The same without a line: connect first, or ask a cluster."""
        wrong: Exception | None = None
        client = self._asker()
        pool: Any = getattr(client, "connection_pool", None)
        try:
            async with asyncio.timeout(OPERATION_TIMEOUT_S):
                if pool is not None:
                    line = await self._connected(pool)
                    some, gathered = gathered, []
                    self._send(line, some)
                    return
                await self._clustered(client, gathered)
        except Exception as error:  # noqa: BLE001 (told to all that wait, and to the session)
            wrong = error
        finally:
            for _, answer in gathered:
                self._under_way -= 1
                _tell(answer, wrong or ConnectionError("it is closed"))
        if wrong is not None:
            self._ended(wrong)

    async def _clustered(self, client: Redis, gathered: list[Gathered]) -> None:
        """Of a cluster: each scope may be on another node."""
        pipeline = client.pipeline(transaction=False)
        for command, _ in gathered:
            pipeline.execute_command(*command)
        results = await pipeline.execute(raise_on_error=False)
        waiting = gathered.copy()
        gathered.clear()
        for (command, answer), result in zip(waiting, results, strict=True):
            self._heard(command, answer, result)

    async def _connected(self, pool: Any) -> AnswerLine:
        """The line to one server, for as long as the pool is whom to ask: a pool that is closed closes it."""
        line = self._line
        if line is not None and line.open and pool is self._pool:
            return line
        if pool is not self._pool:
            self._connection = await pool.get_connection()
            self._pool = pool
        else:
            await self._connection.disconnect(nowait=True)
        await self._connection.connect()
        self._line = AnswerLine(self._connection, lost=self._ended)
        return self._line

    def _spelled(self, command: Command) -> bytes:
        """A command as RESP has it: an array of strings."""
        words, parts = self._words, [b"*%d\r\n" % len(command)]
        for each in command:
            if isinstance(each, bytes):
                parts.append(b"$%d\r\n%b\r\n" % (len(each), each))
                continue
            word = words.get(each)
            if word is None:
                raw = str(each).encode()
                word = b"$%d\r\n%b\r\n" % (len(raw), raw)
                # Of numbers there are ever new ones.
                if isinstance(each, str):
                    if len(words) >= WORDS_MAX:
                        words.clear()
                    words[each] = word
            parts.append(word)
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

"""One connection to Redis for looks, which are written as they come: answers are read in their order.

Owns the bytes of it and who waits for which answer. redis-py connects (names, passwords, TLS, sentinels);
then the socket's protocol is ours, so that a look costs neither a task nor a stream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import hiredis
from redis.exceptions import InvalidResponse

from extproc.state.redis_client import OPERATION_TIMEOUT_S

#: What the reader says where an answer is not whole yet: answers may be None.
_MORE: Final = object()

#: Hears an answer, which may be an error of the server's, or why none comes.
Heard = Callable[[Any], None]


class AnswerLine(asyncio.Protocol):
    """Writes commands and reads their answers. `lost` hears once why it is over, if it was not closed.

    An answer that has not come within OPERATION_TIMEOUT_S ends the line: the next ones would be behind it.
    """

    def __init__(self, connection: Any, *, lost: Callable[[Exception], None]) -> None:
        """`connection` is one of redis-py's that is connected."""
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=connection._parser.parse_error,  # noqa: SLF001 (which class an error has)
            notEnoughData=_MORE,
        )
        self._transport: asyncio.Transport = connection._writer.transport  # noqa: SLF001 (there is no other way)
        #: redis-py waits for its own protocol's end when it closes.
        self._before = self._transport.get_protocol()
        self._lost = lost
        self._waiting: deque[Heard] = deque()
        #: How many were asked when the watch was set, and how many have been answered.
        self._asked = self._answered = self._watched = 0
        self._watch: asyncio.TimerHandle | None = None
        self.open = True
        self._transport.set_protocol(self)

    def send(self, commands: bytes, heard: Sequence[Heard]) -> None:
        """Ask what `commands` spell; each of `heard` hears one answer, in their order."""
        self._waiting.extend(heard)
        self._asked += len(heard)
        self._transport.write(commands)
        if self._watch is None:
            self._set_watch()

    def data_received(self, data: bytes) -> None:
        """Answers, or parts of them."""
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (answer := reader.gets()) is not _MORE:
                heard = waiting.popleft()
                self._answered += 1
                heard(answer)
        except (InvalidResponse, IndexError) as error:
            # Not Redis, or more than was asked for: whose answer comes next is not known.
            self._end(InvalidResponse(f"an answer to no question: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody waits any more."""
        cast("asyncio.Protocol", self._before).connection_lost(exc)
        self._end(exc or ConnectionError("the connection was closed"))

    def _set_watch(self) -> None:
        self._watched = self._asked
        self._watch = asyncio.get_running_loop().call_later(OPERATION_TIMEOUT_S, self._look)

    def _look(self) -> None:
        """What was asked before the watch was set has been answered by now."""
        self._watch = None
        if self._answered < self._watched:
            self._end(TimeoutError())
        elif self._waiting:
            self._set_watch()

    def _end(self, why: Exception) -> None:
        if not self.open:
            return
        self.open = False
        if self._watch is not None:
            self._watch.cancel()
        self._transport.abort()
        waiting, self._waiting = self._waiting, deque()
        for heard in waiting:
            heard(why)
        self._lost(why)

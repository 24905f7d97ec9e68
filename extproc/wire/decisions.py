"""One ext_proc call from its first message to its end, on any transport: when to decide, wait, send and undo.

Owns the waits (a quota's shared store, a hold, a large body's turn, the deadline). What is answered is the
exchange's, how bytes travel the transport's.
"""

from __future__ import annotations

import asyncio
from functools import partial

from google.protobuf.message import DecodeError

from extproc.core.cachekeys import AskAnswer
from extproc.core.remote.identity import AskTaken
from extproc.core.scheduler import AskQuota
from extproc.wire.calls import GrpcStatus, RpcCall
from extproc.wire.exchange import Exchange
from extproc.wire.picker import Picker
from extproc.wire.picker.exchange import PickerExchange
from extproc.wire.processor import Processor
from extproc.wire.responder import Reply


class DecisionCall:
    """The handler of `Process`; `picker` takes the calls that speak its protocol."""

    __slots__ = ("_call", "_exchange", "_limit", "_picker", "_processor", "_reply", "_waiting", "busy")

    def __init__(self, call: RpcCall, processor: Processor, picker: Picker | None) -> None:
        self._call, self._processor, self._picker = call, processor, picker
        self.busy = False
        self._exchange: Exchange | None = None
        self._reply: Reply | None = None
        #: The deadline, and what is waited for meanwhile; a hold waits for nothing of ours.
        self._limit: asyncio.TimerHandle | None = None
        self._waiting: asyncio.TimerHandle | asyncio.Task[None] | None = None

    def message(self, data: bytes) -> None:
        """Answer it, now or when what the answer waits for has come."""
        try:
            exchange = self._exchange
            if exchange is None:
                exchange = self._begin(data)
            reply = exchange.receive(data)
        except DecodeError:
            self._call.fail(GrpcStatus.INVALID_ARGUMENT, "not a ProcessingRequest")
            return
        self._take(exchange, reply)

    def sent(self) -> None:
        """The last reply is out: what it says of the call holds from here on."""
        reply, exchange = self._reply, self._exchange
        if reply is None or exchange is None:
            return
        self._reply = None
        if reply.end or reply.reservation_id:
            exchange.delivered()
        if reply.wait:
            # A client that leaves meanwhile ends this call, and `closed` gives the wait up.
            exchange.when_ready(partial(self._take, exchange))
        elif not reply.end:
            if reply.reservation_id:
                self._forget_limit()
            self.busy = False

    def sent_all(self) -> None:
        """Envoy has closed its side."""
        if self._exchange is not None:
            self._exchange.sent_all()
        self.busy = True
        self._call.write((), end=True)

    def closed(self) -> None:
        """What was not delivered is undone."""
        self.busy = True
        self._forget_limit()
        self._stop_waiting()
        if self._exchange is not None:
            exchange, self._exchange = self._exchange, None
            exchange.close()

    def _begin(self, first: bytes) -> Exchange:
        """The machine for a stream that begins with this message."""
        picker, processor = self._picker, self._processor
        if picker is not None and picker.speaks(first):
            exchange: Exchange = PickerExchange(picker)
        else:
            exchange = Exchange(processor)
        self._exchange = exchange
        exchange.request_trace = processor.request_traces.begin(self._call.metadata)
        if (deadline_s := exchange.deadline_s) is not None:
            self._limit = asyncio.get_running_loop().call_later(deadline_s, self._overdue, exchange)
        return exchange

    def _take(self, exchange: Exchange, reply: Reply) -> None:
        if reply.ask is not None:
            self.busy = True
            asked = reply.ask
            if isinstance(asked, AskTaken):
                asks = self._first(exchange, asked, reply)
            elif isinstance(asked, AskAnswer):
                asks = self._look(exchange, asked)
            else:
                asks = self._ask(exchange, asked)
            self._waiting = asyncio.get_running_loop().create_task(asks)
        elif reply.after_s:
            self.busy = True
            self._waiting = asyncio.get_running_loop().call_later(reply.after_s, self._send, reply)
        else:
            self._send(reply)

    def _send(self, reply: Reply) -> None:
        """Ending the stream with the decision is what lets every token stream outlive this process."""
        self.busy, self._reply = True, reply
        if reply.data:
            self._call.write((reply.data, *reply.more) if reply.more else (reply.data,), end=reply.end)
        elif reply.more or reply.end:
            self._call.write(reply.more, end=reply.end)
        else:
            self.sent()

    async def _ask(self, exchange: Exchange, asked: AskQuota) -> None:
        try:
            answer = await self._processor.scheduler.quotas.ask(
                asked.account, asked.routing.id, asked.amounts, idle_capacity=asked.idle
            )
        except Exception as error:  # noqa: BLE001 (law: every exception becomes a decision)
            reply = exchange.unanswered(error)
        else:
            reply = exchange.answered(asked, answer)
        self._waiting = None
        self._take(exchange, reply)

    async def _first(self, exchange: Exchange, asked: AskTaken, reply: Reply) -> None:
        processor, refused = self._processor, None
        try:
            if processor.sites is not None:
                refused = await processor.sites.first(asked)
        except Exception as error:  # noqa: BLE001 (what this service knows alone has let it in)
            processor.failed(error, "asking for a site's token")
        self._waiting = None
        self._send(reply if refused is None else exchange.turned_away(refused))

    async def _look(self, exchange: Exchange, asked: AskAnswer) -> None:
        processor, found = self._processor, None
        try:
            if processor.cache is not None:
                found = await processor.cache.ask(asked)
        except Exception as error:  # noqa: BLE001 (what cannot be looked up is served)
            processor.failed(error, "asking the store of answers")
        reply = exchange.looked(found)
        self._waiting = None
        self._take(exchange, reply)

    def _overdue(self, exchange: Exchange) -> None:
        """Envoy waits for as long as the client does: somebody must say that it is too long."""
        self._limit = None
        self._stop_waiting()
        self._send(exchange.overdue())

    def _forget_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

"""What a call may wait for, on both transports: a hold, the quota's shared store, its own caller."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import envoy_messages as envoy
import grpc
import pytest
from serving import BODY, EXT_PROC_PATH, HEADERS, TIMEOUT_S, Running, ended, running

from extproc.core.accounts import Accounts
from extproc.core.quota import ASK, ExactBooks, Granted, Refused, limits
from extproc.core.scheduler import ClassSpec, Scheduler
from extproc.wire.aio import AioTransport
from extproc.wire.server import ACCESS_LOG, HEALTH, TransportName
from tests.stand.holding import S, policy
from tests.stand.schedulers import make_pool, make_scheduler
from tests.stand.waits import until


@pytest.fixture(params=["http2", "grpcio"])
def transport(request: pytest.FixtureRequest) -> TransportName:
    """Each behaviour holds on both."""
    name: TransportName = request.param
    return name


class SharedBooks(ExactBooks):
    """Books whose shared store answers when a test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Event()
        self.asked = self.gave_up = 0
        self.fault: Exception | None = None

    def reserve(self, *given: Any, **facts: Any) -> Any:
        return ASK

    async def ask(self, account: Any, reservation_id: str, amounts: Any, **facts: Any) -> Granted | Refused:
        self.asked += 1
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.gave_up += 1
            raise
        if self.fault is not None:
            raise self.fault
        answer = super().reserve(account, reservation_id, amounts, now_ns=0)
        assert isinstance(answer, Granted | Refused)
        return answer


def asking(books: SharedBooks, *, requests: int = 100) -> Scheduler:
    given = policy(quota=False)
    quota = limits(requests_per_minute=requests)
    given = type(given)(
        classes=given.classes, bounds=given.bounds, accounts=Accounts(tenants={"anonymous": quota})
    )
    return make_scheduler(make_pool("10.0.0.1:80", permits=64), policy=given, quotas=books)


def holding() -> Scheduler:
    """One replica of one permit, and a class that waits for it."""
    spec = make_pool("10.0.0.1:80", permits=1)
    return make_scheduler(spec, policy=policy(ClassSpec(hold_ns=5 * S), quota=False))


async def asked(it: Running) -> Any:
    """A call whose body is with the service."""
    call = it.exchange()
    await call.write(HEADERS)
    await call.read()
    await call.write(envoy.body(BODY))
    return call


def test_a_caller_that_has_said_all_gets_its_decision(transport: TransportName) -> None:
    """With its side closed before the answer is there: what was decided is delivered, and stays reserved."""

    async def play() -> None:
        async with running(transport=transport) as it:
            for _ in range(20):
                call = it.exchange()
                await call.write(HEADERS)
                await call.write(envoy.body(BODY))
                await call.done_writing()
                answers = [envoy.response(data) async for data in call]
                assert answers[-1].HasField("request_body")
            await until(lambda: it.processor.open_exchanges == 0)
            assert it.processor.scheduler.counts["cancelled"] == 0
            assert len(it.processor.scheduler.ledger) == 20

    asyncio.run(play())


def test_a_hold_ends_with_its_decision(transport: TransportName) -> None:
    """Envoy is told to be patient, and gets the decision when a replica has room."""

    async def play() -> None:
        async with running(transport=transport, scheduler=holding()) as it:
            first = await it.decide()
            held = await asked(it)
            patience = envoy.response(await held.read())
            assert patience.HasField("override_message_timeout")
            await it.log(ended(first))
            assert envoy.response(await held.read()).HasField("request_body")
            assert await held.read() is grpc.aio.EOF
            assert it.processor.scheduler.counts["cancelled"] == 0
            assert len(it.processor.scheduler.ledger) == 1

    asyncio.run(play())


def test_a_caller_that_leaves_in_its_hold(transport: TransportName) -> None:
    """Its place goes to the next; nothing is reserved in its name."""

    async def play() -> None:
        async with running(transport=transport, scheduler=holding()) as it:
            first = await it.decide()
            left = await asked(it)
            await left.read()
            stays = await asked(it)
            await stays.read()
            left.cancel()
            await until(lambda: it.processor.open_exchanges == 1)
            await it.log(ended(first))
            assert envoy.response(await stays.read()).HasField("request_body")
            assert len(it.processor.scheduler.ledger) == 1

    asyncio.run(play())


def test_the_shared_store_is_asked(transport: TransportName) -> None:
    """The decision waits for its answer; others go on meanwhile, and none is asked twice."""

    async def play() -> None:
        books = SharedBooks()
        async with running(transport=transport, scheduler=asking(books)) as it:
            calls = [await asked(it) for _ in range(20)]
            await until(lambda: books.asked == 20)
            assert it.processor.open_exchanges == 20
            assert len(await it.check()) > 0, "health is answered meanwhile"
            books.may_answer.set()
            for call in calls:
                assert envoy.response(await call.read()).HasField("request_body")
                assert await call.read() is grpc.aio.EOF
            assert books.asked == 20
            assert len(it.processor.scheduler.ledger) == 20

    asyncio.run(play())


def test_a_caller_that_leaves_while_the_store_is_asked(transport: TransportName) -> None:
    """The asking is given up, and nothing stays reserved."""

    async def play() -> None:
        books = SharedBooks()
        async with running(transport=transport, scheduler=asking(books)) as it:
            call = await asked(it)
            await until(lambda: books.asked == 1)
            call.cancel()
            await until(lambda: it.processor.open_exchanges == 0)
            assert books.gave_up == 1
            assert len(it.processor.scheduler.ledger) == 0

    asyncio.run(play())


def test_a_store_that_fails(transport: TransportName, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody said that the quota allows it: refused, as a decision."""

    async def play() -> None:
        books = SharedBooks()
        books.fault = ZeroDivisionError("a fault of ours")
        books.may_answer.set()
        async with running(transport=transport, scheduler=asking(books)) as it:
            call = await asked(it)
            assert envoy.response(await call.read()).immediate_response.status.code == 503
            assert await call.read() is grpc.aio.EOF

    asyncio.run(play())


def test_a_token_is_asked_for(transport: TransportName) -> None:
    """Who shows none, or another, is refused and counted; health is open to all."""

    async def play() -> None:
        async with running(transport=transport, tokens=[b"a-token-of-tests"]) as it:
            for shown in ((), (("authorization", "Bearer another"),)):
                for path in (EXT_PROC_PATH, f"/{ACCESS_LOG}/StreamAccessLogs", "/no.Such/Method"):
                    call = it.channel.stream_stream(path)(timeout=TIMEOUT_S, metadata=shown)
                    assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
            assert it.processor.scheduler.counts["calls.unauthenticated"] == 6
            assert len(await it.check()) > 0
            call = it.channel.stream_stream(EXT_PROC_PATH)(
                timeout=TIMEOUT_S, metadata=(("authorization", "Bearer a-token-of-tests"),)
            )
            await call.write(HEADERS)
            assert len(await call.read()) > 0

    asyncio.run(play())


def test_a_clusters_name_as_authority() -> None:
    """Envoy's health checks say their cluster's name, which Envoy Gateway writes with a / and Istio with a |.

    libnghttp2 takes neither, so that pickers are served by grpcio; on the day it does, they need not be.
    """

    async def asked(transport: TransportName, authority: str) -> bool:
        async with running(transport=transport) as it:
            options = [("grpc.default_authority", authority)]
            async with grpc.aio.insecure_channel(it.address, options=options) as channel:
                check = channel.unary_unary(f"/{HEALTH}/Check")
                try:
                    return bool(await check(b"", timeout=TIMEOUT_S))
                except grpc.RpcError:
                    return False

    for authority in ("envoyextensionpolicy/llm/steersman/extproc/0", "outbound|9002||steersman.llm.svc"):
        assert asyncio.run(asked("grpcio", authority))
        assert not asyncio.run(asked("http2", authority))
    assert asyncio.run(asked("http2", "steersman.llm.svc:9002"))


def test_methods_that_are_not_served(transport: TransportName) -> None:
    """UNIMPLEMENTED, whatever the service."""

    async def play() -> None:
        async with running(transport=transport) as it:
            for path in ("/no.Such/Method", f"/{HEALTH}/Other", "/steersman.status.v1.Status/Drain"):
                call = it.channel.unary_unary(path)(b"", timeout=TIMEOUT_S)
                assert await call.code() is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(play())


def test_a_caller_whose_time_is_up(transport: TransportName) -> None:
    """Its deadline ends the exchange on both sides."""

    async def play() -> None:
        async with running(transport=transport) as it:
            call = it.channel.stream_stream(EXT_PROC_PATH)(timeout=0.3)
            await call.write(HEADERS)
            await call.read()
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: it.processor.open_exchanges == 0)

    asyncio.run(play())


def test_without_the_library_grpcio_serves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A platform without a wheel of ngh2 is served all the same, and one line says so."""
    for name in [name for name in sys.modules if name.startswith("extproc.wire.http2")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ngh2", None)

    async def play() -> None:
        async with running(transport="http2") as it:
            assert isinstance(it.server._transport, AioTransport)
            assert (await it.decide()).HasField("request_body")

    asyncio.run(play())
    (line,) = [record.getMessage() for record in caplog.records if record.name == "extproc.wire.server"]
    assert "service.transport http2 cannot be had" in line
    assert "install ngh2" in line

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import envoy_messages as envoy
import grpc
import pytest
import serving
from serving import BODY, HEADERS, TIMEOUT_S, build, ended, running, status_of

from extproc._pb import ext_proc_pb2 as pb
from extproc._pb import health_pb2
from extproc.config.picker import PickerConfig as PickerSettings
from extproc.core.contract import (
    REFUSED_HEADER,
    RESERVATION_HEADER,
    SERVED_HEADER,
)
from extproc.core.outcome import Outcome
from extproc.wire import server as server_module
from extproc.wire.seal import EVENT
from extproc.wire.server import BindError
from tests.stand.seals import SEAL
from tests.stand.waits import until


@pytest.fixture(params=["http2", "grpcio"], autouse=True)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each behaviour holds on both transports."""
    name: str = request.param
    for call in ("build", "running"):
        monkeypatch.setitem(globals(), call, partial(getattr(serving, call), transport=name))
    return name


@pytest.fixture(params=["tcp", "unix"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "127.0.0.1:0" if request.param == "tcp" else f"unix:{tmp_path}/s.sock"


def test_a_decision_and_its_end(address: str) -> None:
    """Over either transport: decide, be ended by the server, settle from the access log."""

    async def play() -> None:
        async with running(address) as it:
            answers = await asyncio.gather(*(it.decide() for _ in range(10)))
            assert it.processor.open_exchanges == 0
            assert len(it.processor.scheduler.ledger) == 10
            assert it.processor.scheduler.counts["cancelled"] == 0
            await it.log(*(ended(answer) for answer in answers), ended(answers[0]))
            assert len(it.settled) == 10
            assert len(it.processor.scheduler.ledger) == 0

    asyncio.run(play())


def test_garbage_ends_its_own_stream_alone() -> None:
    """The sender gets INVALID_ARGUMENT; a stream that was open goes on, as does the server."""

    async def play() -> None:
        async with running() as it:
            good, bad = it.exchange(), it.exchange()
            await good.write(HEADERS)
            await good.read()
            await bad.write(b"\xff\xff\xff")
            assert await bad.code() is grpc.StatusCode.INVALID_ARGUMENT
            await good.write(envoy.body(BODY))
            assert envoy.response(await good.read()).HasField("request_body")
            await until(lambda: it.processor.open_exchanges == 0)
            assert len(it.processor.scheduler.ledger) == 1

    asyncio.run(play())


def test_a_bad_record_loses_no_good_one(caplog: pytest.LogCaptureFixture) -> None:
    """Neither garbage nor a record that cannot be settled ends the log's stream or its neighbours."""
    first = []

    def settle(outcome: Outcome) -> None:
        if not first:
            first.append(outcome)
            raise ZeroDivisionError("a fault of ours")

    async def play() -> None:
        async with running(settle=settle) as it:
            answers = [await it.decide() for _ in range(3)]
            with caplog.at_level(logging.CRITICAL):
                # One message with two records: the settling of the first fails.
                await it.log(b"\xff\xff", ended(answers[0]) + ended(answers[1]), ended(answers[2]))
            assert len(it.settled) == 2
            counts = it.processor.scheduler.counts
            assert (counts["exception.access log"], counts["exception.settling"]) == (1, 1)

    asyncio.run(play())


@pytest.mark.parametrize("messages", [0, 1, 2])
def test_a_client_that_leaves(messages: int) -> None:
    """Wherever its stream is cancelled, nothing stays open, and what stays reserved was delivered."""

    async def play() -> None:
        async with running() as it:
            for _ in range(20):
                call = it.exchange()
                for data in [HEADERS, envoy.body(BODY)][:messages]:
                    await call.write(data)
                call.cancel()
            await it.decide()
            await until(lambda: it.processor.open_exchanges == 0)
            counts = it.processor.scheduler.counts
            assert len(it.processor.scheduler.ledger) == counts["routed"] - counts["cancelled"]
            if messages < 2:
                assert counts["routed"] == 1

    asyncio.run(play())


def test_a_half_closed_stream() -> None:
    """A peer that says it has no more to say gets its stream ended, not hung."""

    async def play() -> None:
        async with running() as it:
            call = it.exchange()
            await call.write(HEADERS)
            await call.read()
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            await until(lambda: it.processor.open_exchanges == 0)

    asyncio.run(play())


def test_first_tokens() -> None:
    """The id, whether it was a refusal and who answers; unknown ones are counted, every answer is empty."""
    seen: list[tuple[str, bool, str]] = []

    def first_token(reservation_id: str, refused: bool, served_by: str) -> bool:
        seen.append((reservation_id, refused, served_by))
        return reservation_id.startswith("i-")

    async def play() -> None:
        async with running(first_token=first_token) as it:
            assert await it.event((RESERVATION_HEADER, SEAL.sealed("i-1", EVENT))) == b""
            assert (
                await it.event((RESERVATION_HEADER, SEAL.sealed("i-2", EVENT)), (REFUSED_HEADER, "1")) == b""
            )
            for said in ("10.0.0.2:80", "-"):
                served = (SERVED_HEADER, said)
                assert await it.event((RESERVATION_HEADER, SEAL.sealed("other", EVENT)), served) == b""
            assert await it.event() == b""
            assert await it.event((RESERVATION_HEADER, "i-3")) == b""
            others = [("other", False, "10.0.0.2:80"), ("other", False, "-")]
            assert seen == [("i-1", False, ""), ("i-2", True, ""), *others]
            assert it.processor.scheduler.counts["events.first_token"] == 6
            assert it.processor.scheduler.counts["events.refused"] == 1
            assert it.processor.scheduler.counts["events.unknown"] == 2
            assert it.processor.scheduler.counts["events.forged"] == 2

    asyncio.run(play())


def test_a_first_token_that_cannot_be_taken(caplog: pytest.LogCaptureFixture) -> None:
    """A fault of ours is counted and answered like any other; so is an event that nobody wants."""

    def broken(_: str, __: bool, ___: str) -> bool:
        raise ZeroDivisionError("a fault of ours")

    async def play() -> None:
        with caplog.at_level(logging.CRITICAL):
            async with running(first_token=broken) as it:
                assert await it.event((RESERVATION_HEADER, SEAL.sealed("i-1", EVENT))) == b""
                assert it.processor.scheduler.counts["exception.first token"] == 1
        async with running() as it:
            assert await it.event((RESERVATION_HEADER, SEAL.sealed("i-1", EVENT))) == b""
            assert it.processor.scheduler.counts["events.unknown"] == 1

    asyncio.run(play())


def test_health() -> None:
    """SERVING for the server and for ext_proc; NOT_FOUND (or SERVICE_UNKNOWN when watched) for others."""

    async def play() -> None:
        async with running() as it:
            for service in ("", server_module.EXT_PROC):
                assert status_of(await it.check(service)) == "SERVING"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await it.check("other")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            watch = it.channel.unary_stream(f"/{server_module.HEALTH}/Watch")
            call = watch(health_pb2.HealthCheckRequest(service="other").SerializeToString())
            assert status_of(await call.read()) == "SERVICE_UNKNOWN"
            call.cancel()

    asyncio.run(play())


def test_a_drain_cuts_no_open_exchange() -> None:
    """Checks and watches turn NOT_SERVING at once; what is open is decided, and so is what still comes."""

    async def play() -> None:
        async with running() as it:
            watch = it.channel.unary_stream(f"/{server_module.HEALTH}/Watch")(b"", timeout=TIMEOUT_S)
            assert status_of(await watch.read()) == "SERVING"
            call = it.exchange()
            await call.write(HEADERS)
            await call.read()
            drain = asyncio.create_task(it.server.drain(TIMEOUT_S, quiet_s=0.05))
            assert status_of(await watch.read()) == "NOT_SERVING"
            assert status_of(await it.check()) == "NOT_SERVING"
            assert (await it.decide()).HasField("request_body")
            await asyncio.sleep(0.1)
            assert not drain.done(), "an exchange is open"
            await call.write(envoy.body(BODY))
            assert envoy.response(await call.read()).HasField("request_body")
            await drain
            assert it.processor.open_exchanges == 0
            assert it.processor.scheduler.counts["cancelled"] == 0

    asyncio.run(play())


def test_a_drain_ends_when_its_time_is_up() -> None:
    """An exchange that never ends does not hold the process."""

    async def play() -> None:
        async with running() as it:
            call = it.exchange()
            await call.write(HEADERS)
            await call.read()
            await it.server.drain(0.05)
            assert await call.code() is not grpc.StatusCode.OK
            await until(lambda: it.processor.open_exchanges == 0)

    asyncio.run(play())


def test_a_message_above_the_bound() -> None:
    """Refused by the transport, without an effect on the next."""

    async def play() -> None:
        async with running() as it:
            call = it.exchange()
            await call.write(HEADERS)
            await call.read()
            await call.write(envoy.body(b"a" * 2_000_000))
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            await it.decide()
            await until(lambda: it.processor.open_exchanges == 0)

    asyncio.run(play())


def test_several_addresses(tmp_path: Path) -> None:
    """TCP and a unix socket at once; the bound addresses come back with their ports."""

    async def play() -> None:
        server, *_ = build()
        bound = await server.start(["127.0.0.1:0", f"unix:{tmp_path}/s.sock"])
        assert bound[1] == f"unix:{tmp_path}/s.sock"
        assert int(bound[0].rpartition(":")[2]) > 0
        await server.drain(0)

    asyncio.run(play())


async def refused(address: str) -> str:
    server, *_ = build()
    with pytest.raises(BindError) as caught:
        await server.start([address])
    return str(caught.value)


def test_a_port_that_is_taken() -> None:
    """Said with the address and the mend."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        message = asyncio.run(refused(address))
    assert message == (
        f"cannot listen on {address}: it is taken or not this machine's; free it or change service.listen"
    )


def test_a_socket_without_its_folder(tmp_path: Path) -> None:
    """Said as such."""
    address = f"unix:{tmp_path}/no/s.sock"
    assert asyncio.run(refused(address)) == (
        f"cannot listen on {address}: {tmp_path}/no is not a folder; make it first"
    )


def test_a_socket_of_a_living_process(tmp_path: Path) -> None:
    """Never taken over: the other would go on without its clients and know nothing of it."""
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen()
        assert "it is taken" in asyncio.run(refused(f"unix:{path}"))
        assert path.is_socket()


def test_a_file_in_the_sockets_place(tmp_path: Path) -> None:
    """Not ours to remove."""
    path = tmp_path / "s.sock"
    path.write_text("precious")
    assert "cannot listen" in asyncio.run(refused(f"unix:{path}"))
    assert path.read_text() == "precious"


def test_the_socket_of_a_killed_process(tmp_path: Path) -> None:
    """Replaced: kill -9 leaves the file, and a restart must not need a hand."""
    path = tmp_path / "s.sock"
    script = (
        "import os, signal, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert killed.returncode == -9
    assert path.is_socket()

    async def play() -> None:
        async with running(f"unix:{path}") as it:
            await it.decide()

    asyncio.run(play())


def duplex(data: bytes) -> bytes:
    """A stream's first message with the picker protocol's mode in it."""
    message = pb.ProcessingRequest.FromString(data)
    message.protocol_config.request_body_mode = pb.ProtocolConfiguration.FULL_DUPLEX_STREAMED
    message.protocol_config.response_body_mode = pb.ProtocolConfiguration.FULL_DUPLEX_STREAMED
    return bytes(message.SerializeToString())


def response_end() -> bytes:
    message = pb.ProcessingRequest()
    message.response_headers.end_of_stream = True
    header = message.response_headers.headers.headers.add()
    header.key, header.raw_value = ":status", b"200"
    return message.SerializeToString()


def test_both_protocols_on_one_port() -> None:
    """Each stream by its first message; the picker's goes on to the response's end and settles there."""

    async def play() -> None:
        async with running(picker=PickerSettings(enabled=True)) as it:
            await it.decide()
            call = it.exchange()
            await call.write(duplex(HEADERS))
            await call.write(envoy.body(BODY))
            first = envoy.response(await call.read())
            assert first.HasField("request_headers")
            body = envoy.response(await call.read()).request_body.response.body_mutation
            assert (body.streamed_response.body, body.streamed_response.end_of_stream) == (BODY, True)
            await until(lambda: it.processor.following == 1)
            assert it.settled == []
            await call.write(response_end())
            assert envoy.response(await call.read()).HasField("response_headers")
            assert await call.read() is grpc.aio.EOF
            assert [outcome.status for outcome in it.settled] == [200]
            assert (it.processor.open_exchanges, it.processor.following) == (0, 0)

    asyncio.run(play())


def test_a_gateway_that_waits_too_long_is_answered() -> None:
    """The picker's deadline holds until the decision, and not after it."""

    async def play() -> None:
        async with running(picker=PickerSettings(enabled=True, deadline_ms=100)) as it:
            slow = it.exchange()
            await slow.write(duplex(HEADERS))
            assert envoy.response(await slow.read()).immediate_response.status.code == 408
            assert await slow.read() is grpc.aio.EOF
        async with running(picker=PickerSettings(enabled=True, deadline_ms=1_500)) as it:
            call = it.exchange()
            await call.write(duplex(HEADERS))
            await call.write(envoy.body(BODY))
            await call.read()
            await call.read()
            await asyncio.sleep(1.7)
            await call.write(response_end())
            assert envoy.response(await call.read()).HasField("response_headers")

    asyncio.run(play())


def test_a_client_that_left_is_settled() -> None:
    """A picker's stream that is cancelled after its decision."""

    async def play() -> None:
        async with running(picker=PickerSettings(enabled=True)) as it:
            call = it.exchange()
            await call.write(duplex(HEADERS))
            await call.write(envoy.body(BODY))
            await call.read()
            await until(lambda: it.processor.following == 1)
            call.cancel()
            await until(lambda: len(it.settled) == 1)
            assert it.settled[0].end.value == "client_gone"
            assert len(it.processor.scheduler.ledger) == 0

    asyncio.run(play())


def test_health_names_of_the_picker_protocol() -> None:
    """Liveness is the process; readiness also asks whether the endpoints are known, and follows."""

    async def play() -> None:
        known = False
        async with running(ready=lambda: known) as it:
            assert status_of(await it.check("liveness")) == "SERVING"
            assert status_of(await it.check("readiness")) == "NOT_SERVING"
            assert status_of(await it.check(server_module.EXT_PROC)) == "SERVING"
            request = health_pb2.HealthCheckRequest(service="readiness").SerializeToString()
            watch = it.channel.unary_stream(f"/{server_module.HEALTH}/Watch")(request, timeout=TIMEOUT_S)
            assert status_of(await watch.read()) == "NOT_SERVING"
            known = True
            assert status_of(await watch.read()) == "SERVING"
            assert status_of(await it.check("readiness")) == "SERVING"
            draining = asyncio.create_task(it.server.drain(0.2, quiet_s=1.0))
            assert status_of(await watch.read()) == "NOT_SERVING"
            await draining

    asyncio.run(play())

from __future__ import annotations

import asyncio
import hashlib
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from extproc._pb import telemetry_pb2 as pb
from extproc.telemetry.server import REPORT_BYTES_MAX, SPACING_S, TELEMETRY, TelemetryServer, Tls
from tests.stand.waits import PATIENCE_S, until

TIMEOUT_S = PATIENCE_S / 2
TOKEN = "wonderful-token"


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """A test's own loop, bounded."""
    asyncio.run(asyncio.wait_for(coroutine, 3 * TIMEOUT_S))


class Served:
    """A server and what it listens to; `push` opens a stream to it."""

    def __init__(self, listening: Any, server: TelemetryServer, address: str, channel: Any) -> None:
        self.listening, self.server, self.address, self.channel = listening, server, address, channel

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.listening.ingest.counts)

    def push(self, authorization: str | None = f"Bearer {TOKEN}") -> Any:
        metadata = [] if authorization is None else [("authorization", authorization)]
        return self.channel.stream_stream(f"/{TELEMETRY}/Push")(metadata=metadata, timeout=TIMEOUT_S)

    def report(self, sequence: int = 1, **fields: Any) -> bytes:
        data: bytes = self.listening.report(sequence, **fields).SerializeToString()
        return data

    async def code(self, call: Any) -> grpc.StatusCode:
        """How a stream ends that is told nothing.

        Nothing is written: a write that finds the stream ended overwrites the status that the server
        had sent by INTERNAL (grpc/grpc#36066).
        """
        code: grpc.StatusCode = await call.code()
        return code


@asynccontextmanager
async def served(
    listening: Any, *, tls: Tls | None = None, channel: Callable[[str], Any] = grpc.aio.insecure_channel
) -> AsyncIterator[Served]:
    server = TelemetryServer(
        listening.ingest,
        tokens={hashlib.sha256(TOKEN.encode()).hexdigest(): "n1"},
        tls=tls,
        clock=lambda: listening.now_ns,
        unix_clock=lambda: listening.unix_ms / 1000,
    )
    [address] = await server.start(["127.0.0.1:0"])
    try:
        async with channel(address) as open_channel:
            yield Served(listening, server, address, open_channel)
    finally:
        await server.stop()


def test_the_right_token_is_its_node(listening: Any) -> None:
    """Reports go up, acknowledgements come back, in order; the stream is counted while it lives."""

    async def scenario() -> None:
        async with served(listening) as here:
            call = here.push()
            for sequence in (1, 2, 3):
                await call.write(here.report(sequence))
                assert pb.Ack.FromString(await call.read()) == pb.Ack(sequence=sequence)
            assert here.server.streams == 1
            await call.write(here.report(3))
            assert pb.Ack.FromString(await call.read()).rejected == "out_of_order"
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK
            await until(lambda: here.server.streams == 0)
            assert here.counts == {"taken": 3, "rejected.out_of_order": 1}

    run(scenario())


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer wrong", "Bearer " + "x" * 5000, f"Basic {TOKEN}", TOKEN]
)
def test_a_stranger_is_sent_away_unread(listening: Any, authorization: str | None) -> None:
    """No token or a wrong one: counted, nothing parsed, no stream held."""

    async def scenario() -> None:
        async with served(listening) as here:
            assert await here.code(here.push(authorization)) is grpc.StatusCode.UNAUTHENTICATED
            assert here.counts == {"rejected.unauthenticated": 1}
            assert here.server.streams == 0

    run(scenario())


def test_a_token_speaks_for_its_own_node_only(listening: Any) -> None:
    """Another's name is refused, and the stream goes on."""

    async def scenario() -> None:
        async with served(listening) as here:
            call = here.push()
            await call.write(here.report(node="n2"))
            assert pb.Ack.FromString(await call.read()).rejected == "not_this_node"
            await call.write(here.report())
            assert not pb.Ack.FromString(await call.read()).rejected

    run(scenario())


def test_without_authentication_anyone_may_push(listen: Callable[..., Any]) -> None:
    """Where the configuration says so."""

    async def scenario() -> None:
        async with served(listen(anyone=True)) as here:
            call = here.push(None)
            await call.write(here.report(node="whoever"))
            assert not pb.Ack.FromString(await call.read()).rejected

    run(scenario())


def test_garbage_is_answered_and_ends_nothing(listening: Any) -> None:
    """Bytes that are no report are one rejection each."""

    async def scenario() -> None:
        async with served(listening) as here:
            call = here.push()
            for data in (b"\xff\xff\xff", b"\x0a\xff", b""):
                await call.write(data)
                assert pb.Ack.FromString(await call.read()).rejected in ("garbage", "unknown_node")
            await call.write(here.report())
            assert not pb.Ack.FromString(await call.read()).rejected

    run(scenario())


def test_a_huge_report_is_refused_by_the_transport(listening: Any) -> None:
    """It costs its own stream, and no other."""

    async def scenario() -> None:
        async with served(listening) as here:
            other = here.push()
            await other.write(here.report(1))
            await other.read()
            call = here.push()
            await call.write(b"\x00" * (REPORT_BYTES_MAX + 1))
            with pytest.raises(grpc.RpcError):
                await call.read()
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            await other.write(here.report(2))
            assert not pb.Ack.FromString(await other.read()).rejected
            assert here.counts == {"taken": 2}

    run(scenario())


def test_a_flood_is_read_at_our_pace(listening: Any) -> None:
    """An agent that sends as fast as it can, and reads nothing, waits in its own window."""

    async def scenario() -> None:
        async with served(listening) as here:
            call = here.push()

            async def flood() -> None:
                for sequence in range(1, 1_000_000):
                    await call.write(here.report(sequence, node="n1"))

            flooding = asyncio.create_task(flood())
            began = time.monotonic()
            await asyncio.sleep(0.5)
            quiet = here.push()
            await quiet.write(here.report(2_000_000))
            await quiet.read()
            seen, took_s = sum(here.counts.values()), time.monotonic() - began
            assert seen <= took_s / SPACING_S + 2
            assert not flooding.done()
            flooding.cancel()
            call.cancel()
            await asyncio.wait([flooding])
            await until(lambda: here.server.streams == 1)

    run(scenario())


def test_agents_that_vanish_leave_nothing(listening: Any) -> None:
    """A stream that is cut is over, wherever it was."""

    async def scenario() -> None:
        async with served(listening) as here:
            calls = [here.push() for _ in range(20)]
            for call in calls:
                await call.write(b"")
            await until(lambda: here.server.streams == 20)
            for call in calls:
                call.cancel()
            await until(lambda: here.server.streams == 0)

    run(scenario())


def test_a_port_that_is_taken_is_named(listening: Any) -> None:
    """Before anything else starts."""

    async def scenario() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            server = TelemetryServer(listening.ingest, tokens={})
            with pytest.raises(OSError, match=f"cannot listen on {address} for telemetry"):
                await server.start([address])
            await server.stop()

    run(scenario())


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Throw-away: a server's, a node's of the same authority, and one of a stranger's authority."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here to make throw-away certificates with")
    folder = tmp_path_factory.mktemp("certificates")

    def make(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True, timeout=60)

    def key(name: str) -> list[str]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key"]

    for authority in ("ca", "other-ca"):
        make("req", "-x509", *key(authority), "-out", f"{authority}.pem", "-subj", f"/CN={authority}")
    for name, authority, san in (
        ("server", "ca", "DNS:localhost,IP:127.0.0.1"),
        ("n1", "ca", "DNS:n1"),
        ("unnamed", "ca", "DNS:somebody-else"),
        ("stranger", "other-ca", "DNS:n1"),
    ):
        make("req", *key(name), "-out", f"{name}.csr", "-subj", "/CN=steersman-test")
        (folder / f"{name}.ext").write_text(f"subjectAltName={san}\n")
        signed = ("-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial", "-days", "2")
        make(
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            *signed,
            "-extfile",
            f"{name}.ext",
            "-out",
            f"{name}.pem",
        )
    return folder


def with_certificate(folder: Path, name: str | None) -> Callable[[str], Any]:
    """A channel that shows a certificate, or none."""

    def channel(address: str) -> Any:
        shown = (
            {}
            if name is None
            else {
                "private_key": (folder / f"{name}.key").read_bytes(),
                "certificate_chain": (folder / f"{name}.pem").read_bytes(),
            }
        )
        credentials = grpc.ssl_channel_credentials((folder / "ca.pem").read_bytes(), **shown)
        return grpc.aio.secure_channel(address, credentials)

    return channel


def tls(folder: Path) -> Tls:
    return Tls(certificate=folder / "server.pem", key=folder / "server.key", client_ca=folder / "ca.pem")


def over_tls(
    listening: Any, folder: Path, name: str | None, scenario: Callable[[Served], Awaitable[None]]
) -> None:
    """Run a scenario over a channel with a certificate."""

    async def whole() -> None:
        async with served(listening, tls=tls(folder), channel=with_certificate(folder, name)) as here:
            await scenario(here)

    run(whole())


def test_a_certificate_is_its_node(listening: Any, certificates: Path) -> None:
    """The name in it is the identity: no token needed, and no other node's name allowed."""

    async def scenario(here: Served) -> None:
        call = here.push(None)
        await call.write(here.report(1))
        assert not pb.Ack.FromString(await call.read()).rejected
        await call.write(here.report(2, node="n2"))
        assert pb.Ack.FromString(await call.read()).rejected == "not_this_node"

    over_tls(listening, certificates, "n1", scenario)


def test_a_certificate_without_a_node_needs_a_token(listening: Any, certificates: Path) -> None:
    """Of our authority but nobody's: refused alone, its token's node with one."""

    async def scenario(here: Served) -> None:
        assert await here.code(here.push(None)) is grpc.StatusCode.UNAUTHENTICATED
        call = here.push()
        await call.write(here.report())
        assert not pb.Ack.FromString(await call.read()).rejected

    over_tls(listening, certificates, "unnamed", scenario)


@pytest.mark.parametrize("name", [None, "stranger"])
def test_no_certificate_of_ours_is_no_connection(
    listening: Any, certificates: Path, name: str | None
) -> None:
    """None, or another authority's with the right name in it: not even a right token is heard."""

    async def scenario(here: Served) -> None:
        assert await here.code(here.push()) is grpc.StatusCode.UNAVAILABLE
        assert here.counts == {}

    over_tls(listening, certificates, name, scenario)


def test_a_plain_connection_is_none_where_tls_is_wanted(listening: Any, certificates: Path) -> None:
    """No way around it."""

    async def scenario() -> None:
        async with served(listening, tls=tls(certificates)) as here:
            assert await here.code(here.push()) is grpc.StatusCode.UNAVAILABLE
            assert here.counts == {}

    run(scenario())

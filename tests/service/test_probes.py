"""The service's own looks at replicas: the connections and the pace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from extproc.config.load import loads
from extproc.core.fleet import Fleet
from extproc.core.reach import Look
from extproc.core.reports import ReplicaReport
from extproc.service.build import pool_specs
from extproc.service.probes import AGAIN_NS, ProbesPart, found
from extproc.service.upstreams import ask

S = 1_000_000_000


def config(count: int = 2, probes: str = "{}") -> str:
    listed = ", ".join(f'{{address: "10.0.0.{i}:80"}}' for i in range(1, count + 1))
    return f"""
gateway: {{auth: none}}
pools: [{{name: p, models: [m], endpoints: [{listed}]}}]
probes: {probes}
"""


class Scene:
    """Looks that end when the loop has run, on a clock of the test's."""

    def __init__(self, text: str, answer: Callable[[str], int | None]) -> None:
        built = loads(text)
        self.fleet = Fleet(pool_specs(built))
        self.asked: list[str] = []
        self.now_ns = 0

        async def asking(address: str, path: str, timeout_s: float) -> int | None:
            assert (path, timeout_s) == ("/health", 2.0)
            self.asked.append(address)
            return answer(address)

        self.probing = ProbesPart(built, self.fleet, clock=lambda: self.now_ns, asking=asking)

    async def at(self, now_ns: int) -> list[str]:
        self.now_ns, self.asked = now_ns, []
        self.probing.step(now_ns=now_ns)
        await asyncio.gather(*self.probing._looking.values())
        self.fleet.step(now_ns=now_ns)
        return self.asked


def play(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scene())  # type: ignore[arg-type]


def test_a_dead_replica_is_not_ready_after_the_first_look() -> None:
    """The README's own setup: two in the list, one of them is not there."""

    def answer(address: str) -> int:
        if address == "10.0.0.2:80":
            raise ConnectionRefusedError
        return 200

    async def scene() -> None:
        one = Scene(config(), answer)
        await one.at(S)
        assert [each.ready for each in one.fleet.endpoints] == [True, False]
        assert one.fleet.endpoints[1].health.causes["reach"].detail == "refuses connections"

    play(scene)


def test_each_is_looked_at_by_the_interval_and_at_once_when_a_request_failed() -> None:
    """Not more often than AGAIN_NS, and those of which an agent speaks not at all."""

    async def scene() -> None:
        one = Scene(config(3), lambda _: 200)
        assert len(await one.at(S)) == 3
        assert await one.at(S + AGAIN_NS // 2) == []
        one.fleet.endpoints[0].failed(S)
        assert await one.at(S + AGAIN_NS) == ["10.0.0.1:80"]
        assert await one.at(S + 2 * AGAIN_NS) == [], "once for a failure"
        one.fleet.heard(ReplicaReport(address="10.0.0.3:80", pool="p"), now_ns=3 * S)
        assert await one.at(3 * S) == ["10.0.0.2:80"]
        assert await one.at(3 * S + AGAIN_NS) == ["10.0.0.1:80"]

    play(scene)


def test_looks_a_second_are_bounded() -> None:
    """With more replicas each is looked at less often: 40 at 4 a second, every ten."""

    async def scene() -> None:
        one = Scene(config(40, "{per_second_max: 4}"), lambda _: 200)
        assert len(await one.at(S)) == 40
        assert await one.at(10 * S) == []
        assert len(await one.at(11 * S)) == 40

    play(scene)


def test_nobody_is_looked_at_where_it_is_off() -> None:
    """Also after a reload that turns it off."""

    async def scene() -> None:
        one = Scene(config(), lambda _: 200)
        one.probing.apply(loads(config(probes="{enabled: false}")))
        assert await one.at(S) == []

    play(scene)


@pytest.mark.parametrize(
    ("status", "engine", "look"),
    [
        (200, "vllm", Look.ANSWERED),
        (401, "vllm", Look.ALIVE),
        (404, "tgi", Look.ALIVE),
        (501, "vllm", Look.ALIVE),
        (500, "vllm", Look.UNWELL),
        (503, "tgi", Look.UNWELL),
        (503, "llamacpp", Look.LOADING),
        (None, "tgi", Look.SILENT),
    ],
)
def test_what_an_answer_says(status: int | None, engine: str, look: Look) -> None:
    """A page that wants a key, or is not there, is a living engine's."""
    assert found(status, engine) is look


@pytest.mark.parametrize(
    ("said", "status"), [(b"HTTP/1.1 204 No Content\r\n\r\n", 204), (b"garbage\r\n", None), (b"", None)]
)
def test_asking_over_a_socket(said: bytes, status: int | None) -> None:
    """The first line is the answer; what is no HTTP is none."""

    async def scene() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert (await reader.readline()).startswith(b"GET /health HTTP/1.1")
            writer.write(said)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        async with server:
            assert await ask(f"{host}:{port}", "/health", 20.0) == status
        with pytest.raises(ConnectionRefusedError):
            await ask(f"{host}:{port}", "/health", 20.0)

    play(scene)


def test_a_stall_of_ours_is_no_silence() -> None:
    """Our loop stands for five times the timeout while a replica answers at once: it has answered."""

    async def scene() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            loop.call_soon(time.sleep, 1.0)
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            writer.close()

        loop = asyncio.get_running_loop()
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        async with server:
            assert await ask(f"{host}:{port}", "/health", 0.2) == 200

    play(scene)


def test_silence_is_none() -> None:
    """A replica that accepts and says nothing holds a look for its timeout."""

    async def scene() -> None:
        writers: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        async with server:
            assert await ask(f"{host}:{port}", "/health", 0.05) is None
            for writer in writers:
                writer.close()
                await writer.wait_closed()

    play(scene)

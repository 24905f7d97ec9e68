"""Half of what the gateway can do, for as long as is asked: nothing that it holds grows.

`make steady STEADY_S=600` is a long one, and prints what it saw.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import pytest
import uvloop
from gateway import ASK_S, KEYS, Gateway, wait_for

sys.path.append(str(Path(__file__).parent.parent / "bench"))

from load import Load, request_bytes
from variants import engines

#: How long it lasts, after what is bounded was filled.
SECONDS = float(os.environ.get("STEERSMAN_STEADY_S", "16"))
pytestmark = [pytest.mark.envoy, pytest.mark.soak, pytest.mark.timeout(2 * SECONDS + 240)]

#: Of the best rate, which is measured first, for so long.
SHARE, BEST_S = 0.5, 4.0
#: What may be under way at once; where that is reached the machine is late, and one is left out.
UNDER_WAY_MAX = 64
#: Looks at the processes; the middle of a quarter of them is compared with that of another.
LOOKS = 40
#: What the last quarter may have more than the second: resident memory of each process, and files. Of these
#: Envoy has one a connection, and the best rate may not have needed all.
GROWTH_BYTES_MAX, GROWTH_FILES_MAX = 16 * 1024 * 1024, UNDER_WAY_MAX
#: One in so many is a prompt of 400 KB, has a wrong key, is a stream whose client leaves.
LARGE_EVERY, STRANGER_EVERY, LEAVES_EVERY = 100, 50, 20
#: Different prompts, so that what is remembered of them is full before the first look.
PROMPTS = 200


@dataclass(frozen=True)
class Look:
    """What a process has: bytes of resident memory, and open files."""

    memory: int
    files: int

    @classmethod
    def at(cls, pid: int) -> Look:
        """Of a process, now."""
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(pages * os.sysconf("SC_PAGE_SIZE"), len(list(Path(f"/proc/{pid}/fd").iterdir())))


ASKED = {"role": "user", "content": "hi"}


def _request(prompt: str, *, stream: bool = False, key: str = KEYS["acme"]) -> bytes:
    said = {"stream": True} if stream else {}
    body = {**said, "model": "m", "messages": [{"role": "user", "content": prompt}]}
    asked: bytes = request_bytes(json.dumps(body).encode(), key)
    return asked


def _prompts() -> Iterator[bytes]:
    """Plain requests and streams in turns, from time to time a large one."""
    large = _request("y" * 400_000)
    usual = [
        _request(f"{i} " + f"prompt {i} " * 100, stream=bool(i % 2), key=KEYS["globex" if i % 5 else "acme"])
        for i in range(PROMPTS)
    ]
    for i, request in enumerate(itertools.cycle(usual), 1):
        yield large if i % LARGE_EVERY == 0 else request


async def _begin(port: int, request: bytes) -> bytes:
    """Send one on a connection of its own, and go at the answer's first bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    first = await reader.read(12)
    writer.close()
    return first


@dataclass
class Played:
    """What was sent, and what was seen meanwhile."""

    rate_per_s: float = 0.0
    sent: int = 0
    #: The machine was late: not sent.
    left_out: int = 0
    failed: int = 0
    refused: int = 0
    #: What who has no key was answered.
    strangers: set[bytes] = field(default_factory=set)
    #: Of the service and of Envoy.
    looks: list[tuple[Look, Look]] = field(default_factory=list)


class Player:
    """Plays requests through a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._port, self._pids = gateway.port, (gateway.service.pid, gateway.envoy.pid)
        self._load, self._requests = Load(gateway.port), _prompts()
        self.played = Played()

    async def play(self) -> Played:
        """The best rate, then its share for SECONDS."""
        played, loop = self.played, asyncio.get_running_loop()
        played.rate_per_s = rate = SHARE * await self._best()
        begun_s = look_s = loop.time()
        under_way: set[asyncio.Task[None]] = set()
        for i in range(int(rate * SECONDS)):
            if (wait_s := begun_s + i / rate - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            if loop.time() >= look_s:
                service, envoy = map(Look.at, self._pids)
                played.looks.append((service, envoy))
                look_s += SECONDS / LOOKS
            if len(under_way) >= UNDER_WAY_MAX:
                played.left_out += 1
                continue
            task = asyncio.create_task(self._one(i))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)
        played.failed, played.refused = self._load.failed, self._load.refused
        self._load.close()
        return played

    async def _one(self, i: int) -> None:
        self.played.sent += 1
        if i % STRANGER_EVERY == 0:
            self.played.strangers.add(await _begin(self._port, _request("nobody", key="sk-nobody")))
        elif i % LEAVES_EVERY == 0:
            await _begin(self._port, _request("leaves", stream=True))
        else:
            await self._load.some(next(self._requests), 1, 1)

    async def _best(self) -> float:
        """Requests a second, as many as go through."""
        loop, count = asyncio.get_running_loop(), 0
        until_s = loop.time() + BEST_S

        async def on_and_on() -> None:
            nonlocal count
            while loop.time() < until_s:
                await self._load.some(next(self._requests), 1, 1)
                count += 1

        await asyncio.gather(*(on_and_on() for _ in range(UNDER_WAY_MAX)))
        return count / BEST_S


def _active(gateway: Gateway) -> tuple[int, int]:
    """Envoy's requests under way: of clients, and to the service."""
    url = f"http://127.0.0.1:{gateway.admin_port}/stats?filter=_rq_active"
    with urllib.request.urlopen(url, timeout=ASK_S) as answer:
        told = dict(line.split(": ") for line in answer.read().decode().splitlines())
    return int(told["http.gateway.downstream_rq_active"]), int(told["cluster.steersman.upstream_rq_active"])


def _grown(looks: list[Look]) -> tuple[int, int]:
    """Bytes and files that the last quarter has more than the second."""
    quarter = len(looks) // 4
    second, last = looks[quarter : 2 * quarter], looks[-quarter:]
    memory = median(each.memory for each in last) - median(each.memory for each in second)
    return int(memory), int(median(each.files for each in last) - median(each.files for each in second))


def test_half_of_the_best_rate_leaves_nothing_behind(tmp_path: Path) -> None:
    """Memory and files of service and Envoy stay, no request fails, and no stream is left at the end.

    Plain requests, streams, large prompts, strangers and clients that leave, of two tenants.
    """
    with (
        engines(tmp_path) as addresses,
        Gateway(
            {"chat": {"models": ["m"], "addresses": addresses}},
            concurrency=1,
            # What is remembered of ended requests is full within seconds, and no growth after that.
            limits={"reservation_ttl_s": 60, "settled_remembered_max": 1024},
        ) as gateway,
    ):
        assert gateway.call("/v1/chat/completions", {"model": "m", "messages": [ASKED]})[0] == 200
        wait_for("quiet", gateway.quiet)
        idle = _active(gateway)
        played = uvloop.run(Player(gateway).play())
        wait_for("quiet", gateway.quiet)
        # Neither is any stream of the service's left that Envoy still waits for.
        wait_for("idle streams", lambda: _active(gateway) <= idle)
        status = gateway.status()
        grown = {
            name: _grown([each[at] for each in played.looks]) for at, name in enumerate(("service", "Envoy"))
        }
        print(
            f"\n{played.sent} requests at {played.rate_per_s:.0f}/s in {SECONDS:.0f} s, {played.left_out}"
            f" left out, {played.refused} refused (429), {played.failed} failed"
        )
        for at, (name, (memory, files)) in enumerate(grown.items()):
            last = played.looks[-1][at]
            print(
                f"{name}: {last.memory / 2**20:.0f} MiB, {memory / 2**20:+.2f} MiB since the second quarter; "
                f"{last.files} files, {files:+}"
            )
        assert played.failed == 0
        # One address may try so many wrong keys, and is told to wait then.
        assert b"HTTP/1.1 401" in played.strangers <= {b"HTTP/1.1 401", b"HTTP/1.1 429"}
        assert (status["open_exchanges"], status["held"], status["counts"].get("expired", 0)) == (0, 0, 0)
        assert len(played.looks) >= LOOKS // 2
        for name, (memory, files) in grown.items():
            assert memory <= GROWTH_BYTES_MAX, name
            assert files <= GROWTH_FILES_MAX, name

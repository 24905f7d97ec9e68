"""Agents, simulated replicas as processes, raw telemetry, and a steady load of streams that tells all.

What a test of the fleet needs beside a `Gateway`. Nothing here asserts.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import queue
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import yaml
from gateway import KEYS, Gateway, free_ports, listens, wait_for
from processes import Child, show_logs, stop_all

from extproc._pb import telemetry_pb2 as pb
from steersman_agent.nvml_fake import write_script

PUSH = "/steersman.telemetry.v1.Telemetry/Push"


def token(node: str) -> str:
    """A node's token in these tests."""
    return f"token-of-{node}"


def telemetry(nodes: Sequence[str], **settings: Any) -> dict[str, Any]:
    """A `telemetry` section that lets these nodes push."""
    hashes = {node: hashlib.sha256(token(node).encode()).hexdigest() for node in nodes}
    return {
        "listen": [f"127.0.0.1:{free_ports(1)[0]}"],
        "nodes": [
            {"name": node, "token_sha256": digest, "networks": ["127.0.0.0/8"]}
            for node, digest in hashes.items()
        ],
        **settings,
    }


class Processes:
    """Children that end with the `with`, in a folder of their own; their logs are shown on failure."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="steersman-e2e-"))
        self.children: list[Child] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        stop_all(self.children)
        if kind is not None:
            self.show_logs()
        shutil.rmtree(self.folder, ignore_errors=True)

    def show_logs(self) -> None:
        """Print the ends of the logs, for a test that has failed."""
        show_logs(self.children)

    def start(self, name: str, *arguments: str) -> Child:
        """Start `python ARGUMENTS…`."""
        child = Child(name, [sys.executable, *arguments], self.folder)
        self.children.append(child)
        child.start()
        return child

    def replicas(self, name: str, ports: Sequence[int], **settings: Any) -> Child:
        """Start simulated replicas, all in one process, and wait until they answer."""
        settings = {"model_id": name, "time_scale": 0.5, **settings}
        entries = [{"name": f"{name}-{port}", "port": port, "seed": port} for port in ports]
        file = self.folder / f"replicas-{name}-{ports[0]}.yaml"
        file.write_text(yaml.safe_dump({"defaults": settings, "replicas": entries}))
        child = self.start(file.stem, "-m", "extproc.cli", "sim-replica", "-f", str(file))
        for port in ports:
            wait_for(f"replica {port}", lambda port=port: listens(port))
        return child

    def agent(
        self, gateway: Gateway, node: str, pool: str, addresses: Sequence[str], **settings: Any
    ) -> Agent:
        """Start a node's agent that pushes to the gateway's service; wait with `Agent.reported`."""
        settings.setdefault("services", gateway.config["telemetry"]["listen"])
        return Agent(self, node, pool, addresses, **settings)


class Agent:
    """`python -m steersman_agent` of one node, with a GPU of a fake NVML for each replica."""

    def __init__(
        self,
        processes: Processes,
        node: str,
        pool: str,
        addresses: Sequence[str],
        *,
        timeout_ms: int = 5_000,
        **settings: Any,
    ) -> None:
        self.node = node
        self._script = processes.folder / f"{node}-gpus.json"
        self.gpus: list[dict[str, Any]] = [{"uuid": f"GPU-{node}-{i}"} for i in range(len(addresses))]
        self.touch()
        secret = processes.folder / f"{node}-token"
        secret.write_text(token(node))
        self._pool, self._timeout_ms = pool, timeout_ms
        self.config: dict[str, Any] = {
            "node": node,
            "token_file": str(secret),
            "nvml": f"fake:{self._script}",
            "replicas": [self._replica(address, gpus=[i]) for i, address in enumerate(addresses)],
            **settings,
        }
        self._file = processes.folder / f"{node}.yaml"
        self.write()
        self.child = processes.start(f"agent-{node}", "-m", "steersman_agent", "-f", str(self._file))

    def _replica(self, address: str, **more: Any) -> dict[str, Any]:
        # Two silences make it hung; a replica of these tests answers late where the machine is busy.
        named = {"address": address, "pool": self._pool, "engine": "tgi", "timeout_ms": self._timeout_ms}
        return {**named, **more}

    def join(self, address: str) -> None:
        """One more replica of the same pool is configured."""
        self.config["replicas"].append(self._replica(address))
        self.write()

    def write(self) -> None:
        """Write the configuration as it stands; the agent looks at it each second."""
        beside = self._file.with_suffix(".new")
        beside.write_text(yaml.safe_dump(self.config))
        beside.replace(self._file)

    def touch(self) -> None:
        """Write the GPUs' script as it stands."""
        write_script(self._script, {"gpus": self.gpus})

    def reported(self, gateway: Gateway) -> bool:
        """The service has heard of all of its replicas, and they are well."""
        wanted = {replica["address"] for replica in self.config["replicas"]}
        return wanted <= {
            each["address"]
            for each in gateway.status()["endpoints"]
            if each["node"] == self.node and each["state"] == "ready" and each["health"] == 1.0
        }


@dataclass(slots=True)
class Seen:
    """One request as its client saw it; times by time.monotonic, 0 where it did not come to that."""

    began_s: float
    endpoint: str = ""
    status: int = 0
    reason: str = ""
    whole: bool = False
    ended_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Served and whole."""
        return self.status == 200 and self.whole


class Load:
    """Streams that begin at a steady rate until the `with` ends.

    With `at_once_max` under way the next waits: a machine that does much else is not flooded. `seen` has
    every request that has begun. On leaving, what still runs may end for `patience_s`.
    """

    def __init__(
        self,
        gateway: Gateway,
        model: str,
        *,
        rate: float = 30.0,
        tokens: int | Callable[[], int] = 5,
        key: str = KEYS["acme"],
        patience_s: float = 60.0,
        at_once_max: int = 40,
    ) -> None:
        self.seen: list[Seen] = []
        #: Requests that each endpoint is answering now.
        self.running: Counter[str] = Counter()
        self._port, self._model, self._key = gateway.port, model, key
        self._rate, self._patience_s, self._at_once_max = rate, patience_s, at_once_max
        self._tokens = tokens if callable(tokens) else lambda: tokens
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(self._patience_s + 10)

    @property
    def failed(self) -> list[Seen]:
        """Requests that ended without their whole answer."""
        return [each for each in self.seen if each.ended_s and not each.ok]

    def more(self, count: int) -> float:
        """Wait until so many more requests have an answer or an end; when the wait began."""
        since_s = time.monotonic()

        def come() -> bool:
            return sum(bool(each.endpoint or each.ended_s) for each in self.between(since_s)) >= count

        wait_for(f"{count} more answers", come)
        return since_s

    @property
    def reason(self) -> str:
        """Why the newest request that has an answer went where it went."""
        return next((each.reason for each in reversed(self.seen) if each.reason), "")

    def between(self, since_s: float, until_s: float = float("inf")) -> list[Seen]:
        """Requests that began within a time."""
        return [each for each in self.seen if since_s <= each.began_s < until_s]

    def shares(self, since_s: float, until_s: float = float("inf")) -> dict[str, float]:
        """The share of each endpoint in what began within a time and has an answer."""
        counts = Counter(each.endpoint for each in self.between(since_s, until_s) if each.endpoint)
        return {endpoint: count / counts.total() for endpoint, count in counts.items()}

    def sampled(self, seconds: float, *, every_s: float = 0.02) -> Iterator[Counter[str]]:
        """What runs where, again and again for a while."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            yield Counter(self.running)
            time.sleep(every_s)

    async def _run(self) -> None:
        tasks: set[asyncio.Task[None]] = set()
        next_s = time.monotonic()
        while not self._stop.is_set():
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
            if len(tasks) >= self._at_once_max:
                next_s = time.monotonic() + 1 / self._rate
                continue
            # No more at once than the rate says, also when it was late.
            next_s = max(next_s, time.monotonic() - 1 / self._rate) + 1 / self._rate
            task = asyncio.create_task(self._one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._patience_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _one(self) -> None:
        one = Seen(time.monotonic())
        self.seen.append(one)
        try:
            await self._stream(one)
        except (OSError, ValueError, asyncio.IncompleteReadError):
            one.whole = False
        finally:
            one.ended_s = time.monotonic()

    async def _stream(self, one: Seen) -> None:
        tokens = self._tokens()
        parameters = {"max_new_tokens": tokens}
        prompt = f"[[sim:out={tokens}]]"
        body = json.dumps({"model": self._model, "prompt": prompt, "max_tokens": tokens, "stream": True})
        if not self._model:
            body = json.dumps({"inputs": prompt, "parameters": parameters})
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(
                f"POST /v1/completions HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n"
                f"content-type: application/json\r\nauthorization: Bearer {self._key}\r\n"
                f"content-length: {len(body)}\r\n\r\n{body}".encode()
            )
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
            one.endpoint = headers.get("x-steersman-endpoint", "")
            one.reason = headers.get("x-steersman-reason", "")
            one.status = int(head[0].split()[1])
            self.running[one.endpoint] += 1
            try:
                one.whole = await _events(reader) > 0
            finally:
                self.running[one.endpoint] -= 1
        finally:
            writer.close()


async def _events(reader: asyncio.StreamReader) -> int:
    """Read a chunked event stream to its proper end; the events of one that said [DONE], else 0."""
    data = b""
    while size := int(await reader.readline(), 16):
        data += await reader.readexactly(size)
        await reader.readexactly(2)
    return data.count(b"data:") if data.rstrip().endswith(b"data: [DONE]") else 0


class RawAgent:
    """A telemetry stream of one's own: any report may be sent, whole or not."""

    def __init__(self, gateway: Gateway, secret: str) -> None:
        self._channel = grpc.insecure_channel(gateway.config["telemetry"]["listen"][0])
        self._reports: queue.Queue[bytes | None] = queue.Queue()
        self._acks = self._channel.stream_stream(PUSH)(
            iter(self._reports.get, None), metadata=[("authorization", f"Bearer {secret}")]
        )

    def push(self, report: bytes) -> str:
        """Send a report; why it was not believed, empty where it was. Raises grpc.RpcError."""
        self._reports.put(report)
        return str(pb.Ack.FromString(next(self._acks)).rejected)

    def close(self) -> None:
        """End the stream."""
        self._reports.put(None)
        with contextlib.suppress(grpc.RpcError):
            list(self._acks)
        self._channel.close()


def report(node: str, sequence: int, addresses: Sequence[str], pool: str, **first: Any) -> pb.Report:
    """A plausible report of ready replicas, but for what is given of the first."""
    now_ms = int(time.time() * 1000)
    message = pb.Report(node=node, boot_id=7, sequence=sequence, sent_unix_ms=now_ms)
    for address in addresses:
        message.replicas.add(
            **{"address": address, "pool": pool, "engine": "tgi", "state": pb.READY, **first}
        )
        first = {}
    return message

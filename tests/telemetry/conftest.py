"""An ingest that is listened to, and reports as an agent makes them."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import pytest

from extproc._pb import telemetry_pb2 as pb
from extproc.core.reports import ReplicaReport
from extproc.telemetry.ingest import Ingest, PushingNode

S = 1_000_000_000
UNIX_MS = 1_700_000_000_000


class Listening:
    """An ingest for the nodes n1 and n2, its clocks, and what came out."""

    def __init__(self, *, anyone: bool = False) -> None:
        self.taken: list[tuple[str, list[ReplicaReport]]] = []
        self.left: list[str] = []
        self.now_ns = S
        self.unix_ms = UNIX_MS
        self.ingest = Ingest(
            [PushingNode(name="n1", networks=(ipaddress.ip_network("10.0.1.0/24"),)), PushingNode(name="n2")],
            anyone=anyone,
            on_reports=lambda node, reports, _: self.taken.append((node, reports)),
            on_leaving=lambda node, _: self.left.append(node),
        )

    def passes(self, seconds: float) -> None:
        """Both clocks move on."""
        self.now_ns += int(seconds * S)
        self.unix_ms += int(seconds * 1000)

    def take(self, report: pb.Report | bytes, identity: str | None = "n1", **options: bool) -> str:
        """The rejection's code, empty when taken."""
        data = report if isinstance(report, bytes) else report.SerializeToString()
        ack = self.ingest.take(data, identity, now_ns=self.now_ns, now_unix_ms=self.unix_ms, **options)
        return pb.Ack.FromString(ack).rejected

    def report(self, sequence: int = 1, *, address: str = "10.0.1.1:80", **fields: Any) -> pb.Report:
        """A plausible report of n1."""
        message = pb.Report(
            **{"node": "n1", "boot_id": 7, "sequence": sequence, "sent_unix_ms": self.unix_ms, **fields}
        )
        if "replicas" not in fields:
            message.replicas.add(address=address, pool="p", state=pb.READY)
        return message


@pytest.fixture
def listening() -> Listening:
    """With identities."""
    return Listening()


@pytest.fixture
def listen() -> Callable[..., Listening]:
    """The class, for tests that need another."""
    return Listening

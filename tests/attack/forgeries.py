"""Agents that lie: whose token, whose replica, at which address, with which figures."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import grpc
from agents_harness import PUSH

from extproc._pb import telemetry_pb2 as pb
from tests.attack.report import Report, attack
from tests.attack.stand import Stand, node_token


def push(stand: Stand, token: str | None, reports: Iterable[bytes]) -> str:
    """What becomes of a stream: the acknowledgements, or the refusal's code."""
    metadata = [("authorization", f"Bearer {token}")] if token is not None else []
    with grpc.insecure_channel(stand.gateway.config["telemetry"]["listen"][0]) as channel:
        call = channel.stream_stream(PUSH)(iter(list(reports)), metadata=metadata, timeout=20)
        try:
            acks = [pb.Ack.FromString(each) for each in call]
        except grpc.RpcError as error:
            return str(error.code().name)
    rejected = [ack.rejected for ack in acks if ack.rejected]
    return f"rejected: {rejected[0]}" if rejected else "taken"


def told(address: str, *, node: str = "n1", sequence: int = 1, state: int = 2, **more: Any) -> bytes:
    """A report of one replica."""
    report = pb.Report(node=node, boot_id=1, sequence=sequence, sent_unix_ms=int(time.time() * 1000))
    report.replicas.add(address=address, pool="chat", state=state, **more)
    data: bytes = report.SerializeToString()
    return data


@attack("agents speak for their own node's replicas alone, and bring no address that is not one")
def forged_telemetry(stand: Stand, full: bool) -> Report:
    report = Report()
    gateway = stand.gateway
    ours = stand.engine.addresses[0]
    known = {each["address"] for each in gateway.status()["endpoints"]}
    for token in (None, "wrong", node_token("n2")):
        answer = push(stand, token, [told(ours, state=5)])
        report.answer(answer)
        report.holds(answer != "taken", f"a report of n1 was taken of {token!r}")
    # n1 may speak for loopback, its own network and link-local; never are these replicas.
    forged = [
        "169.254.169.254:80",
        "10.9.0.1:80",
        f"127.0.0.1:{gateway.admin_port}",
        f"127.0.0.1:{gateway.port}",
        gateway.service_address,
        stand.admin,
        "192.0.2.1:80",
        "0.0.0.0:80",
        "224.0.0.1:80",
    ]
    for number, address in enumerate(forged * (20 if full else 1), start=2):
        report.answer(push(stand, node_token("n1"), [told(address, sequence=number, max_concurrent=1_000)]))
    # n2 has no networks: what it says of another's replica ends nothing.
    for number in range(1, 4):
        report.answer(push(stand, node_token("n2"), [told(ours, node="n2", sequence=number, state=5)]))
    poison: list[dict[str, Any]] = [
        {"decode_tokens_per_s": float("nan")},
        {"prefill_tokens_per_s": 1e300},
        {"waiting": 2**32 - 1},
        {"kv_used_tokens": 10, "kv_capacity_tokens": 1},
    ]
    for number, figures in enumerate(poison, start=1_000):
        report.answer(push(stand, node_token("n1"), [told(ours, sequence=number, **figures)]))
    report.answer(push(stand, node_token("n1"), [b"\xff" * 100]))
    report.served(stand.victim(20))
    status = gateway.status()
    ready = {each["address"] for each in status["endpoints"] if each["ready"]}
    report.holds(ours in ready, "a replica is gone for what a stranger said of it")
    strange = ready - known
    report.holds(not strange, f"{strange} get traffic, which nobody listens at")
    report.holds(not stand.counts("exception."), f"faults of ours: {stand.counts('exception.')}")
    return report

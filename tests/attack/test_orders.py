"""Attacks on the decision port by whoever reaches it: orders, forged records, forged events, stolen words.

The service runs in this process, without Envoy: what Envoy renders for it is `tests/e2e/test_orders.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from extproc._pb import access_log_pb2, ext_proc_pb2, health_pb2
from extproc.config.load import loads
from extproc.config.places import orders_at
from extproc.core.contract import (
    DECISION_NAMESPACE,
    EVENT_METHOD,
    EVENT_SERVICE,
    OBSERVED_NAMESPACE,
    RESERVATION_HEADER,
    RESERVATION_KEY,
)
from extproc.core.tenant import hash_key
from extproc.service.app import App
from extproc.supervise.admin_link import AdminLink
from extproc.supervise.asking import ServiceLink, ServiceRefusedError
from extproc.supervise.ports import free_ports
from extproc.wire.orders import STATUS
from extproc.wire.seal import Seal
from extproc.wire.server import ACCESS_LOG, EXT_PROC, HEALTH
from extproc.wire.ticket import write
from tests.stand.schedulers import make_reservation
from tests.stand.waits import PATIENCE_S, until

REPLICA = "10.0.0.1:80"
ADS = "envoy.service.discovery.v3.AggregatedDiscoveryService"
ORDERS = ("Drain", "ClearFaults", "Tenant", "Shadow", "Credit", "Explain", "Experiment", "Report", "Alerts")
TOKEN, OLD_TOKEN, OPERATOR = "t" * 32, "o" * 32, "operators-token"


def text(folder: Path, address: str, *, service: str = "", sections: str = "") -> str:
    return f"""
service: {{listen: ["{address}"], run_dir: {folder}, drain_s: 0{service}}}
probes: {{enabled: false}}
analytics: {{dir: {folder}/analytics}}
pools:
  - name: chat
    models: [m]
    price: {{output_per_million: 1000000}}
    endpoints: [{{address: "{REPLICA}", max_concurrent: 8}}]
tenants:
  - name: acme
    keys: [{{sha256: {hash_key("sk-acme")}}}]
    quota: {{budget_per_month: 1000000}}
{sections}
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short name: a socket's path has 107 bytes."""
    made = Path(tempfile.mkdtemp(prefix="s-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


class At:
    """A running service and a stranger's channel to its decision port."""

    def __init__(self, app: App, address: str, folder: Path) -> None:
        self.app, self.address = app, address
        self.link = ServiceLink(f"unix:{folder}/{address.replace(':', '_')}.orders.sock")
        self.channel: Any = grpc.aio.insecure_channel(address)

    async def unary(self, method: str, body: bytes = b"", *shown: tuple[str, str]) -> bytes:
        answer: bytes = await self.channel.unary_unary(method)(body, metadata=shown, timeout=PATIENCE_S)
        return answer

    async def refusal(self, method: str, *shown: tuple[str, str]) -> grpc.StatusCode:
        """Of a call as a stream that says nothing, which any kind of handler takes."""
        call = self.channel.stream_stream(method)(metadata=shown, timeout=PATIENCE_S)
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            await call.done_writing()
            async for _ in call:
                pass
        code: grpc.StatusCode = await call.code()
        return code

    async def decide(self) -> dict[str, str]:
        """A decision as Envoy asks for it; the metadata that it is given."""
        first, second = ext_proc_pb2.ProcessingRequest(), ext_proc_pb2.ProcessingRequest()
        for name, value in {
            ":method": "POST",
            ":path": "/v1/completions",
            "authorization": "Bearer sk-acme",
        }.items():
            first.request_headers.headers.headers.add(key=name, raw_value=value.encode())
        second.request_body.body = b'{"model": "m", "prompt": "hello", "max_tokens": 50}'
        second.request_body.end_of_stream = True
        call = self.channel.stream_stream(f"/{EXT_PROC}/Process")(timeout=PATIENCE_S)
        await call.write(first.SerializeToString())
        await call.read()
        await call.write(second.SerializeToString())
        answer = ext_proc_pb2.ProcessingResponse.FromString(await call.read())
        fields = answer.dynamic_metadata.fields[DECISION_NAMESPACE].struct_value.fields
        return {name: value.string_value for name, value in fields.items()}

    async def log(self, ticket: str, *, tokens: int = 0, final: bool = True) -> None:
        """A record as Envoy sends it, or as a forger does."""
        message = access_log_pb2.StreamAccessLogsMessage()
        entry = message.http_logs.log_entry.add()
        common = entry.common_properties
        common.metadata.filter_metadata[DECISION_NAMESPACE].update({"ticket": ticket})
        common.metadata.filter_metadata[OBSERVED_NAMESPACE].update({"completion_tokens": tokens})
        common.access_log_type = (
            access_log_pb2.DOWNSTREAM_END if final else access_log_pb2.DOWNSTREAM_PERIODIC
        )
        entry.response.response_code.value = 200
        entry.response.response_body_bytes = 40
        call = self.channel.stream_unary(f"/{ACCESS_LOG}/StreamAccessLogs")(timeout=PATIENCE_S)
        await call.write(message.SerializeToString())
        await call.done_writing()
        await call

    async def charged(self) -> float:
        """What acme has used of its month, which refills: 1 a token. By the operators' socket."""
        limits = (await self.link.order("Tenant", {"name": "acme"}))["limits"]
        return float(next(each["used"] for each in limits if each["limit"] == "budget_per_month"))

    @property
    def counts(self) -> Any:
        return self.app.scheduler.counts


def mode(path: Path) -> int:
    """Who may what with a file."""
    return stat.S_IMODE(path.stat().st_mode)


@asynccontextmanager
async def serving(folder: Path, **more: str) -> AsyncIterator[At]:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    async with served(folder, address, **more) as at:
        yield at


@asynccontextmanager
async def served(folder: Path, address: str, **more: str) -> AsyncIterator[At]:
    app = App(loads(text(folder, address, **more)))
    await app.start()
    at = At(app, address, folder)
    running = asyncio.create_task(app.run())
    try:
        yield at
    finally:
        await at.link.close()
        await at.channel.close()
        app.stop()
        await asyncio.wait_for(running, PATIENCE_S)


def test_no_order_is_taken_at_the_decision_port(folder: Path) -> None:
    """Nor are figures told there; both are at the operators' socket, which is its owner's alone."""

    def sockets() -> list[Path]:
        return list(folder.glob("*.sock"))

    async def play() -> None:
        async with serving(folder) as at:
            for order in ("Get", *ORDERS):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await at.unary(f"/{STATUS}/{order}", b"{}")
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED, order
            assert (await at.link.status())["instance"] == at.app.scheduler.instance
            assert await at.link.drain(REPLICA, draining=True)
            assert at.app.scheduler.fleet.endpoints[0].draining
            (socket,) = sockets()
            assert mode(socket) == 0o600
        assert not sockets()

    asyncio.run(play())


def test_a_command_finds_the_socket_by_the_listening_address(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a port in a private folder of the user's, of a unix socket beside it; each form that means it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))

    async def play() -> None:
        for address, asked in (
            (f"127.0.0.1:{(port := free_ports(1)[0])}", f"127.0.0.1:{port}"),
            (f"0.0.0.0:{port}", f"127.0.0.1:{port}"),
            (f"unix:{folder}/s.sock", f"unix:{folder}/s.sock"),
            (f"unix:{folder}/s.sock", f"unix:{folder}/s.orders.sock"),
        ):
            app = App(loads(text(folder, address).replace(f"run_dir: {folder}, ", "")))
            await app.start()
            link = ServiceLink(asked)
            assert (await link.status())["instance"] == app.scheduler.instance
            await link.close()
            running = asyncio.create_task(app.run())
            app.stop()
            await running
            assert orders_at(asked) is None
        assert mode(folder / "steersman") == 0o700

    asyncio.run(play())


def test_a_forged_record_charges_nobody(folder: Path) -> None:
    """Without a seal, with another key's, or with a true seal on other words: counted, and that is all."""
    forged = make_reservation(
        id="forged", tenant="acme", model="m", pool="chat", address=REPLICA, stream=False
    )

    async def play() -> None:
        async with serving(folder) as at:
            true = (await at.decide())["ticket"]
            before = await at.charged()
            mark, words = true[:32], true[32:]
            for ticket in (
                '["forged","acme","m","chat","10.0.0.1:80",5,5,1,20,false]',
                write(forged, Seal()),
                mark + words.replace('"acme"', '"globex"'),
                mark + words.replace(",50,", ",50000000,"),
                mark,
                "",
                "ü" * 40,
            ):
                await at.log(ticket, tokens=100_000_000)
                await at.log(ticket, final=False)
            assert await at.charged() <= before
            assert at.counts["settled.forged"] == 14
            assert len(at.app.scheduler.ledger) == 1, "no heartbeat of a ghost takes a place"
            await at.log(true, tokens=7)
            await until(lambda: at.counts["settled.ok"])
            assert 6 < await at.charged() <= 7
            await at.log(true, tokens=7)
            assert at.counts["settled.duplicate"] == 1, "a record that is sent again is settled already"

    asyncio.run(play())


def test_a_forged_event_is_no_first_token(folder: Path) -> None:
    """Neither by a request's id nor by its ticket: the decision's own word for it is needed."""

    async def play() -> None:
        async with serving(folder) as at:
            told = await at.decide()
            request_id = told[RESERVATION_KEY][32:]
            event = f"/{EVENT_SERVICE}/{EVENT_METHOD}"
            for name in ("", request_id, told["ticket"], told["ticket"][:32] + request_id):
                await at.unary(event, b"", (RESERVATION_HEADER, name), ("x-steersman-refused", "1"))
            assert at.counts["events.forged"] == 4
            await at.unary(event, b"", (RESERVATION_HEADER, told[RESERVATION_KEY]))
            assert (at.counts["events.forged"], at.counts["events.unknown"]) == (4, 0)

    asyncio.run(play())


def test_without_the_token_nothing_is_decided_logged_or_told(folder: Path) -> None:
    """Each service of the port asks for it, health and sealed events apart; an older token is taken too."""
    (folder / "token").write_text(f"{TOKEN}\n{OLD_TOKEN}\n")

    async def play() -> None:
        async with serving(folder, service=f", token_file: {folder}/token") as at:
            calls = (
                f"/{EXT_PROC}/Process",
                f"/{ACCESS_LOG}/StreamAccessLogs",
                f"/{ADS}/StreamAggregatedResources",
            )
            for method in calls:
                for shown in (
                    "",
                    "Bearer",
                    "Bearer " + "x" * 32,
                    f"Basic {TOKEN}",
                    f"Bearer {TOKEN}x",
                    TOKEN,
                ):
                    said = await at.refusal(method, ("authorization", shown))
                    assert said is grpc.StatusCode.UNAUTHENTICATED, (method, shown)
                assert await at.refusal(method) is grpc.StatusCode.UNAUTHENTICATED
                # A value that ends in a space is no HTTP/2 (RFC 9113, 8.2.1): its stream ends unread.
                assert await at.refusal(method, ("authorization", "Bearer ")) is grpc.StatusCode.INTERNAL
                for token in (TOKEN, OLD_TOKEN):
                    said = await at.refusal(method, ("authorization", f"Bearer {token}"))
                    assert said is not grpc.StatusCode.UNAUTHENTICATED, method
            assert at.counts["calls.unauthenticated"] == 7 * len(calls)
            healthy = health_pb2.HealthCheckResponse.FromString(await at.unary(f"/{HEALTH}/Check"))
            assert healthy.status == health_pb2.HealthCheckResponse.SERVING

    asyncio.run(play())


def test_a_ticket_outlives_its_service(folder: Path) -> None:
    """The successor knows it, by the key that is kept; another service does not."""
    address = f"127.0.0.1:{free_ports(1)[0]}"

    async def play() -> None:
        async with served(folder, address) as at:
            ticket = (await at.decide())["ticket"]
        key = folder / f"{address.replace(':', '_')}.key"
        assert mode(key) == 0o600
        async with serving(folder) as other:
            await other.log(ticket, tokens=7)
            assert (other.counts["settled.ok"], other.counts["settled.forged"]) == (0, 1)
        async with served(folder, address) as at:
            await at.log(ticket, tokens=7)
            assert (at.counts["settled.ok"], at.counts["settled.forged"]) == (1, 0)
        key.chmod(0o644)
        async with served(folder, address) as at:
            await at.log(ticket, tokens=7)
            assert at.counts["settled.forged"] == 1, "a key that others could read is none"

    asyncio.run(play())


def test_services_with_one_token_know_each_others_tickets(folder: Path) -> None:
    """Whoever decided, all of them settle and learn."""
    (folder / "token").write_text(TOKEN)
    first, second = folder / "a", folder / "b"

    async def play() -> None:
        shared = f", token_file: {folder}/token"
        async with serving(first, service=shared) as one, serving(second, service=shared) as two:
            shown = (("authorization", f"Bearer {TOKEN}"),)
            assert one.app.processor.seal.key == two.app.processor.seal.key
            sealed = write(make_reservation(tenant="acme", stream=False), one.app.processor.seal)
            message = access_log_pb2.StreamAccessLogsMessage()
            metadata = message.http_logs.log_entry.add().common_properties.metadata
            metadata.filter_metadata[DECISION_NAMESPACE].update({"ticket": sealed})
            await two.unary(f"/{ACCESS_LOG}/StreamAccessLogs", message.SerializeToString(), *shown)
            assert (two.counts["settled.forged"], two.counts["settled.error"]) == (0, 1)

    asyncio.run(play())


def test_orders_at_the_admin_port(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From elsewhere: the same answers as at the socket, by the token's scope and not without one."""
    monkeypatch.setenv("STEERSMAN_TOKEN", OPERATOR)
    port = free_ports(1)[0]
    tokens = ", ".join(
        f"{{name: {name}, sha256: {hash_key(token)}, scope: {scope}}}"
        for name, token, scope in (("ops", OPERATOR, "write"), ("look", "lookers-token", "read"))
    )
    admin = f'admin: {{listen: "127.0.0.1:{port}", auth: token, tokens: [{tokens}]}}'

    async def play() -> None:
        async with serving(folder, sections=admin) as at:
            link = AdminLink(f"http://127.0.0.1:{port}")
            assert (await link.status())["instance"] == at.app.scheduler.instance
            for order, body in (("Tenant", {"name": "acme"}), ("Alerts", {}), ("Experiment", {"name": ""})):
                assert await link.order(order, body) == await at.link.order(order, body), order
            for either in (link, at.link):
                with pytest.raises(ValueError, match="no tenant 'nobody' here"):
                    await either.order("Tenant", {"name": "nobody"})
            assert await link.drain(REPLICA, draining=True)
            assert at.app.scheduler.fleet.endpoints[0].draining
            assert not await link.drain("10.9.9.9:1", draining=True)
            assert await link.clear_faults(REPLICA) == []
            await link.close()
            for token in ("lookers-token", "wrong", ""):
                monkeypatch.setenv("STEERSMAN_TOKEN", token)
                link = AdminLink(f"http://127.0.0.1:{port}")
                credit = {"tenant": "acme", "why": "x", "everything": True}
                for order, body in (("Credit", credit), ("Drain", {"address": REPLICA, "draining": False})):
                    with pytest.raises(ServiceRefusedError):
                        await link.order(order, body)
                await link.close()
            assert at.app.scheduler.fleet.endpoints[0].draining

    asyncio.run(play())


def test_what_the_status_says_of_a_forger(folder: Path) -> None:
    """An operator sees that somebody tries: counts in the status."""

    async def play() -> None:
        async with serving(folder) as at:
            await at.log("forged")
            assert json.loads(at.app.view.json())["counts"]["settled.forged"] == 1

    asyncio.run(play())

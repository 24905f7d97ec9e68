from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
import pytest

from extproc._pb import telemetry_pb2 as pb
from steersman_agent.agent import Agent
from steersman_agent.config import AgentConfig, TlsSettings
from steersman_agent.figures import NodeView
from steersman_agent.push import (
    BACKOFF_MAX_S,
    METHOD,
    TOKEN_BYTES_MAX,
    UNACKED_MAX,
    Numbers,
    PushBackoff,
    Pusher,
    pushers_for,
    read_token,
)
from tests.stand.waits import PATIENCE_S, until

Handler = Callable[[AsyncIterator[pb.Report], Any], AsyncIterator[pb.Ack]]


class Service:
    """A telemetry service that a test can make slow, deaf or strict."""

    def __init__(self) -> None:
        self.reports: list[pb.Report] = []
        self.metadata: list[dict[str, str]] = []
        self.reading = asyncio.Event()
        self.reading.set()
        self.rejected = ""
        self.port = 0
        self._server: Any = None

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        package, name = METHOD.strip("/").split("/")
        handler = grpc.stream_stream_rpc_method_handler(
            self._push,
            request_deserializer=pb.Report.FromString,
            response_serializer=pb.Ack.SerializeToString,
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(package, {name: handler}),)
        )
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(0)

    async def _push(self, reports: AsyncIterator[pb.Report], context: Any) -> AsyncIterator[pb.Ack]:
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        await self.reading.wait()
        async for report in reports:
            self.reports.append(report)
            await self.reading.wait()
            yield pb.Ack(sequence=report.sequence, rejected=self.rejected)


def view(name: str) -> NodeView:
    return NodeView(node=name)


def scene(
    play: Callable[[Service, Pusher], Awaitable[None]], *, before: bool = True, **settings: Any
) -> None:
    """Run a scene with a service and one pusher to it."""

    async def run() -> None:
        service = Service()
        await service.start()
        config = AgentConfig(services=(f"127.0.0.1:{service.port}",), **settings)
        pusher = pushers_for(config, numbers=Numbers(7), rng=Random(1))[0]
        task = asyncio.create_task(pusher.run())
        try:
            await play(service, pusher)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await service.stop()

    asyncio.run(run())


def test_reports_go_up_numbered_and_acks_come_down() -> None:
    """Sequence 1, 2, …, one boot id, the node's name."""

    async def play(service: Service, pusher: Pusher) -> None:
        pusher.offer(view("a"))
        await until(lambda: len(service.reports) == 1)
        pusher.offer(view("b"))
        await until(lambda: pusher.stats.acked == 2)
        assert [(report.node, report.sequence, report.boot_id) for report in service.reports] == [
            ("a", 1, 7),
            ("b", 2, 7),
        ]
        assert "authorization" not in service.metadata[0]

    scene(play)


def test_many_views_within_the_spacing_become_one_report() -> None:
    """The newest is sent, the others never."""

    async def play(service: Service, pusher: Pusher) -> None:
        for number in range(1000):
            pusher.offer(view(str(number)))
            if number % 100 == 0:
                await asyncio.sleep(0)
        await until(lambda: bool(service.reports) and service.reports[-1].node == "999")
        assert len(service.reports) <= 2

    scene(play, spacing_ms=1_000)


def test_a_deaf_service_costs_freshness_and_nothing_else() -> None:
    """While it does not answer a few reports are on their way; then the newest one goes first."""

    async def play(service: Service, pusher: Pusher) -> None:
        pusher.offer(view("first"))
        await until(lambda: len(service.reports) == 1)
        service.reading.clear()
        for number in range(60):
            pusher.offer(view(f"{number} " + "x" * 10_000))
            await asyncio.sleep(0.01)
        assert pusher.stats.sent <= 2 + UNACKED_MAX
        pusher.offer(view("newest"))
        service.reading.set()
        await until(lambda: service.reports[-1].node == "newest")
        assert len(service.reports) <= 3 + UNACKED_MAX

    scene(play, spacing_ms=10)


def test_a_service_that_never_acknowledges_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream is given up and begun anew."""
    monkeypatch.setattr("steersman_agent.push.ACK_TIMEOUT_S", 0.1)

    async def play(service: Service, pusher: Pusher) -> None:
        service.reading.clear()
        pusher.offer(view("a"))
        await until(lambda: pusher.stats.streams >= 3)
        assert pusher.stats.acked == 0
        service.reading.set()
        await until(lambda: pusher.stats.acked >= 1)

    scene(play)


def test_a_restarted_service_hears_the_newest_report_on_a_new_stream() -> None:
    """With a number above the last one, so that it is no replay; nobody has to offer it again."""

    async def play(service: Service, pusher: Pusher) -> None:
        pusher.offer(view("a"))
        await until(lambda: pusher.stats.acked == 1)
        await service.stop()
        pusher.offer(view("lost on the way"))
        pusher.offer(view("b"))
        await asyncio.sleep(0.3)
        await service.start()
        await until(lambda: len(service.reports) >= 2)
        assert service.reports[1].node == "b"
        assert service.reports[1].sequence > service.reports[0].sequence
        assert service.reports[1].boot_id == service.reports[0].boot_id
        assert pusher.stats.streams >= 2

    scene(play)


def test_a_refusal_is_said_once_and_does_not_stop_the_reports(caplog: pytest.LogCaptureFixture) -> None:
    """The service may change its mind."""

    async def play(service: Service, pusher: Pusher) -> None:
        service.rejected = "unknown_node"
        for number in range(3):
            pusher.offer(view(str(number)))
            await until(lambda number=number: pusher.stats.acked == number + 1)  # type: ignore[misc]
        assert pusher.stats.rejected == 3
        service.rejected = ""
        pusher.offer(view("good"))
        await until(lambda: pusher.stats.acked == 4)

    caplog.set_level("INFO")
    scene(play)
    said = [record.getMessage() for record in caplog.records if record.name == "steersman_agent.push"]
    assert [line.split(": ", 1)[-1] for line in said if "refused" in line] == [
        "the report was refused: unknown_node"
    ]
    assert any(line.startswith("reporting to") for line in said)


def test_leaving_is_the_last_word_and_is_not_waited_for_long() -> None:
    """`run` ends by itself; with a deaf service too."""

    async def play(service: Service, pusher: Pusher) -> None:
        pusher.offer(view("a"))
        await until(lambda: pusher.stats.acked == 1)
        pusher.leave()
        await until(lambda: len(service.reports) == 2)
        assert [report.leaving for report in service.reports] == [False, True]
        await asyncio.sleep(0.2)
        assert len(service.reports) == 2

    scene(play)


def test_leaving_a_deaf_or_missing_service_ends_too() -> None:
    """The last report is given up on."""

    async def run() -> None:
        deaf = Service()
        deaf.reading.clear()
        await deaf.start()
        for address in (f"127.0.0.1:{deaf.port}", "127.0.0.1:1"):
            config = AgentConfig(services=(address,))
            pusher = pushers_for(config, numbers=Numbers(7), rng=Random(1))[0]
            task = asyncio.create_task(pusher.run())
            pusher.offer(view("a"))
            await asyncio.sleep(0.3)
            pusher.leave()
            await asyncio.wait_for(task, PATIENCE_S)
        await deaf.stop()

    asyncio.run(run())


def test_any_fails_over_and_each_reports_to_all() -> None:
    """`any`: the dead address is passed by; `each`: two services hear everything."""

    async def run() -> None:
        one, other = Service(), Service()
        await one.start()
        await other.start()
        addresses = tuple(f"127.0.0.1:{service.port}" for service in (one, other))
        for mode, services, heard in (
            ("any", ("127.0.0.1:1", *addresses), (1, 0)),
            ("each", addresses, (1, 1)),
        ):
            for service in (one, other):
                service.reports.clear()
            config = AgentConfig(services=services, mode=mode)
            pushers = pushers_for(config, numbers=Numbers(7), rng=Random(1))
            tasks = [asyncio.create_task(pusher.run()) for pusher in pushers]
            for pusher in pushers:
                pusher.offer(view("a"))
            await until(lambda heard=heard: (len(one.reports), len(other.reports)) == heard)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await one.stop()
        await other.stop()

    asyncio.run(run())


def test_the_token_rides_in_metadata_and_is_read_anew(tmp_path: Path) -> None:
    """A rotated token is used by the next stream."""
    token = tmp_path / "token"
    token.write_text("first\n")

    async def play(service: Service, pusher: Pusher) -> None:
        pusher.offer(view("a"))
        await until(lambda: pusher.stats.acked == 1)
        token.write_text("second")
        await service.stop()
        await service.start()
        await until(lambda: len(service.metadata) >= 2)
        found = [entry["authorization"] for entry in service.metadata]
        assert (found[0], found[-1]) == ("Bearer first", "Bearer second")

    scene(play, token_file=token)


@pytest.mark.parametrize("text", ["", "\n", "two\nlines", "n\u00e4h"])
def test_an_unusable_token_is_said(tmp_path: Path, text: str) -> None:
    """Rather than sent."""
    token = tmp_path / "token"
    token.write_text(text)
    with pytest.raises(ValueError, match="holds no usable token"):
        read_token(AgentConfig(token_file=token))
    token.write_text("x" * 2 * TOKEN_BYTES_MAX)
    assert len(read_token(AgentConfig(token_file=token)) or "") == TOKEN_BYTES_MAX


def test_the_token_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read at each stream."""
    monkeypatch.setenv("STEERSMAN_T", "abc")
    assert read_token(AgentConfig(token_env="STEERSMAN_T")) == "abc"
    assert read_token(AgentConfig()) is None


def test_backoff_grows_with_full_jitter_to_a_bound() -> None:
    """Somewhere between nothing and a ceiling that doubles; after success it begins anew."""
    backoff = PushBackoff(Random(3))
    pauses = [backoff.pause_s() for _ in range(40)]
    assert pauses[0] <= 0.1
    assert all(0 <= pause <= BACKOFF_MAX_S for pause in pauses)
    assert max(pauses) > BACKOFF_MAX_S / 2
    backoff.reset()
    assert backoff.pause_s() <= 0.1


def _certificates(folder: Path) -> None:
    """A CA, a service (127.0.0.1) and a node, all signed by it."""
    run = lambda *arguments: subprocess.run(  # noqa: E731
        [openssl, *arguments], cwd=folder, check=True, capture_output=True
    )
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes certificates with openssl, which is not here")
    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout")
    run(*new, "ca.key", "-x509", "-days", "1", "-subj", "/CN=ca", "-out", "ca.pem")
    for name, san in (("service", "IP:127.0.0.1"), ("node", "DNS:gpu-7")):
        run(*new, f"{name}.key", "-subj", f"/CN={name}", "-out", f"{name}.csr")
        (folder / "san").write_text(f"subjectAltName={san}\n")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-extfile", "san")
        run("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")


def test_mutual_tls_proves_the_node(tmp_path: Path) -> None:
    """The service reads the node's name from its certificate; without one there is no stream."""
    _certificates(tmp_path)
    files = {
        name: tmp_path / name for name in ("ca.pem", "service.pem", "service.key", "node.pem", "node.key")
    }
    names: list[list[bytes]] = []

    async def push(reports: AsyncIterator[pb.Report], context: Any) -> AsyncIterator[pb.Ack]:
        names.append(context.auth_context().get("x509_subject_alternative_name", []))
        async for report in reports:
            yield pb.Ack(sequence=report.sequence)

    async def run() -> None:
        server = grpc.aio.server()
        package, name = METHOD.strip("/").split("/")
        handler = grpc.stream_stream_rpc_method_handler(
            push, request_deserializer=pb.Report.FromString, response_serializer=pb.Ack.SerializeToString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(package, {name: handler}),))
        pair = (files["service.key"].read_bytes(), files["service.pem"].read_bytes())
        credentials = grpc.ssl_server_credentials(
            [pair], root_certificates=files["ca.pem"].read_bytes(), require_client_auth=True
        )
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        for tls, acked in (
            ({"ca": files["ca.pem"], "cert": files["node.pem"], "key": files["node.key"]}, True),
            ({"ca": files["ca.pem"]}, False),
        ):
            config = AgentConfig(services=(f"127.0.0.1:{port}",), tls=TlsSettings(**tls))
            pusher = pushers_for(config, numbers=Numbers(7), rng=Random(1))[0]
            task = asyncio.create_task(pusher.run())
            pusher.offer(view("gpu-7"))
            await until(lambda: pusher.stats.acked or pusher.stats.streams >= 3)  # noqa: B023 (awaited here)
            assert bool(pusher.stats.acked) is acked
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await server.stop(0)

    asyncio.run(run())
    assert names == [[b"gpu-7"]]


def test_an_agent_reports_changes_heartbeats_and_its_leaving() -> None:
    """From its start to its end, with no replica at all."""

    async def run() -> None:
        service = Service()
        await service.start()
        config = AgentConfig(node="n", services=(f"127.0.0.1:{service.port}",), nvml="off", heartbeat_ms=100)
        stop = asyncio.Event()
        task = asyncio.create_task(Agent(config).run(stop))
        await until(lambda: len(service.reports) >= 3)
        stop.set()
        await task
        assert {report.node for report in service.reports} == {"n"}
        assert [report.leaving for report in service.reports].index(True) == len(service.reports) - 1
        assert len({report.boot_id for report in service.reports}) == 1
        await service.stop()

    asyncio.run(run())

"""KEDA's external scaler, asked by a KEDA of our own over real connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from identity import Authority

from extproc.config.scaling import ScalerConfig, ScalerTls
from extproc.core.scaling.values import Band, PoolPlan
from extproc.scaling import external
from extproc.scaling.external import ExternalScaler
from extproc.scaling.trigger import TriggerError, trigger_of
from tests.stand.keda import FakePools, KedaClient
from tests.stand.waits import until


def plan(pool: str = "llama", *, wanted: int = 3, ready: int = 2, loading: int = 0, **more: Any) -> PoolPlan:
    return PoolPlan(
        pool=pool,
        at_ns=0,
        wanted=wanted,
        ready=ready,
        loading=loading,
        draining=0,
        why="as a test says",
        **more,
    )


@asynccontextmanager
async def scaler(pools: FakePools, **settings: Any) -> AsyncIterator[ExternalScaler]:
    given = {"listen": "127.0.0.1:0", "push_interval_s": 30.0, **settings}
    server = ExternalScaler(ScalerConfig.model_construct(**given), pools, clock=time.monotonic_ns)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def code_of(call: Callable[[], Any]) -> tuple[Any, str]:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call()
    return failed.value.code(), failed.value.details() or ""


def driven(run: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(run(), 60))


def test_the_contract_is_kedas() -> None:
    """Package, service, methods, numbers and names are those that KEDA's operator was compiled with."""
    from extproc._pb import externalscaler_pb2 as pb

    service = pb.DESCRIPTOR.services_by_name["ExternalScaler"]
    assert service.full_name == "externalscaler.ExternalScaler"
    assert [(each.name, each.server_streaming) for each in service.methods] == [
        ("IsActive", False),
        ("StreamIsActive", True),
        ("GetMetricSpec", False),
        ("GetMetrics", False),
        ("StreamMetricSpec", True),
    ]
    numbers = {
        name: [(field.name, field.number) for field in message.fields]
        for name, message in pb.DESCRIPTOR.message_types_by_name.items()
    }
    assert numbers == {
        "ScaledObjectRef": [("name", 1), ("namespace", 2), ("scalerMetadata", 3)],
        "IsActiveResponse": [("result", 1)],
        "GetMetricSpecResponse": [("metricSpecs", 1)],
        "MetricSpec": [("metricName", 1), ("targetSize", 2), ("targetSizeFloat", 3)],
        "GetMetricsRequest": [("scaledObjectRef", 1), ("metricName", 2)],
        "GetMetricsResponse": [("metricValues", 1)],
        "MetricValue": [("metricName", 1), ("metricValue", 2), ("metricValueFloat", 3)],
    }


def test_every_unary_call_is_answered() -> None:
    """Spec, value and activity, as KEDA asks for them in turn."""

    async def run() -> None:
        pools = FakePools("llama")
        pools.plans["llama"] = plan(wanted=3, ready=2)
        async with scaler(pools) as server, KedaClient(server.address, pool="llama") as keda:
            name, target = await keda.metric_spec()
            assert (name, target) == ("s0-steersman-wanted-llama", 1_000)
            assert await keda.metrics(name) == 3_000
            assert await keda.is_active()
            # Beyond HPA's tolerance: the plain 11 would be swallowed.
            pools.plans["llama"] = plan(wanted=11, ready=8, loading=2)
            assert await keda.metrics(name) == 11_002
            pools.plans["llama"] = plan(wanted=0, ready=1)
            assert await keda.metrics(name) == 0
            assert not await keda.is_active()
            assert server.counts["GetMetrics"] == 3

    driven(run)


@pytest.mark.parametrize("threshold", ["0.1", "0.57", "1.005", "2.5", "40"])
def test_a_threshold_is_no_other_number_of_replicas(threshold: str) -> None:
    """HPA's ceil(value / target) is what is wanted whatever the target, through KEDA's thousandths."""

    async def run() -> None:
        pools = FakePools("llama")
        async with (
            scaler(pools) as server,
            KedaClient(server.address, pool="llama", threshold=threshold) as keda,
        ):
            name, target = await keda.metric_spec()
            for wanted in (1, 2, 3, 7, 10, 29, 100):
                pools.plans["llama"] = plan(wanted=wanted, ready=1 if wanted != 1 else 9)
                assert -(-await keda.metrics(name) // target) == wanted

    driven(run)


def test_two_triggers_of_one_name_are_told_apart() -> None:
    """Two triggers of one ScaledObject, of two pools and two metrics, get their own answers."""

    async def run() -> None:
        pools = FakePools("llama", "mistral")
        pools.plans["llama"] = plan(wanted=5)
        forecast = Band(ahead_s=60.0, low=1.0, median=2.25, high=4.0)
        pools.plans["mistral"] = plan("mistral", wanted=0, ready=0, forecast=forecast)
        async with (
            scaler(pools) as server,
            KedaClient(server.address, pool="llama") as one,
            KedaClient(server.address, pool="mistral", metric="forecast", threshold="1.5", index=1) as other,
        ):
            first, second = await one.metric_spec(), await other.metric_spec()
            assert first == ("s0-steersman-wanted-llama", 1_000)
            assert second == ("s1-steersman-forecast-mistral", 1_500)
            for _ in range(5):
                found = await asyncio.gather(
                    one.metrics(first[0]), other.metrics(second[0]), one.is_active(), other.is_active()
                )
                assert found == [5_000, 2_250, True, False]

    driven(run)


def test_a_held_request_wakes_the_stream_at_once() -> None:
    """With nothing ready and nothing wanted, StreamIsActive says yes as soon as somebody is held, long before
    its next look; and again no when nobody is."""

    async def run() -> None:
        pools = FakePools("llama")
        pools.plans["llama"] = plan(wanted=0, ready=0)
        async with (
            scaler(pools, push_interval_s=0.2) as server,
            KedaClient(server.address, pool="llama") as keda,
            aclosing(keda.stream_active()) as said,
        ):
            assert not await anext(said)
            server.settings = ScalerConfig.model_construct(push_interval_s=3_600.0)
            await until(lambda: server.sleeping == {"llama"})
            await asyncio.sleep(0.4)  # the old interval is over: from now on only a wake is heard
            pools.waiting = {"llama": 1}
            server.wake("llama")
            assert await anext(said)
            assert await keda.is_active()
            server.settings = ScalerConfig.model_construct(push_interval_s=0.1)

    driven(run)


def test_streams_follow_what_changes() -> None:
    """A stream says nothing before there is a plan, then each change; it ends when its pool is gone."""

    async def run() -> None:
        pools = FakePools("llama")
        async with (
            scaler(pools, push_interval_s=0.02) as server,
            KedaClient(server.address, pool="llama") as keda,
            aclosing(keda.stream_active()) as said,
            aclosing(keda.stream_specs()) as specs,
        ):
            assert await anext(specs) == ("s0-steersman-wanted-llama", 1_000)
            first = asyncio.ensure_future(anext(said))
            await until(lambda: server.streams == 2)
            assert not first.done()
            pools.plans["llama"] = plan(wanted=2)
            assert await first
            pools.plans["llama"] = plan(wanted=0)
            assert not await anext(said)
            pools.wanting = {"llama"}
            assert await anext(said)
            pools.names = []
            for stream in (said, specs):
                code, text = await code_of(lambda stream=stream: anext(stream))
                assert code is grpc.StatusCode.NOT_FOUND
                assert "does not scale any more" in text
            await until(lambda: server.streams == 0)

    driven(run)


def test_no_plan_changes_nothing_at_keda() -> None:
    """Before the first plan each answer is UNAVAILABLE, not zero: KEDA leaves what there is; but who is held
    counts."""

    async def run() -> None:
        pools = FakePools("llama")
        async with scaler(pools) as server, KedaClient(server.address, pool="llama") as keda:
            for call in (keda.is_active, lambda: keda.metrics("s0-steersman-wanted-llama")):
                code, text = await code_of(call)
                assert code is grpc.StatusCode.UNAVAILABLE
                assert "no plan yet" in text
            pools.waiting = {"llama": 2}
            assert await keda.is_active()

    driven(run)


@pytest.mark.parametrize(
    ("metadata", "code", "said"),
    [
        ({}, grpc.StatusCode.INVALID_ARGUMENT, "name no pool; write pool: NAME (llama, mistral)"),
        (
            {"pool": "lama"},
            grpc.StatusCode.NOT_FOUND,
            "no pool 'lama' scales here; there are: llama, mi",
        ),
        ({"pool": "x" * 500}, grpc.StatusCode.NOT_FOUND, f"no pool '{'x' * 63}' scales"),
        (
            {"pool": "llama", "metric": "cpu"},
            grpc.StatusCode.INVALID_ARGUMENT,
            "none of wanted, held, fo",
        ),
        ({"pool": "llama", "metric": "held"}, grpc.StatusCode.INVALID_ARGUMENT, "needs threshold"),
        ({"pool": "llama", "threshold": "0"}, grpc.StatusCode.INVALID_ARGUMENT, "no number from 0.1"),
        ({"pool": "llama", "threshold": "nan"}, grpc.StatusCode.INVALID_ARGUMENT, "threshold 'nan'"),
        ({"pool": "llama", "tolerance": "1"}, grpc.StatusCode.INVALID_ARGUMENT, "no number from 0 to 0.5"),
    ],
)
def test_mistakes_are_said(metadata: dict[str, str], code: Any, said: str, caplog: Any) -> None:
    """Each call of a wrong trigger says what is wrong, with the ScaledObject's name; the log says it once."""

    async def run() -> None:
        pools = FakePools("llama", "mistral")
        async with scaler(pools) as server, KedaClient(server.address, name="chat", **metadata) as keda:
            calls: list[Callable[[], Any]] = [
                keda.is_active,
                keda.metric_spec,
                lambda: keda.metrics("s0-x"),
                lambda: anext(keda.stream_active()),
                lambda: anext(keda.stream_specs()),
            ]
            for call in calls:
                found, text = await code_of(call)
                assert found is code
                assert said in text
                assert text.startswith("ScaledObject llm/chat: ")
            assert server.counts["mistakes"] == 5

    driven(run)
    assert len([each for each in caplog.records if "ScaledObject llm/chat" in each.getMessage()]) == 1


def test_a_trigger_may_carry_keys_of_kedas() -> None:
    """What KEDA itself reads, or will read, of the metadata is no mistake."""
    given = {"pool": "llama", "scalerAddress": "a:1", "unsafeSsl": "false", "new": "x", "tolerance": "0"}
    assert trigger_of(given, ["llama"]).tolerance == 0.0
    assert trigger_of({"pool": "Llama_3.1 8B"}, ["Llama_3.1 8B"]).name == "steersman-wanted-llama-3-1-8b"
    with pytest.raises(TriggerError, match="none has `scaling`"):
        trigger_of({"pool": "llama"}, [])


def test_a_restart_in_the_middle_is_nothing_to_keda() -> None:
    """The scaler goes and comes back on its address: the same connection and a new stream get the new one's
    answers, of both triggers."""

    async def run() -> None:
        pools = FakePools("llama", "mistral")
        pools.plans = {"llama": plan(wanted=4), "mistral": plan("mistral", wanted=1)}
        async with scaler(pools, push_interval_s=0.02) as first:
            address = first.address
            one, other = KedaClient(address, pool="llama"), KedaClient(address, pool="mistral", index=1)
            name = (await one.metric_spec())[0]
            stream = one.stream_active()
            assert await anext(stream)
            await first.stop()
            code, _ = await code_of(lambda: anext(stream))
            assert code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        again = FakePools("llama", "mistral")
        async with scaler(again, listen=address, push_interval_s=0.02) as second, one, other:
            # KEDA's next poll: the connection is made again, and nothing is known yet.
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await one.metrics(name, wait=True)
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
            again.plans = {"llama": plan(wanted=6), "mistral": plan("mistral", wanted=0)}
            assert await one.metrics(name, wait=True) == 6_000
            assert not await other.is_active(wait=True)
            async with aclosing(one.stream_active()) as said:
                assert await anext(said)
            assert second.counts["StreamIsActive"] == 1

    driven(run)


def test_tls_and_clients_certificates(tmp_path: Path) -> None:
    """With client_ca only a client with a certificate is answered; a renewed certificate of the server's
    holds at the next look, and half of one leaves the old."""
    ca, theirs = Authority(tmp_path), Authority(tmp_path, "clients")
    certificate, key = ca.issue("server", "IP:127.0.0.1")
    client = theirs.issue("keda", "DNS:keda")
    tls = ScalerTls(certificate=str(certificate), key=str(key), client_ca=str(theirs.certificate))

    async def run() -> None:
        pools = FakePools("llama")
        pools.plans["llama"] = plan(wanted=2)
        async with scaler(pools, tls=tls) as server:
            address = server.address
            async with KedaClient(address, pool="llama", ca=ca.certificate, pair=client) as keda:
                assert await keda.is_active()
            for refused in (
                KedaClient(address, pool="llama"),
                KedaClient(address, pool="llama", ca=ca.certificate),
            ):
                async with refused as stranger:
                    assert (await code_of(stranger.is_active))[0] is grpc.StatusCode.UNAVAILABLE
            assert not await server.renew()
            renewed = Authority(tmp_path, "next")
            new = renewed.issue("server", "IP:127.0.0.1")
            certificate.write_bytes(new[0].read_bytes())
            assert not await server.renew(), "its key is another's"
            key.write_bytes(new[1].read_bytes())
            assert await server.renew()
            assert server.address == address
            async with KedaClient(address, pool="llama", ca=renewed.certificate, pair=client) as keda:
                assert await keda.is_active()

    driven(run)


def test_strangers_cost_no_more_than_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams beyond the bound are refused and leave room when others end; a message that is too long is not
    read."""
    monkeypatch.setattr(external, "STREAMS_MAX", 2)

    async def run() -> None:
        pools = FakePools("llama")
        pools.plans["llama"] = plan()
        async with scaler(pools) as server, KedaClient(server.address, pool="llama") as keda:
            streams = [keda.stream_active() for _ in range(2)]
            for stream in streams:
                assert await anext(stream)
            code, text = await code_of(lambda: anext(keda.stream_specs()))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert text == "2 streams are open"
            await streams.pop().aclose()
            await until(lambda: server.streams == 1)
            async with aclosing(keda.stream_specs()) as specs:
                assert await anext(specs)
            await streams.pop().aclose()
            async with KedaClient(server.address, pool="llama", more="x" * 70_000) as long:
                assert (await code_of(long.is_active))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await keda.is_active()

    driven(run)


def test_an_address_that_is_taken_is_said() -> None:
    """The message names the setting."""

    async def run() -> None:
        pools = FakePools("llama")
        async with scaler(pools) as server:
            with pytest.raises(OSError, match=r"change scaling\.external_scaler\.listen"):
                async with scaler(pools, listen=server.address):
                    pass

    driven(run)

"""The simulated server's life: clients that leave, health, metrics, faults, replicas that come and go."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from extproc.sim.listening import ReplicaSpec, start_replicas
from tests.stand.sim_server import Ask, scene, state, until


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_a_client_that_leaves_frees_its_permit_and_kv(path: str) -> None:
    """At the next token; the rest is never generated."""

    async def play(ask: Ask) -> None:
        body = {"inputs": "x [[sim:out=2000]]", "parameters": {"max_new_tokens": 2000}}
        leaving = asyncio.ensure_future(ask(path, body))
        await until(ask, lambda seen: seen["running"] == 1 and seen["tokens"] > 3)
        leaving.cancel()
        seen = await until(ask, lambda seen: seen["permits_in_use"] == 0)
        assert (seen["running"], seen["kv_reserved_tokens"], seen["cancelled"], seen["served"]) == (
            0,
            0,
            1,
            0,
        )
        assert 3 < seen["tokens"] < 1999
        assert 'tgi_request_failure{err="dropped"} 1' in (await ask("/metrics"))[2]

    scene(play, time_scale=2.0)


# Health, info, metrics, faults.


def test_health_info_and_models() -> None:
    """Healthy with an empty body; /info names what this is and no KV capacity."""

    async def play(ask: Ask) -> None:
        for path in ("/health", "/ping", "/"):
            assert (await ask(path))[::2] == (200, "")
        info = json.loads((await ask("/info"))[2])
        assert info["model_id"] == "sea/legs"
        assert info["max_concurrent_requests"] == 9
        assert info["docker_label"].startswith("simulated; timings from splitwise-sim / vidur")
        assert not [key for key in info if "kv" in key]
        assert json.loads((await ask("/v1/models"))[2])["data"][0]["id"] == "sea/legs"
        await ask("/sim/fault", {"healthy": False})
        status, _, text = await ask("/health")
        assert (status, json.loads(text)) == (503, {"error": "unhealthy", "error_type": "healthcheck"})

    scene(play, model_id="sea/legs", max_concurrent_requests=9)


def test_metrics_have_tgis_names_and_move_with_the_work() -> None:
    """No `_total`, cumulative buckets, gauges that show the hung batch and fall to nothing."""

    async def play(ask: Ask) -> None:
        await ask("/sim/fault", {"hang": True})
        body = {"inputs": "x" * 40 + "[[sim:out=3]]", "parameters": {"max_new_tokens": 50}}
        work = asyncio.ensure_future(ask("/generate", body))
        await until(ask, lambda seen: seen["waiting"] == 1)
        assert "tgi_queue_size 1\n" in (await ask("/metrics"))[2]
        await ask("/sim/fault", {"hang": False, "slowdown": 3000})
        await until(ask, lambda seen: seen["running"] == 1)
        await ask("/sim/fault", {"hang": True})
        text = (await ask("/metrics"))[2]
        assert "tgi_batch_current_size 1\n" in text
        assert "tgi_batch_current_max_tokens 63\n" in text  # 14 + 50 − 1
        assert "tgi_queue_size 0\n" in text
        await ask("/sim/fault", {"clear": True})
        await work
        status, headers, text = await ask("/metrics")
        assert status == 200
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
        assert "_total" not in text
        samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert samples["tgi_request_count"] == samples["tgi_request_success"] == "1"
        assert samples["tgi_batch_current_size"] == samples["tgi_batch_current_max_tokens"] == "0"
        assert samples['tgi_batch_inference_count{method="prefill"}'] == "1"
        assert samples['tgi_batch_inference_count{method="decode"}'] == "2"
        assert samples["tgi_request_generated_tokens_sum"] == "3.0"
        assert (
            samples['tgi_request_duration_bucket{le="+Inf"}'] == samples["tgi_request_duration_count"] == "1"
        )
        assert len([key for key in samples if key.startswith("tgi_request_queue_duration_bucket")]) == 36

    scene(play)


def test_faults_strike_a_share_with_a_status_and_clear() -> None:
    """About half, the same half on every run; health and metrics are spared."""

    async def play(ask: Ask) -> None:
        status, _, text = await ask("/sim/fault", {"refuse_share": 0.5, "status": 502, "slowdown": 2.0})
        assert (status, json.loads(text)["slowdown"]) == (200, 2.0)
        seen = [(await ask("/generate", {"inputs": "x [[sim:out=1]]"}))[0] for _ in range(40)]
        assert set(seen) == {200, 502}
        assert 10 < seen.count(502) < 30
        assert (await state(ask))["struck"] == seen.count(502)
        assert (await ask("/health"))[0] == 200
        cleared = json.loads((await ask("/sim/fault", {"clear": True}))[2])
        assert cleared["slowdown"] == 1.0
        assert (await ask("/generate", {"inputs": "x [[sim:out=1]]"}))[0] == 200
        await ask("/sim/fault", {"refuse": True})
        assert (await ask("/generate", {"inputs": "x"}))[0] == 429

    scene(play)


@pytest.mark.parametrize("body", [{"slowdown": 0}, {"refuse_share": 2}, {"slowdwon": 2}, {"status": 200}])
def test_a_wrong_fault_is_refused(body: dict[str, Any]) -> None:
    """A misspelt fault that silently did nothing would make a test lie."""

    async def play(ask: Ask) -> None:
        assert (await ask("/sim/fault", body))[0] == 422

    scene(play)


def test_the_prefix_cache_serves_a_second_turn() -> None:
    """Exact state shows what TGI never exposes."""

    async def play(ask: Ask) -> None:
        prompt = "Once upon a tide. " * 40
        for _ in range(2):
            await ask("/generate", {"inputs": prompt + "[[sim:out=2]]"})
        seen = await state(ask)
        assert seen["cached_prompt_tokens"] == 176  # 733 bytes: 184 tokens, 11 blocks of 16
        assert seen["kv_used_tokens"] == seen["kv_cached_tokens"] == 176

    scene(play)


# The programmatic API.


def test_many_replicas_listen_on_ports_of_their_own_and_stop() -> None:
    """Each answers by its own name; after the stop all refuse connections; stopping twice is fine."""

    async def run() -> None:
        specs = [ReplicaSpec(name=f"r{at}", time_scale=100) for at in range(5)]
        running = await start_replicas(specs)
        assert len(set(running.ports)) == 5
        async with aiohttp.ClientSession() as session:
            for spec, address in zip(specs, running.addresses, strict=True):
                async with session.get(f"http://{address}/health") as response:
                    assert response.headers["x-sim-replica"] == spec.name
            await running.stop()
            await running.stop()
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get(f"http://{running.addresses[0]}/health")

    asyncio.run(run())


def test_a_taken_port_leaves_nothing_running() -> None:
    """The ones already started are stopped, and the port's error is the caller's."""

    async def run() -> None:
        async with await start_replicas([ReplicaSpec(name="a")]) as running:
            free = ReplicaSpec(name="b")
            taken = ReplicaSpec(name="c", port=running.ports[0])
            with pytest.raises(OSError, match="address already in use"):
                await start_replicas([free, taken])

    asyncio.run(run())


def test_a_killed_replica_cuts_its_streams_and_can_come_back() -> None:
    """A crash as a gateway sees it: a cut stream, refused connections, then the same address again."""

    async def run() -> None:
        specs = [ReplicaSpec(name="a"), ReplicaSpec(name="b")]
        async with await start_replicas(specs) as running, aiohttp.ClientSession() as session:
            url = f"http://{running.addresses[0]}/generate_stream"
            body = {"inputs": "x [[sim:out=2000]]", "parameters": {"max_new_tokens": 2000}}
            async with session.post(url, json=body) as response:
                await response.content.readline()
                await running.kill("a")
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.read()
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.post(url, json=body)
            assert [server.spec.name for server in running.servers] == ["b"]
            await running.revive("a")
            assert url.startswith(f"http://{running.addresses[0]}/")
            async with session.post(url, json={"inputs": "x [[sim:out=1]]"}) as response:
                assert response.status == 200
            with pytest.raises(ValueError, match="is up"):
                await running.revive("b")

    asyncio.run(run())


def test_two_of_one_name_do_not_start() -> None:
    """The name tells them apart."""
    with pytest.raises(ValueError, match="names of their own"):
        asyncio.run(start_replicas([ReplicaSpec(name="a"), ReplicaSpec(name="a")]))


def test_a_bad_spec_names_every_problem() -> None:
    """All at once."""
    with pytest.raises(
        ValueError, match=r"unknown hardware 'x'.*time_scale must be above 0.*max_total_tokens"
    ):
        ReplicaSpec(name="a", hardware="x", time_scale=0, max_total_tokens=5)


def test_an_ipv6_address_is_told_in_brackets() -> None:
    """As everything that takes one wants it."""

    async def told() -> tuple[list[str], int]:
        async with await start_replicas([ReplicaSpec(name="six", host="::1", port=0)]) as running:
            return running.addresses, running.ports[0]

    addresses, port = asyncio.run(told())
    assert addresses == [f"[::1]:{port}"]

"""The agent as a whole over simulated TGI replicas: real sockets, real time, short waits."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from threading import Event
from typing import Any

import aiohttp
import pytest

from extproc.sim.listening import ReplicaSpec, RunningReplicas, start_replicas
from steersman_agent.agent import Agent, collect_once
from steersman_agent.config import AgentConfig, ReplicaSettings, load
from steersman_agent.figures import NodeView, ReplicaView
from steersman_agent.nvml_fake import write_script
from steersman_agent.state import ReplicaState
from tests.stand.waits import PATIENCE_S, until

MODEL = "meta-llama/Meta-Llama-3-8B-Instruct"


def settings(address: str, **changes: Any) -> ReplicaSettings:
    return ReplicaSettings(address=address, pool="llama", engine="tgi", **changes)


#: The longest pause between two readings that the settings allow.
NVML_MS = 60_000


class Stage:
    """A replica, an agent that watches it, and ways to hurt the one and ask the other."""

    def __init__(self, running: RunningReplicas, agent: Agent, session: aiohttp.ClientSession) -> None:
        self.running = running
        self.agent = agent
        self.session = session

    @property
    def replica(self) -> ReplicaView:
        return self.agent.view().replicas[0]

    async def until(self, reached: Callable[[ReplicaView], bool]) -> None:
        """Until the view is so."""
        await until(lambda: reached(self.replica), lambda: self.replica)

    async def fault(self, **fault: Any) -> None:
        url = f"http://{self.running.addresses[0]}/sim/fault"
        async with self.session.post(url, json=fault) as response:
            assert response.status == 200

    async def generate(self, tokens: int) -> int:
        url = f"http://{self.running.addresses[0]}/generate"
        body = {"inputs": f"Go. [[sim:out={tokens}]]", "parameters": {"max_new_tokens": tokens}}
        async with self.session.post(url, json=body) as response:
            await response.read()
            return response.status


def scene(play: Callable[[Stage], Awaitable[None]], **config: Any) -> None:
    """Run a scene against one replica."""

    async def run() -> None:
        models = config.pop("models", ())
        async with (
            await start_replicas([ReplicaSpec(name="one")]) as running,
            aiohttp.ClientSession() as session,
        ):
            replica = settings(running.addresses[0], models=models, kv_capacity_tokens=400_000)
            agent = Agent(AgentConfig(**{"nvml": "off", "node": "n", "replicas": (replica,)} | config))
            stop = asyncio.Event()
            task = asyncio.create_task(agent.run(stop))
            await asyncio.sleep(0)  # it has begun
            try:
                await play(Stage(running, agent, session))
            finally:
                stop.set()
                await asyncio.wait_for(task, PATIENCE_S)

    asyncio.run(run())


def test_an_idle_replica_is_ready_and_its_figures_are_known() -> None:
    """What TGI says, plus the capacity that it does not."""

    async def play(stage: Stage) -> None:
        await stage.until(lambda view: view.state is ReplicaState.READY and view.probe_ttft_ms is not None)
        await stage.until(lambda view: view.running == 0)
        view = stage.replica
        assert (view.waiting, view.kv_capacity_tokens, view.max_concurrent) == (0, 400_000, 128)
        assert view.models == (MODEL,)
        assert view.scraped_s is not None
        assert stage.running.servers[0].engine.served == 1  # the prompt, and no second one

    scene(play, models=(MODEL,))


def test_work_is_seen_and_measured() -> None:
    """Running, KV and the rate follow the traffic; prompts stay away while it lasts."""

    async def play(stage: Stage) -> None:
        await stage.until(lambda view: view.probe_ttft_ms is not None)
        before_s = stage.replica.probed_s
        await stage.fault(slowdown=20)  # they run until they were seen
        jobs = [asyncio.create_task(stage.generate(60)) for _ in range(8)]
        await stage.until(lambda view: view.running == 8)
        assert (stage.replica.kv_used_tokens or 0) > 8 * 60
        await stage.fault(clear=True)
        await asyncio.gather(*jobs)
        await stage.until(lambda view: view.running == 0)
        assert (stage.replica.decode_tokens_per_s or 0) > 0
        assert stage.replica.probed_s == before_s

    scene(play)


def test_a_replica_that_hangs_under_work_is_hung() -> None:
    """Its pages go on answering; its counters stand still. Released, it is ready again."""

    async def play(stage: Stage) -> None:
        await stage.until(lambda view: view.state is ReplicaState.READY and view.probe_ttft_ms is not None)
        job = asyncio.create_task(stage.generate(500))
        await stage.until(lambda view: view.running == 1)
        await stage.fault(hang=True)
        await stage.until(lambda view: view.state is ReplicaState.HUNG)
        assert "no counter moved" in stage.replica.detail
        await stage.fault(clear=True)
        await stage.until(lambda view: view.state is ReplicaState.READY)
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)

    scene(play)


def test_an_idle_replica_that_hangs_is_found_by_its_prompt() -> None:
    """At the next prompt, here each half second."""

    async def play(stage: Stage) -> None:
        await stage.until(lambda view: view.state is ReplicaState.READY and view.probe_ttft_ms is not None)
        await stage.fault(hang=True)
        await stage.until(lambda view: view.state is ReplicaState.HUNG)
        assert stage.replica.probe_failures >= 1
        await stage.fault(clear=True)
        await stage.until(lambda view: view.state is ReplicaState.READY)

    scene(play, probe_ms=500)


def test_refused_is_loading_before_it_was_ready_and_gone_after() -> None:
    """Two successes bring it back; figures of the dead process are forgotten."""

    async def play(stage: Stage) -> None:
        await stage.until(lambda view: view.state is ReplicaState.READY)
        await stage.running.kill("one")
        await stage.until(lambda view: view.state is ReplicaState.GONE)
        assert stage.replica.running is None
        assert "cannot connect" in stage.replica.detail
        await stage.running.revive("one")
        await stage.until(lambda view: view.state is ReplicaState.READY)

        stage.agent.apply(
            stage.agent.config.model_copy(update={"replicas": (settings("127.0.0.1:1"),), "drain": ()})
        )
        await stage.until(lambda view: view.state is ReplicaState.LOADING)
        assert stage.replica.address == "127.0.0.1:1"

    scene(play)


def test_a_model_that_was_not_asked_for_is_wrong() -> None:
    """Never shown as ready on the way there."""
    seen: set[ReplicaState] = set()

    async def play(stage: Stage) -> None:
        def reached(view: ReplicaView) -> bool:
            seen.add(view.state)
            return view.state is ReplicaState.WRONG_MODEL

        await stage.until(reached)
        assert ReplicaState.READY not in seen
        assert stage.replica.detail == (
            f"model: it serves {MODEL}, and is configured for mistralai/Mistral-7B"
        )

    scene(play, models=("mistralai/Mistral-7B",))


def test_unhealthy_and_failing_replicas_are_degraded() -> None:
    """By their own word, or by their answers to prompts."""

    async def play(stage: Stage) -> None:
        await stage.until(lambda view: view.state is ReplicaState.READY and view.probe_ttft_ms is not None)
        await stage.fault(healthy=False)
        await stage.until(lambda view: view.state is ReplicaState.DEGRADED)
        assert stage.replica.detail == "health: answered with status 503"
        await stage.fault(clear=True)
        await stage.until(lambda view: view.state is ReplicaState.READY)
        await stage.fault(refuse_share=1.0)
        await stage.until(lambda view: view.state is ReplicaState.DEGRADED)
        assert "a prompt was answered with status 503" in stage.replica.detail
        await stage.fault(clear=True)
        await stage.until(lambda view: view.state is ReplicaState.READY)

    scene(play, probe_ms=500, health_ms=200)


def test_a_process_that_is_stopped_is_hung() -> None:
    """It accepts connections, as a SIGSTOPped one does, and says nothing."""

    async def run() -> None:
        silent: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(lambda _reader, writer: silent.append(writer), "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        view, _ = await collect_once(AgentConfig(nvml="off", replicas=(settings(f"{host}:{port}"),)))
        assert view.replicas[0].state is ReplicaState.HUNG
        assert view.replicas[0].running is None
        for writer in silent:
            writer.close()
        server.close()

    asyncio.run(run())


def test_the_drain_list_is_followed_while_running(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draining begins and ends with the file; a broken file changes nothing."""
    monkeypatch.setattr("steersman_agent.agent.CONFIG_LOOK_S", 0.05)

    async def run() -> None:
        async with await start_replicas([ReplicaSpec(name="one")]) as running:
            address = running.addresses[0]
            text = (
                f"services: ['127.0.0.1:1']\nnvml: 'off'\n"
                f"replicas: [{{address: '{address}', pool: p, engine: tgi}}]\n"
            )
            file = tmp_path / "agent.yaml"
            file.write_text(text)
            agent = Agent(load(file), config_file=file)
            stop = asyncio.Event()
            task = asyncio.create_task(agent.run(stop))
            await asyncio.sleep(0)  # it has begun

            def state() -> ReplicaState:
                return agent.view().replicas[0].state

            await until(lambda: state() is ReplicaState.READY)
            file.write_text(text + f"drain: ['{address}']\n")
            await until(lambda: state() is ReplicaState.DRAINING)
            file.write_text(text + "drain: [nonsense]\n")
            await until(lambda: "stays as it was" in caplog.text)
            assert state() is ReplicaState.DRAINING
            file.write_text(text)
            await until(lambda: state() is ReplicaState.READY)
            stop.set()
            await task

    asyncio.run(run())


def test_a_replica_is_mapped_to_its_gpu_by_index_and_by_process(tmp_path: Path) -> None:
    """The simulator listens in this very process, which the fake puts on GPU 1."""
    script = tmp_path / "gpus.json"
    write_script(
        script,
        {"gpus": [{"uuid": "GPU-a"}, {"uuid": "GPU-b", "processes": [{"pid": os.getpid()}]}]},
    )

    async def run() -> None:
        async with await start_replicas([ReplicaSpec(name="one"), ReplicaSpec(name="two")]) as running:
            one, two = running.addresses
            config = AgentConfig(nvml=f"fake:{script}", replicas=(settings(one), settings(two, gpus=(0,))))
            view, why = await collect_once(config)
            assert why == ""
            assert [replica.gpu_uuids for replica in view.replicas] == [("GPU-b",), ("GPU-a",)]
            assert [replica.state for replica in view.replicas] == [ReplicaState.READY, ReplicaState.READY]

    asyncio.run(run())


def test_gpu_trouble_is_seen_while_running(tmp_path: Path, xids_watched: Event) -> None:
    """An XID is in the view although the next reading is a minute away."""
    script = tmp_path / "gpus.json"
    write_script(script, {"gpus": [{}]})

    async def play(stage: Stage) -> None:
        await until(lambda: stage.agent.view().gpus and xids_watched.is_set())
        write_script(script, {"gpus": [{"xids": [48], "throttle": ["hw_slowdown"]}]})
        await until(lambda: stage.agent.view().gpus[0].xids)
        assert stage.agent.view().gpus[0].throttle_reasons == 0x8

    scene(play, nvml=f"fake:{script}", nvml_ms=NVML_MS)


def test_a_stranger_on_the_card_is_told_apart_from_the_engine(tmp_path: Path) -> None:
    """The engine is this very process and idle; the stranger computes all the while."""
    script = tmp_path / "gpus.json"
    gib = 2**30
    strangers = [{"pid": os.getpid(), "memory_bytes": 20 * gib}, {"pid": 2**22, "memory_bytes": 59 * gib}]
    busy = {"utilization_percent": 100, "memory_used_bytes": 79 * gib, "memory_total_bytes": 80 * gib}
    write_script(script, {"gpus": [busy | {"processes": strangers}]})

    async def play(stage: Stage) -> None:
        assert await stage.generate(2) == 200  # TGI says nothing of its batch before its first request
        async with asyncio.timeout(30):
            while not ((gpus := stage.agent.view().gpus) and gpus[0].utilization_others_percent):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (gpus[0].memory_others_bytes, gpus[0].utilization_others_percent) == (59 * gib, 100)
        write_script(script, {"gpus": [busy | {"processes": strangers[:1]}]})
        async with asyncio.timeout(30):
            while stage.agent.view().gpus[0].utilization_others_percent:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert stage.agent.view().gpus[0].memory_others_bytes == 0

    scene(play, nvml=f"fake:{script}", nvml_ms=50)


class Told:
    """A pusher that keeps the states it was offered, by address."""

    def __init__(self) -> None:
        self.states: list[dict[str, ReplicaState]] = []
        self._left = asyncio.Event()

    def offer(self, view: NodeView) -> None:
        self.states.append({replica.address: replica.state for replica in view.replicas})

    def leave(self) -> None:
        self._left.set()

    async def run(self) -> None:
        await self._left.wait()


def test_a_replica_is_told_of_when_it_was_looked_at() -> None:
    """At the start and when it joins later: what is unknown would count as trouble."""

    async def run() -> None:
        async with await start_replicas([ReplicaSpec(name="one"), ReplicaSpec(name="two")]) as running:
            one, two = (settings(address) for address in running.addresses)
            agent, told = Agent(AgentConfig(nvml="off", replicas=(one,))), Told()
            agent.pushers = [told]  # type: ignore[list-item]
            stop = asyncio.Event()
            task = asyncio.create_task(agent.run(stop))
            await until(lambda: told.states)
            agent.apply(AgentConfig(nvml="off", replicas=(one, two)))
            await until(lambda: two.address in told.states[-1])
            stop.set()
            await task
            assert told.states[0] == {one.address: ReplicaState.READY}
            assert {state for states in told.states for state in states.values()} == {ReplicaState.READY}

    asyncio.run(run())

"""A watch that fails begins anew, and no page of an engine ends one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from steersman_agent import agent as module
from steersman_agent.agent import Agent
from steersman_agent.config import AgentConfig, ReplicaSettings
from steersman_agent.engines import ENGINES
from steersman_agent.figures import Scrape
from steersman_agent.replica import ReplicaBook
from steersman_agent.reply import PageReply
from steersman_agent.state import ReplicaState
from steersman_agent.upstream import ReplicaKey, ReplicaTls, ReplicaUpstream
from tests.stand.waits import until
from tests.stand.web_server import listening, one_page

WELL = b'{"data":[{"id":"m"}]}'
DEEP = b"[" * 100_000


class Engine:
    """A vLLM of which only the pages are there."""

    def __init__(self) -> None:
        self.models = WELL
        self.looks = 0
        self.key = self.prefix = ""
        self.refused = self.prompts = 0

    async def page(self, request: web.Request) -> web.Response:
        self.looks += 1
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            self.refused += 1
            return web.Response(status=401)
        self.prompts += request.method == "POST"
        path = request.path.removeprefix(self.prefix)
        if path == request.path and self.prefix:
            return web.Response(status=404)
        if path == "/v1/models":
            return web.Response(body=self.models, content_type="application/json")
        if path == "/metrics":
            return web.Response(text="vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n")
        return web.json_response({})


@asynccontextmanager
async def watched(
    engine: Engine, upstream: ReplicaUpstream | None = None, tls: ssl.SSLContext | None = None, **more: Any
) -> AsyncIterator[Agent]:
    """An agent that runs and watches the engine; `tls` is the engine's."""
    async with listening(one_page(engine.page), tls=tls) as address:
        replica = ReplicaSettings(
            address=address, pool="p", engine="vllm", upstream=upstream or ReplicaUpstream()
        )
        agent = Agent(
            AgentConfig(
                node="n",
                nvml="off",
                replicas=(replica,),
                poll_idle_ms=200,
                health_ms=200,
                probe_ms=200,
                **more,
            )
        )
        stop = asyncio.Event()
        task = asyncio.create_task(agent.run(stop))
        try:
            await until(lambda: agent.view().replicas)
            yield agent
        finally:
            stop.set()
            await task


def state(agent: Agent) -> ReplicaState:
    return agent.view().replicas[0].state


def test_a_page_nested_without_end() -> None:
    """It says nothing of the engine, and the next page is looked at as ever."""

    async def run() -> None:
        engine = Engine()
        engine.models = DEEP
        async with watched(engine, drain=()) as agent:
            await until(lambda: state(agent) is ReplicaState.READY, agent.view)
            engine.models = WELL
            looks = engine.looks
            await until(lambda: engine.looks > looks + 3)
            assert state(agent) is ReplicaState.READY

    asyncio.run(run())


def test_an_engine_that_wants_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent sends it with every page that it asks for and with its light prompt."""
    monkeypatch.setenv("STEERSMAN_ENGINE", "sk-engine")

    async def run() -> None:
        engine = Engine()
        engine.key = "sk-engine"
        async with watched(engine, ReplicaUpstream(key=ReplicaKey(env="STEERSMAN_ENGINE"))) as agent:
            await until(lambda: state(agent) is ReplicaState.READY, agent.view)
            await until(lambda: engine.prompts)
        assert engine.refused == 0

    asyncio.run(run())


def test_a_watch_that_failed_begins_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its replica is unknown meanwhile, keeps its drain, and is told of again as soon as it was looked at."""
    monkeypatch.setattr(module, "WATCH_AGAIN_S", 0.05)
    real = ReplicaBook.on_metrics
    failing = True

    def fails(book: ReplicaBook, *given: Any) -> None:
        if failing:
            raise RuntimeError("a fault of ours")
        real(book, *given)

    monkeypatch.setattr(ReplicaBook, "on_metrics", fails)

    async def run() -> None:
        nonlocal failing
        engine = Engine()
        async with watched(engine) as agent:
            book = agent._watches[agent.config.replicas[0].address][0]
            book.draining = True
            await until(lambda: caplog.text.count("watching it failed") >= 3, lambda: caplog.text)
            assert state(agent) is ReplicaState.UNKNOWN
            failing = False
            await until(lambda: state(agent) is ReplicaState.DRAINING, agent.view)

    asyncio.run(run())
    # Each time it is waited for twice as long.
    assert "again in 0 s" in caplog.text


def test_a_replica_taken_out_is_not_watched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the configuration no longer names stays away, though its watch was about to begin anew."""
    monkeypatch.setattr(module, "WATCH_AGAIN_S", 0.05)
    monkeypatch.setattr(ReplicaBook, "on_metrics", lambda *_: 1 / 0)

    async def run() -> None:
        async with watched(Engine()) as agent:
            await until(lambda: agent._pauses_s)
            agent.apply(agent.config.model_copy(update={"replicas": ()}))
            await asyncio.sleep(0.2)
            assert not agent._watches
            assert not agent.view().replicas

    asyncio.run(run())


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


class TestAnyPage:
    """What engines may answer."""

    FIELDS: ClassVar = (
        *("data", "id", "model_id", "max_concurrent_requests", "total_slots", "n_ctx", "kv_unified"),
        *("default_generation_settings", "model_path", "dp_size", "max_total_num_tokens", "internal_states"),
        *("memory_usage", "token_capacity", "max_running_requests", "effective_max_running_requests_per_dp"),
    )

    METRICS: ClassVar = (
        *("vllm:num_requests_running", "vllm:cache_config_info", "vllm:kv_cache_usage_perc"),
        *("tgi_queue_size", "sglang:token_usage", "sglang:num_running_reqs", "llamacpp:requests_processing "),
        *('vllm:cache_config_info{num_gpu_blocks="9", block_size="', "tgi_queue_size 1e"),
    )

    @given(
        st.sampled_from(sorted(ENGINES)),
        st.dictionaries(st.sampled_from(FIELDS), _VALUES | st.lists(_VALUES)),
    )
    def test_no_answer_of_an_engine_fails(self, name: str, page: dict[str, Any]) -> None:
        """Whatever JSON its pages hold, infinity and not-a-number too, it is read or says nothing."""
        book = ReplicaBook(
            ReplicaSettings(address="127.0.0.1:1", pool="p", engine=name),  # type: ignore[arg-type]
            AgentConfig(node="n"),
        )
        reply = PageReply(200, json.dumps(page).encode(), 0.0)
        book.on_about(dict.fromkeys(book.engine.about_paths, reply), 0.0)
        book.view()

    @given(
        st.sampled_from(sorted(ENGINES)),
        st.lists(st.tuples(st.sampled_from(METRICS), st.text(max_size=40)), max_size=4),
    )
    def test_no_metrics_page_fails(self, name: str, lines: list[tuple[str, str]]) -> None:
        """What is no page of metrics makes it unwell, and nothing else."""
        page = "".join(f"{metric}{rest}\n" for metric, rest in lines).encode("utf-8", "replace")
        with contextlib.suppress(ValueError):
            assert isinstance(ENGINES[name].scrape(page), Scrape)


def issued(folder: Path, name: str, authority: str = "") -> tuple[Path, Path]:
    """A certificate and its key, signed by an authority or by itself."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    out = ["-keyout", str(key), "-out", str(certificate), "-subj", f"/CN={name}", "-days", "2"]
    by = ["-CA", str(folder / f"{authority}.pem"), "-CAkey", str(folder / f"{authority}.key")]
    san = ["-addext", f"subjectAltName=DNS:{name}", "-addext", "basicConstraints=critical,CA:false"]
    subprocess.run([*new, *out, *([*by, *san] if authority else [])], check=True, capture_output=True)
    return certificate, key


def test_an_engine_behind_tls(tmp_path: Path) -> None:
    """By its pool's name, its key, its path and our certificate; a stranger is never believed."""
    ca, _ = issued(tmp_path, "ca")
    other, _ = issued(tmp_path, "other-ca")
    server, client = issued(tmp_path, "llm.test", "ca"), issued(tmp_path, "agent.test", "ca")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(ca))
    context.load_cert_chain(*server)
    context.verify_mode = ssl.CERT_REQUIRED
    (tmp_path / "key").write_text("sk-engine\n")

    def way(ca: Path, name: str = "llm.test", *, cert: bool = True) -> ReplicaUpstream:
        own = dict(zip(("cert", "key"), client, strict=True)) if cert else {}
        return ReplicaUpstream(
            tls=ReplicaTls(ca=ca, server_name=name, **own),
            key=ReplicaKey(file=tmp_path / "key"),
            path_prefix="/openai",
        )

    async def run() -> None:
        engine = Engine()
        engine.key, engine.prefix = "sk-engine", "/openai"
        async with watched(engine, way(ca), context) as agent:
            await until(lambda: state(agent) is ReplicaState.READY, agent.view)
            await until(lambda: engine.prompts)
        assert engine.refused == 0
        looks = engine.looks
        for wrong, why in (
            (way(other), "upstream.tls.ca"),
            (way(ca, "elsewhere.test"), "another name"),
            (way(ca, cert=False), "client certificate"),
        ):
            async with watched(engine, wrong, context) as agent:
                await until(lambda agent=agent, why=why: why in agent.view().replicas[0].detail, agent.view)
                assert state(agent) is not ReplicaState.READY
        assert engine.looks == looks, "nothing was asked of whom we do not know"

    asyncio.run(run())

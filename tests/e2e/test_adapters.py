"""LoRA adapters through the real Envoy: each has its home, and the engine gets its name."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from agents_harness import RawAgent, report, telemetry, token
from gateway import KEYS, Gateway, chat_pool, free_ports, tenants, wait_for
from one_model import Engine
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families
from replicas import Replicas, specs

from extproc._pb import telemetry_pb2 as pb
from extproc.sim.listening import ReplicaSpec

pytestmark = pytest.mark.envoy

ADAPTERS = ["law", "code"]


def test_each_adapter_has_its_home() -> None:
    """Requests for one go to one replica, under its own name; the base's go to all; the fleet's table and the
    metrics say where each is loaded."""
    with ExitStack() as stack:
        engines = [stack.enter_context(Engine("base", adapters=ADAPTERS)) for _ in range(3)]
        pools: dict[str, dict[str, Any]] = {
            "chat": {
                "models": ["base", *ADAPTERS],
                "addresses": [each.address for each in engines],
                "engine": "vllm",
                "adapters": {"names": ADAPTERS, "loaded_max": 1},
            }
        }
        gateway = stack.enter_context(Gateway(pools))
        for model in [*ADAPTERS, "base"] * 9:
            body = {"model": model, "messages": [{"role": "user", "content": f"{model}?"}], "max_tokens": 9}
            assert gateway.call("/v1/chat/completions", body)[0] == 200
        wait_for("quiet", gateway.quiet)
        seen = [Counter(json.loads(body)["model"] for _, body in each.seen) for each in engines]
        homes = {name: [i for i, each in enumerate(seen) if each[name]] for name in ADAPTERS}
        assert all(len(each) == 1 for each in homes.values())
        assert homes["law"] != homes["code"]
        assert sum(each["base"] for each in seen) == 9
        for name, (home,) in homes.items():
            endpoint = gateway.endpoint(engines[home].address)
            assert (endpoint["adapters"], endpoint["adapter_loads"]) == ([name], 1)
        status, _, listed = gateway.call("/v1/models", method="GET")
        assert status == 200
        assert {each["id"] for each in listed["data"]} == {"base", *ADAPTERS}


def lora(*known: str, places: int = 2, calls: bool = True, load_s: float = 0.3) -> list[ReplicaSpec]:
    """Two engines with vLLM's calls, and places for so many adapters."""
    return specs(
        2,
        adapters_max=places,
        adapters=known,
        adapter_calls=calls,
        adapter_load_s=load_s,
        max_concurrent_requests=8,
    )


def loading(replicas: Replicas, names: list[str], **load: Any) -> dict[str, dict[str, Any]]:
    """A pool whose adapters are loaded by calls."""
    return chat_pool(
        replicas.addresses,
        endpoint={"max_concurrent": 8},
        models=["tiny-chat", *names],
        engine="vllm",
        adapters={
            "names": names,
            "loaded_max": 2,
            "load_ms": 30,
            "load": {"path": "/adapters/{name}", **load},
        },
    )


def counted(url: str, name: str, **labels: str) -> float:
    """A metric's samples with these labels, summed."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == f"steersman_{name}" and labels.items() <= sample.labels.items()
    )


def test_adapters_are_loaded_when_requests_come() -> None:
    """Engines start without any; six adapters share four places. Every request is answered, under load and
    after an engine began anew; none in use is unloaded, and each load shows in status, fleet and metrics."""
    names = [f"a{i}" for i in range(6)]
    with ExitStack() as stack:
        replicas = stack.enter_context(Replicas(lora()))
        [port] = free_ports(1)
        admin = {"listen": f"127.0.0.1:{port}"}
        gateway = stack.enter_context(Gateway(loading(replicas, names), admin=admin))
        client = stack.enter_context(
            OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS["acme"], max_retries=0, timeout=60)
        )

        def ask(name: str) -> str:
            asked = [{"role": "user", "content": f"{name}?"}]
            answer = client.chat.completions.create(model=name, messages=asked, max_tokens=5)  # type: ignore[arg-type]
            return str(answer.choices[0].message.content)

        assert all(ask(name) for name in names)
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(ask, names * 6))
        wait_for("quiet", gateway.quiet)
        states = [replicas.state(i) for i in range(2)]
        assert [each["adapters_unloaded_in_use"] for each in states] == [0, 0]
        calls = gateway.status()["adapters"]["calls"]
        assert calls["chat.load.ok"] == sum(each["adapter_loads"] for each in states) >= len(names)
        assert calls["chat.unload.ok"] == sum(each["adapter_unloads"] for each in states)
        assert not [each for each in calls if each.endswith("failed")]
        for i in range(2):
            assert sorted(gateway.endpoint(replicas.addresses[i])["adapters"]) == states[i]["adapters"]
        url = f"http://127.0.0.1:{port}"
        assert counted(url, "adapter_calls_total", call="load", result="ok") == calls["chat.load.ok"]
        assert counted(url, "adapter_events_total", adapter="a0", what="requests") == 7
        assert counted(url, "adapter_replicas") == sum(len(each["adapters"]) for each in states)
        home = next(i for i in range(2) if states[i]["adapters"])
        name = states[home]["adapters"][0]
        replicas.kill(home)
        wait_for("its end", lambda: not gateway.endpoint(replicas.addresses[home])["ready"])
        assert ask(name), "the other replica loads it"
        replicas.revive(home)
        wait_for("its return", lambda: gateway.endpoint(replicas.addresses[home])["ready"])
        assert all(ask(each) for each in names)


def test_an_adapter_that_no_call_can_load_is_said() -> None:
    """Its requests are turned away when they have waited, the engine's words stand in the status, and the
    base and the other adapters are served meanwhile."""
    with ExitStack() as stack:
        replicas = stack.enter_context(Replicas(lora()))
        pools = loading(replicas, ["law", "code"], paths={"law": "/missing/law"})
        classes = [{"name": "standard", "hold_ms": 1_500}]
        gateway = stack.enter_context(Gateway(pools, classes=classes))

        def ask(model: str) -> int:
            body = {"model": model, "messages": [{"role": "user", "content": "?"}], "max_tokens": 4}
            return gateway.call("/v1/chat/completions", body)[0]

        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(ask, ["law", "code", "tiny-chat"])) == [429, 200, 200]
        [failing, *_] = gateway.status()["adapters"]["failing"]
        assert (failing["adapter"], failing["pool"]) == ("law", "chat")
        assert "No adapter found for /missing/law" in failing["said"]


def test_an_adapters_quota_is_its_own() -> None:
    """A tenant's quota of a model holds for an adapter: its next request is refused, the base's is not."""
    with ExitStack() as stack:
        replicas = stack.enter_context(Replicas(lora("law", "code")))
        quota = {"acme": {"model_quotas": {"law": {"requests_per_minute": 2}}}}
        pools = loading(replicas, ["law", "code"])
        gateway = stack.enter_context(Gateway(pools, tenants=tenants(**quota)))
        body = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 4}
        asked = [
            gateway.call("/v1/chat/completions", {"model": model, **body})[0]
            for model in ["law", "law", "law", "code", "tiny-chat"]
        ]
        assert asked == [200, 200, 429, 200, 200]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages"])
def test_sglang_reads_an_adapters_name_after_its_bases(path: str) -> None:
    """SGLang serves the base for an adapter's name alone; clients write that name all the same, whole and
    streamed, and the base's stays as it is."""
    with ExitStack() as stack:
        engine = stack.enter_context(Engine("base", adapters=["base:law"]))
        pool = {
            "models": ["base", "law"],
            "addresses": [engine.address],
            "engine": "sglang",
            "adapters": {"names": ["law"], "loaded_max": 1},
        }
        gateway = stack.enter_context(Gateway({"chat": pool}))
        wait_for("the replica", lambda: gateway.endpoint(engine.address)["ready"])
        for model, stream in (("law", False), ("law", True), ("base", False)):
            body = {
                "messages": [{"role": "user", "content": "café?"}],
                "prompt": "café?",
                "max_tokens": 9,
                "model": model,
                "stream": stream,
            }
            status, _, said = gateway.call(path, body)
            assert status == 200, said
        assert [json.loads(body)["model"] for _, body in engine.seen] == ["base:law", "base:law", "base"]


def test_what_an_agent_says_is_loaded_draws_requests() -> None:
    """Over the real push: an adapter that an idle engine has is asked for there, without a load; none goes
    where the engine says that it lacks it."""
    with ExitStack() as stack:
        engines = [stack.enter_context(Engine("base", adapters=ADAPTERS)) for _ in range(3)]
        addresses = [each.address for each in engines]
        pools: dict[str, dict[str, Any]] = {
            "chat": {
                "models": ["base", *ADAPTERS],
                "addresses": addresses,
                "engine": "vllm",
                "adapters": {"names": ADAPTERS, "loaded_max": 1},
            }
        }
        gateway = stack.enter_context(Gateway(pools, telemetry=telemetry(["node"])))
        agent = RawAgent(gateway, token("node"))
        stack.callback(agent.close)
        told = [
            {"served_adapters": pb.AdapterNames(names=["law"])},
            {"served_adapters": pb.AdapterNames(names=["code"])},
            {"loaded_adapters": pb.AdapterNames(names=["law"])},
        ]
        message = report("node", 1, [], "chat")
        for address, facts in zip(addresses, told, strict=True):
            message.replicas.extend(report("node", 1, [address], "chat", **facts).replicas)
        assert agent.push(message.SerializeToString()) == ""
        wait_for("the report", lambda: gateway.endpoint(addresses[2])["adapters"] == ["law"])
        for model in ["law", "code", "law", "code"]:
            body = {"model": model, "messages": [{"role": "user", "content": "?"}], "max_tokens": 9}
            assert gateway.call("/v1/chat/completions", body)[0] == 200
        seen = [Counter(json.loads(body)["model"] for _, body in each.seen) for each in engines]
        assert (seen[2]["law"], seen[1]["law"], seen[0]["code"]) == (2, 0, 0)
        assert gateway.endpoint(addresses[2])["adapter_loads"] == 0

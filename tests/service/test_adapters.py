"""The part that loads adapters by calls: against simulated engines that speak vLLM's, and ones that fail."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from aiohttp import ClientSession, web

from extproc.config.load import loads
from extproc.core.fleet import Fleet
from extproc.core.outcome import End, Hold, Outcome, Reject, Routed
from extproc.core.policy import ClassSpec, Policy
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import Scheduler
from extproc.core.tenant import Tenant
from extproc.service import adapters as module
from extproc.service.adapters import AdaptersPart
from extproc.service.build import pool_specs
from extproc.sim.listening import ReplicaSpec, start_replicas
from extproc.upstream import PLAIN, ReplicaAccess
from tests.stand.schedulers import make_scheduler
from tests.stand.waits import until
from tests.stand.web_server import listening, one_page

S = 1_000_000_000
T = Tenant(name="t")
#: Places for two, of four.
ADAPTERS = "{names: [law, code, chat, med], loaded_max: 2, load_ms: 100, load: {path: '/adapters/{name}'}}"


def spec(number: int, **more: Any) -> ReplicaSpec:
    """An engine with vLLM's calls; a load takes a hundredth of a second."""
    lora = {"adapters_max": 2, "adapter_calls": True, "adapter_load_s": 0.1, "time_scale": 10.0}
    return ReplicaSpec(name=f"r{number}", model_id="base", seed=number, **{**lora, **more})


class Calling:
    """A scheduler and the part beside it, in a test's event loop, on the real clock."""

    def __init__(
        self,
        addresses: Sequence[str],
        adapters: str = ADAPTERS,
        *,
        engine: str = "vllm",
        access: ReplicaAccess = PLAIN,
        hold_s: float = 60.0,
        services: Sequence[str] = (),
    ) -> None:
        listed = ", ".join(f"{{address: '{each}'}}" for each in addresses)
        self.config = loads(f"""
gateway: {{auth: none, services: [{", ".join(services)}]}}
service: {{listen: [{services[0] if services else "127.0.0.1:9"}]}}
pools:
  - name: p
    models: [base, law, code, chat, med]
    engine: {engine}
    endpoints: [{listed}]
    adapters: {adapters}
""")
        policy = Policy(classes=(ClassSpec(hold_ns=int(hold_s * S)),))
        fleet = Fleet(pool_specs(self.config))
        self.scheduler: Scheduler = make_scheduler(fleet, policy=policy, default_model="base", rng=Random(1))
        self.pool = self.scheduler.fleet.pools["p"]
        self.released: dict[str, Routed | Reject] = {}
        self.scheduler.dispatcher.on_release = self.released.__setitem__
        self.failures: list[Exception] = []
        self.part = AdaptersPart(
            self.config,
            self.scheduler,
            clock=time.monotonic_ns,
            way=lambda _: (access, ""),
            failed=lambda error, _: self.failures.append(error),
        )
        self.scheduler.events.observers = self.part.observers
        self.turns, turn = 0, self.part.turn

        def counted(*, now_ns: int) -> None:
            turn(now_ns=now_ns)
            self.turns += 1

        self.part.turn = counted  # type: ignore[method-assign]

    async def __aenter__(self) -> Calling:
        await self.part.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.part.stop()
        assert self.failures == []

    def ask(self, model: str) -> Routed | Reject | Hold:
        asked = Request(
            kind=RouteKind.CHAT,
            dialect=Dialect.OPENAI,
            model=model,
            max_new_tokens=10,
            prompt_bytes=100,
            segments=("q",),
        )
        answer = self.scheduler.admit(asked, T, now_ns=time.monotonic_ns())
        assert isinstance(answer, Routed | Reject | Hold)
        return answer

    async def placed(self, model: str) -> Routed:
        """Where a request goes, at once or when its adapter is there."""
        answer = self.ask(model)
        if isinstance(answer, Hold):
            answer = await until(lambda: self.released.get(answer.id), f"{model}: {self.part.status()}")
        assert isinstance(answer, Routed), answer
        return answer

    def ends(self, routed: Routed, *, status: int = 200) -> None:
        outcome = Outcome(
            reservation=routed.reservation,
            final=True,
            status=status,
            end=End.OK if status == 200 else End.ERROR,
            served_by=routed.addresses[0],
            attempts=1,
        )
        self.scheduler.settlement.settle(outcome, now_ns=time.monotonic_ns())

    def has(self, at: int) -> list[str]:
        adapters = self.pool.endpoints[at].adapters
        assert adapters is not None
        return adapters.names

    def seen(self, at: int) -> bool:
        """It was looked at."""
        adapters = self.pool.endpoints[at].adapters
        return adapters is not None and adapters.served is not None


async def state(address: str) -> dict[str, Any]:
    async with ClientSession() as session, session.get(f"http://{address}/sim/state") as answer:
        found: dict[str, Any] = await answer.json()
        return found


def test_requests_wait_for_their_adapter_and_get_it() -> None:
    """One call loads it, all who wait for it go; a third one takes the place of one that is not in use."""

    async def scene() -> None:
        async with await start_replicas([spec(0)]) as running:
            [address] = running.addresses
            async with Calling([address]) as calling:
                law = [calling.ask("law") for _ in range(3)]
                assert [type(each) for each in law] == [Hold] * 3
                first = await calling.placed("law")
                await until(lambda: len(calling.released) == 4)
                assert (await state(address))["adapter_loads"] == 1
                code = await calling.placed("code")
                assert calling.has(0) == ["law", "code"]
                calling.ends(code)
                med = await calling.placed("med")
                told = await state(address)
                assert (told["adapters"], told["adapter_unloads"]) == (["law", "med"], 1)
                assert first.addresses == med.addresses == (address,)
                calls = calling.part.status()["calls"]
                assert isinstance(calls, dict)
                assert (calls["p.load.ok"], calls["p.unload.ok"]) == (3, 1)

    asyncio.run(scene())


def test_what_is_there_already_is_not_loaded() -> None:
    """A replica is looked at first; of one that was looked at long ago a second load is taken as done."""

    async def scene() -> None:
        async with await start_replicas([spec(0, adapters=("law",))]) as running:
            [address] = running.addresses
            async with Calling([address]) as calling:
                await until(lambda: calling.seen(0))
                assert isinstance(calling.ask("law"), Routed)
                async with ClientSession() as session:
                    order = {"lora_name": "code", "lora_path": "/elsewhere"}
                    async with session.post(f"http://{address}/v1/load_lora_adapter", json=order) as answer:
                        assert answer.status == 200
                assert (await calling.placed("code")).addresses == (address,)
                assert (await state(address))["adapter_loads"] == 1

    asyncio.run(scene())


def test_a_wrong_path_is_said_with_the_engines_words_and_tried_ever_later() -> None:
    """It stands in the status, costs no other adapter its place twice, and a mended path is tried at once."""

    async def scene() -> None:
        async with await start_replicas([spec(0, adapters=("chat", "code"))]) as running:
            [address] = running.addresses
            wrong = ADAPTERS.replace("load: {", "load: {paths: {law: /missing/law}, ")
            async with Calling([address], wrong) as calling:
                await until(lambda: calling.seen(0))
                held = calling.ask("law")
                assert isinstance(held, Hold)

                def failing() -> list[dict[str, Any]]:
                    found: list[dict[str, Any]] = calling.part.status()["failing"]  # type: ignore[assignment]
                    return found

                await until(lambda: failing() and failing()[0]["times"] == 2)
                [told] = failing()
                assert "No adapter found for /missing/law" in told["said"]
                assert (told["adapter"], told["address"]) == ("law", address)
                assert len((await state(address))["adapters"]) == 1
                assert (await state(address))["adapter_unloads"] == 1
                calling.part.apply(Calling([address]).config)
                await until(lambda: calling.released)
                assert failing() == []

    asyncio.run(scene())


def test_an_adapter_that_an_engine_has_lost_is_found_missing() -> None:
    """Its 404 leads to a look at once, long before one is due, and the next request to a new load."""

    async def scene() -> None:
        async with await start_replicas([spec(0)]) as running:
            [address] = running.addresses
            async with Calling([address]) as calling:
                law = await calling.placed("law")
                async with ClientSession() as session:
                    order = {"lora_name": "law"}
                    async with session.post(f"http://{address}/v1/unload_lora_adapter", json=order) as answer:
                        assert answer.status == 200
                calling.ends(law, status=404)
                await until(lambda: calling.has(0) == [])
                assert (await calling.placed("law")).addresses == (address,)
                assert (await state(address))["adapter_loads"] == 2

    asyncio.run(scene())


def test_beside_another_service_nothing_warm_is_unloaded() -> None:
    """Without Redis its requests are not known here until they end: who waits is turned away in the end."""

    async def scene() -> None:
        async with await start_replicas([spec(0, adapters=("chat", "code"))]) as running:
            [address] = running.addresses
            beside = ["127.0.0.1:7001", "127.0.0.1:7002"]
            async with Calling([address], services=beside) as calling:
                for name in ("chat", "code"):
                    calling.ends(await calling.placed(name))
                held = calling.ask("law")
                assert isinstance(held, Hold)
                before = calling.turns
                await until(lambda: calling.turns > before + 10)
                assert (await state(address))["adapter_unloads"] == 0
                assert calling.has(0) == ["chat", "code"]

    asyncio.run(scene())


def test_an_engine_without_the_calls_is_told_apart() -> None:
    """Its 404 is said with the variable that it lacks; the base is served meanwhile."""

    async def scene() -> None:
        async with await start_replicas([spec(0, adapter_calls=False)]) as running:
            async with Calling(running.addresses) as calling:
                assert isinstance(calling.ask("law"), Hold)
                assert isinstance(await calling.placed("base"), Routed)
                failing = await until(lambda: calling.part.status()["failing"])
                assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in failing[0]["said"]

    asyncio.run(scene())


def test_who_cannot_wait_is_turned_away_and_the_next_is_served() -> None:
    """A class that holds nobody: its first request is refused, and asks for the adapter all the same."""

    async def scene() -> None:
        async with await start_replicas([spec(0)]) as running:
            async with Calling(running.addresses, hold_s=0.0) as calling:
                assert isinstance(calling.ask("law"), Reject)
                await until(lambda: calling.has(0) == ["law"])
                assert isinstance(calling.ask("law"), Routed)

    asyncio.run(scene())


def test_another_process_of_the_engine_is_looked_at_before_anything_goes_there() -> None:
    """What the one before had is gone; who asks waits for a new load."""

    async def scene() -> None:
        async with await start_replicas([spec(0)]) as running:
            [address] = running.addresses
            async with Calling([address]) as calling:
                calling.ends(await calling.placed("law"))
                await running.kill("r0")
                await running.revive("r0")
                calling.scheduler.fleet._emptied(calling.pool.endpoints[0])
                assert isinstance(calling.ask("law"), Hold)
                await until(lambda: calling.released and calling.has(0) == ["law"])
                assert (await state(address))["adapter_loads"] == 1

    asyncio.run(scene())


def test_sglangs_calls_with_the_pools_own_way() -> None:
    """Other paths, a path before them, and the engine's key; its words are `error_message`."""
    seen: list[tuple[str, str, dict[str, Any]]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read() or b"{}")
        seen.append((request.path, request.headers.get("authorization", ""), body))
        if request.method == "GET":
            return web.json_response({"data": [{"id": "base"}]})
        if len(seen) < 4:
            return web.json_response({"success": False, "error_message": "rank 65 is too large"}, status=400)
        return web.json_response({"success": True, "loaded_adapters": {"law": "x"}})

    async def scene() -> None:
        access = ReplicaAccess(path_prefix="/engine", headers={"authorization": "Bearer k"}, keyed=True)
        async with (
            listening(one_page(handler)) as address,
            Calling([address], engine="sglang", access=access) as calling,
        ):
            held = calling.ask("law")
            assert isinstance(held, Hold)
            failing = await until(lambda: calling.part.status()["failing"])
            assert "rank 65 is too large" in failing[0]["said"]
            await until(lambda: calling.released)

    asyncio.run(scene())
    loads_of = [each for each in seen if each[0] != "/engine/v1/models"]
    assert {each[0] for each in loads_of} == {"/engine/load_lora_adapter"}
    assert {each[1] for each in seen} == {"Bearer k"}
    assert loads_of[0][2] == {"lora_name": "law", "lora_path": "/adapters/law"}


def test_an_engine_that_says_nothing_of_its_models_gets_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has is not known, so nothing is dropped or loaded there; the status says why."""
    monkeypatch.setattr(module, "LOOK_TIMEOUT_S", 0.2)
    paths: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        paths.append(request.path)
        return web.Response(status=500, text="no")

    async def scene() -> None:
        async with listening(one_page(handler)) as address, Calling([address]) as calling:
            assert isinstance(calling.ask("law"), Hold)
            await until(lambda: len(paths) > 2)
            unseen = calling.part.status()["unseen"]
            assert isinstance(unseen, dict)
            assert "/v1/models answered 500" in unseen[address]

    asyncio.run(scene())
    assert set(paths) == {"/v1/models"}


def test_a_call_that_takes_too_long_is_given_up() -> None:
    """Its bound is named in what is said."""

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return web.json_response({"data": [{"id": "base"}]})
        await asyncio.Event().wait()
        return web.Response()

    async def scene() -> None:
        slow = ADAPTERS.replace("load: {", "load: {timeout_s: 1, ")
        async with listening(one_page(handler)) as address, Calling([address], slow) as calling:
            assert isinstance(calling.ask("law"), Hold)
            failing = await until(lambda: calling.part.status()["failing"])
            assert failing[0]["said"] == "load: no answer within 1 s (adapters.load.timeout_s)"

    asyncio.run(scene())

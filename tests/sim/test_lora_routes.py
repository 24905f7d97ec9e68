"""vLLM's calls for LoRA adapters at a simulated replica: answers, errors, and the list of models."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import ClientSession

from extproc.sim.listening import ReplicaSpec, start_replicas

LOAD, UNLOAD, CHAT = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/chat/completions"
LORA: dict[str, Any] = {"adapters_max": 2, "adapter_calls": True, "adapter_load_s": 0.0, "time_scale": 100.0}


def answers(asked: list[tuple[str, dict[str, Any] | None]], **spec: Any) -> list[tuple[int, Any]]:
    """What a replica answers to each in turn: status, and its text or the message of its error."""

    async def scene() -> list[tuple[int, Any]]:
        found: list[tuple[int, Any]] = []
        async with await start_replicas([ReplicaSpec(name="a", model_id="base", **spec)]) as running:
            async with ClientSession(f"http://{running.addresses[0]}") as session:
                for path, body in asked:
                    method = "GET" if body is None else "POST"
                    async with session.request(method, path, json=body) as answer:
                        if answer.content_type == "application/json":
                            told = await answer.json()
                            error = told.get("error") if isinstance(told, dict) else None
                            found.append(
                                (answer.status, error["message"] if isinstance(error, dict) else told)
                            )
                        else:
                            found.append((answer.status, await answer.text()))
        return found

    return asyncio.run(scene())


def chat(model: str) -> tuple[str, dict[str, Any]]:
    return CHAT, {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


def test_an_adapter_is_served_from_its_load_to_its_unload() -> None:
    """Under its own name, and listed with its parent; before and after its name is unknown."""
    law = {"lora_name": "law", "lora_path": "/adapters/law"}
    found = answers(
        [
            chat("law"),
            (LOAD, law),
            chat("law"),
            ("/v1/models", None),
            (UNLOAD, law),
            chat("law"),
            chat("base"),
        ],
        **LORA,
    )
    assert [status for status, _ in found] == [404, 200, 200, 200, 200, 404, 200]
    assert found[0][1] == "The model `law` does not exist."
    assert found[1][1] == "Success: LoRA adapter 'law' added successfully."
    listed = {each["id"]: (each["root"], each["parent"]) for each in found[3][1]["data"]}
    assert listed == {"base": ("base", None), "law": ("/adapters/law", "base")}


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        (LOAD, {"lora_name": "law"}, 400, "Both 'lora_name' and 'lora_path' must be provided."),
        (LOAD, {"lora_name": "a", "lora_path": "/x"}, 400, "The lora adapter 'a' has already been loaded"),
        (LOAD, {"lora_name": "law", "lora_path": "/missing/x"}, 404, "No adapter found for /missing/x"),
        (LOAD, {"lora_name": "law", "lora_path": "/x"}, 400, "there are as many adapters as it may have"),
        (UNLOAD, {"lora_name": "law"}, 404, "The lora adapter 'law' cannot be found."),
    ],
)
def test_what_it_refuses(path: str, body: dict[str, Any], status: int, said: str) -> None:
    """In vLLM's words; a replica that is full takes no more."""
    [(got, text)] = answers([(path, body)], **LORA, adapters=("a", "b"))
    assert got == status
    assert said in text


def test_without_leave_there_are_no_calls_and_without_places_any_name_will_do() -> None:
    """As vLLM without VLLM_ALLOW_RUNTIME_LORA_UPDATING, and as TGI."""
    law = {"lora_name": "law", "lora_path": "/x"}
    assert answers([(LOAD, law)], **{**LORA, "adapter_calls": False})[0][0] == 404
    assert answers([chat("law")], time_scale=100.0)[0][0] == 200


def test_an_unload_of_one_in_use_is_counted() -> None:
    """A gateway must never send it; tests look for it in /sim/state."""

    async def scene() -> None:
        spec = ReplicaSpec(name="a", model_id="base", **{**LORA, "adapters": ("law",), "time_scale": 1.0})
        async with await start_replicas([spec]) as running:
            async with ClientSession(f"http://{running.addresses[0]}") as session:

                async def told() -> dict[str, Any]:
                    async with session.get("/sim/state") as answer:
                        state: dict[str, Any] = await answer.json()
                        return state

                path, body = chat("law")
                asking = asyncio.create_task(session.post(path, json={**body, "max_tokens": 200}))
                while not (await told())["running"]:  # noqa: ASYNC110 (the server has no event to offer)
                    await asyncio.sleep(0.01)
                async with session.post(UNLOAD, json={"lora_name": "law"}) as answer:
                    assert answer.status == 200
                assert (await told())["adapters_unloaded_in_use"] == 1
                asking.cancel()

    asyncio.run(scene())


def test_what_cannot_be_is_refused_at_the_start() -> None:
    """More adapters than places."""
    with pytest.raises(ValueError, match="2 adapters have no more than 1 places"):
        ReplicaSpec(name="a", adapters_max=1, adapters=("a", "b"))

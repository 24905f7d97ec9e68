"""LoRA adapters through the real Envoy: each has its home, and the engine gets its name."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from typing import Any

import pytest
from gateway import Gateway, wait_for
from one_model import Engine

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

"""What the service changes by itself under `steersman up` lands in the user's file, not in its copy."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from extproc.history.versions import ConfigHistory
from extproc.sim.spec import ReplicaSpec
from tests.stand.gateway_stand import Stand, stand

pytestmark = [pytest.mark.envoy, pytest.mark.slow]

ABREAST = 8


async def traffic(here: Stand, *, seconds: float, enough: Any) -> list[int]:
    """Streams from several clients until there is enough, or the time is over; the statuses."""
    statuses: list[int] = []
    until_s = time.monotonic() + seconds

    async def client(number: int, session: aiohttp.ClientSession) -> None:
        body = {"inputs": f"ahoy {number} [[sim:out=8]]", "parameters": {"max_new_tokens": 8}}
        headers = {"authorization": f"Bearer {here.key}"}
        while time.monotonic() < until_s and not enough():
            async with session.post(f"{here.url}/generate_stream", json=body, headers=headers) as answer:
                await answer.read()
                statuses.append(answer.status)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(number, session) for number in range(ABREAST)))
    return statuses


@pytest.mark.soak
def test_an_arm_that_the_guardrail_stops_is_written_into_the_users_file(tmp_path: Path) -> None:
    """An arm that sends two thirds of its requests to slow replicas loses; file and history say so."""
    arms = {"control": {"strategy": "least_work"}, "blind": {"strategy": "round_robin"}}
    experiments = {"trial": {"pools": ["chat"], "arms": arms, "guardrail": {"worse_by": 0.05}}}
    settings = {
        "classes": [{"name": "standard", "ttft_ms": 150, "tpot_ms": 500}],
        "experiments": experiments,
    }
    slow = [ReplicaSpec(name=f"slow{i}", seed=i, slowdown=25.0) for i in range(2)]

    async def main() -> None:
        specs = [ReplicaSpec(name="fast", seed=9, time_scale=4.0), *slow]
        async with stand(tmp_path, {"chat": specs}, settings=settings) as here:

            def written() -> Any:
                found = yaml.safe_load(here.file.read_text(encoding="utf-8"))
                return found["experiments"]["trial"]["arms"]["blind"].get("stopped")

            statuses = await traffic(here, seconds=60.0, enough=written)
            assert set(statuses) == {200}
            assert written(), json.dumps((await here.status())["experiments"])
            latest = ConfigHistory(here.file).latest()
            assert latest is not None
            assert (latest.who, latest.command) == ("steersman", "experiment guardrail")

    asyncio.run(main())


@pytest.mark.soak
def test_online_tuning_records_its_tries_beside_the_users_file(tmp_path: Path) -> None:
    """With tuning on, a change is tried within its bounds, is in the audit log alone, and fails nothing."""
    audit = tmp_path / "audit.jsonl"
    tuning = {"enabled": True, "window_s": 10, "every_s": 10, "requests_min": 20}
    settings = {"tuning": tuning, "audit": {"file": str(audit)}}

    async def main() -> None:
        specs = [ReplicaSpec(name=f"r{i}", seed=i, time_scale=4.0) for i in range(2)]
        async with stand(tmp_path, {"chat": specs}, settings=settings) as here:

            def tried() -> bool:
                lines = audit.read_text(encoding="utf-8").splitlines() if audit.exists() else []
                return any(json.loads(line).get("stage") == "try" for line in lines)

            before = here.file.read_text(encoding="utf-8")
            statuses = await traffic(here, seconds=45.0, enough=tried)
            assert set(statuses) == {200}
            assert tried(), await here.status()
            tuning = (await here.status())["tuning"]
            assert tuning["on"]
            assert tuning["trying"] is not None
            # A try is in force; the file, and so its history, is the user's until something is kept.
            assert not [each for each in ConfigHistory(here.file).read().entries if "tuning" in each.command]
            assert here.file.read_text(encoding="utf-8") == before

    asyncio.run(main())

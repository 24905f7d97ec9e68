"""fleet_table.py: the picture of `steersman fleet`, as golden text at three widths, unknowns as dashes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from extproc.terminal.fleet import fleet_view, summary

GOLDEN = Path(__file__).parent / "golden"


def gpu(**values: Any) -> dict[str, Any]:
    unknown = dict.fromkeys(
        (
            *("utilization_percent", "memory_used_bytes", "memory_total_bytes", "power_w", "temperature_c"),
            *("sm_clock_mhz", "sm_clock_max_mhz", "throttle_reasons", "ecc_uncorrected"),
        )
    )
    return {"uuid": "GPU-1", "name": "NVIDIA H100 80GB HBM3", "lost": False, "xids": [], **unknown, **values}


def endpoint(**values: Any) -> dict[str, Any]:
    """One that nobody has reported on."""
    return {
        "address": "10.0.0.11:8000",
        "pool": "chat",
        "zone": "",
        "ready": True,
        "draining": False,
        "announced": True,
        "suspect": False,
        "health": 1.0,
        "causes": {},
        "in_flight": 0,
        "peers_in_flight": 0,
        "foreign": 0,
        "node": None,
        "state": None,
        "age_ms": None,
        "stale": False,
        "engine": None,
        "waiting": None,
        "running": None,
        "kv_used_tokens": None,
        "kv_capacity_tokens": None,
        "prefix_hit_ratio": None,
        "cache_source": "guessed",
        "cache_tokens": None,
        "kv_events": None,
        "gpus": [],
        **values,
    }


WELL = {"state": "ready", "node": "node-a", "engine": "tgi", "age_ms": 210, "zone": "eu-1a"}
FLEET = [
    endpoint(
        **WELL,
        waiting=0,
        running=12,
        in_flight=9,
        peers_in_flight=2,
        foreign=1,
        kv_used_tokens=61_244,
        prefix_hit_ratio=0.836,
        cache_source="events",
        cache_tokens=61_000,
        kv_events={"complete": True, "events": 12_345, "unreadable": 0, "gaps": 0, "replays": 1},
        kv_capacity_tokens=450_000,
        gpus=[
            gpu(
                utilization_percent=97,
                memory_used_bytes=76_968_728_985,
                memory_total_bytes=85_520_809_984,
                power_w=642.4,
                temperature_c=66,
                sm_clock_mhz=1980,
                sm_clock_max_mhz=1980,
                throttle_reasons=0x4,
                ecc_uncorrected=0,
            )
        ],
    ),
    endpoint(address="10.0.0.12:8000"),
    endpoint(
        **WELL | {"state": "hung", "age_ms": 3_400},
        address="10.0.0.13:8000",
        ready=False,
        stale=True,
        health=0.0,
        waiting=3,
        running=4,
        kv_used_tokens=100,
        cache_source="usage",
        kv_events={"complete": False, "events": 7, "unreadable": 1, "gaps": 2, "replays": 0},
        causes={
            "state": {"kind": "hard", "factor": 0.0, "detail": "hung"},
            "gpu xid 79": {
                "kind": "hard",
                "factor": 0.0,
                "detail": "fell off the bus on GPU-8f0e2a4c-93aa-4b8b-b7dd (when the GPU was reset)",
            },
            "telemetry": {"kind": "suspicion", "factor": 0.5, "detail": "silent for 3 s"},
        },
        gpus=[gpu(lost=True, xids=[[79, 1]]), gpu(name="", throttle_reasons=0x40, sm_clock_mhz=600)],
    ),
    endpoint(
        **WELL,
        address="[2001:db8::beef:1:14]:8000",
        pool="code-completion",
        draining=True,
        ready=False,
        health=0.655,
        causes={"gpu ecc": {"kind": "evidence", "factor": 0.5, "detail": "uncorrected ECC [errors]"}},
        gpus=[gpu(ecc_uncorrected=3, sm_clock_mhz=990, sm_clock_max_mhz=1980, throttle_reasons=0x8)],
    ),
]
STATUS = {
    "endpoints": FLEET,
    "telemetry": {"streams": 2},
    "sharing": {"connected": True, "deciders": 3},
}


def drawn(status: dict[str, Any], *, width: int, height: int = 100) -> str:
    console = Console(width=width, height=height, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(fleet_view(status, width=width, height=height))
    return "".join(line.rstrip() + "\n" for line in capture.get().splitlines())


@pytest.mark.parametrize("width", [80, 120, 160])
def test_the_picture_at_three_widths(width: int) -> None:
    """Word for word; `GOLDEN=write pytest …` draws them anew."""
    text = drawn(STATUS, width=width)
    file = GOLDEN / f"fleet_{width}.txt"
    if os.environ.get("GOLDEN") == "write":
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [80, 104, 128])
def test_what_nobody_says_is_a_dash_and_no_nought(width: int) -> None:
    """An endpoint without an agent has no load of its own, only ours."""
    text = drawn({**STATUS, "endpoints": [endpoint()]}, width=width)
    line = next(line for line in text.splitlines() if "10.0.0.12" in line or "10.0.0.11" in line)
    assert line.count("–") >= 6
    assert "GPUs" not in text
    assert "Causes" not in text
    assert "Prefix caches" not in text


@pytest.mark.parametrize("width", [80, 120])
def test_adapters_stand_in_a_table_of_their_own(width: int) -> None:
    """Of pools that have some: the one used last first, how many, how often one was loaded; else no table."""
    told = endpoint(adapters=["law", "code"], adapter_loads=7)
    text = drawn({**STATUS, "endpoints": [told, endpoint(adapters=[], adapter_loads=0)]}, width=width)
    lines = text.partition("LoRA adapters")[2].splitlines()
    rows = [line.split()[1:] for line in lines if "10.0.0.11" in line]
    assert rows == [["7", "2", "code,", "law"], ["0", "0", "–"]]
    assert "LoRA" not in drawn(STATUS, width=width)


def test_much_is_summed_up_within_the_height() -> None:
    """A thousand endpoints with a cause and a card each fit a terminal."""
    many = [{**FLEET[3], "address": f"10.0.{n // 250}.{n % 250}:8000"} for n in range(1000)]
    text = drawn({**STATUS, "endpoints": many}, width=120, height=40)
    assert len(text.splitlines()) <= 38
    assert text.count("more") == 3


def test_the_summary_counts() -> None:
    """In one line; services that share only where they do."""
    assert summary(STATUS) == "[dim]2 of 4 endpoints ready · 2 agents connected · 3 services share[/]"
    alone = {**STATUS, "sharing": {"connected": False, "deciders": 1}}
    one = {**alone, "telemetry": {**STATUS["telemetry"], "streams": 1}}
    assert summary(one) == "[dim]2 of 4 endpoints ready · 1 agent connected[/]"
    assert summary(alone) == "[dim]2 of 4 endpoints ready · 2 agents connected[/]"

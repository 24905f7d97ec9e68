"""`steersman scale`: what it asks, prints and simulates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from recorded_traffic import record

from extproc.cli import group
from extproc.cli.replay import columns
from extproc.terminal.scale import explain_lines, history_lines, status_lines
from tests.stand.waits import wait_until

POINT = {
    "at": 1_790_000_000.0,
    "requests_per_s": 7.0,
    "low": 5.0,
    "median": 7.5,
    "high": 9.0,
    "wanted": 4,
    "ready": 2,
    "loading": 1,
    "draining": 1,
    "held": 3,
    "bound": "step",
    "cost_per_hour": 6.0,
}
PLAN: dict[str, Any] = {
    "pool": "chat",
    "at": 1_790_000_000.0,
    "wanted": 4,
    "had": 3,
    "ready": 2,
    "loading": 1,
    "draining": 1,
    "held": 3,
    "why": "6 bear 9/s in 80 s (ttft binds)",
    "bound": "step",
    "leaving": ["10.0.0.9:80"],
    "now": {"requests_per_s": 7.0},
    "forecast": {"ahead_s": 80.0, "low": 5.0, "median": 7.5, "high": 9.0, "method": "ets"},
    "need": {"replicas": 5, "attainment": 0.995, "utilization": 0.6, "binding": "ttft", "simulated": False},
    "need_high": {
        "replicas": 6,
        "attainment": 0.992,
        "utilization": 0.7,
        "binding": "ttft",
        "simulated": True,
    },
    "load_time": {"p50_s": 50.0, "p90_s": 60.0, "measured": 4},
    "horizon_s": 80.0,
    "cost_per_hour": 6.0,
    "floor": 2,
    "margin": 0.04,
    "switch": {
        "address": "10.1.0.1:80",
        "node": "node-3",
        "pool": "code",
        "switch": {"p50_s": 85.0, "p90_s": 100.0, "measured": 3},
        "load_p50_s": 240.0,
        "passed_over": 1,
    },
    "terms": [
        {"replicas": 3, "attainment": 0.9, "utilization": 0.9, "binding": "ttft"},
        {"replicas": 4, "attainment": 0.97, "utilization": 0.8, "binding": "ttft"},
    ],
    "before": 3,
    "since": 1_790_000_000.0,
    "bounds": {
        "min_replicas": 1,
        "max_replicas": 8,
        "target_attainment": 0.99,
        "reaction_s": 15.0,
        "step_up_max": 8,
        "step_down_max": 1,
        "down_after_s": 300.0,
        "budget_per_hour": 0.0,
    },
    "points": [POINT],
}


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(group, ["scale", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_status_is_a_line_a_pool_and_why() -> None:
    """Load, forecast with its band, replicas by stage, cost, what bound it and who leaves first."""
    said = "\n".join(status_lines({"pools": [PLAN], "waiting": ["code"]}, columns))
    assert "7.00  7.50 [5.00, 9.00]  80 s" in said
    assert "chat: 6 bear 9/s in 80 s (ttft binds)  [one step at a time]" in said
    assert "to leave first: 10.0.0.9:80" in said
    assert "no plan yet: code" in said


def test_history_is_a_table_a_pool() -> None:
    """A line a point."""
    lines = history_lines({"pools": [PLAN], "waiting": []}, columns)
    assert lines[0] == "chat:"
    assert len(lines) == 3
    assert "7.50 [5.00, 9.00]" in lines[2]
    assert lines[2].endswith("step")


def test_an_explanation_says_each_term() -> None:
    """Forecast, horizon, need, one fewer, bounds, schedule, and what kept it."""
    said = "\n".join(explain_lines({"pools": [PLAN], "waiting": []}, columns))
    for part in (
        "chat: 4 wanted (before ",
        ": 3), 2 ready, 1 loading, 1 draining",
        "by ets",
        "load time p90 60 s (of 4 loads), reaction 15 s",
        "6 replicas (99.20% attain, one fewer fails by ttft, checked by a simulation) for the upper bound",
        "4 (wanted)",
        "margin     4.0% of what a replica was seen to bear is left free",
        "1 to 8 replicas, steps of +8 and -1, down after 300 s",
        "switch     10.1.0.1:80 on node-3, which code gives up: 85 s (of 3), a new one 240 s; 1 others",
        "schedule   at least 2",
        "kept by    one step at a time",
        "cost       6.00 an hour",
    ):
        assert part in said


def test_a_service_without_scaling_says_how_to_switch_it_on(service: str) -> None:
    """Exit 1, with the setting and the page; advice works without."""
    for what in ("status", "history", "explain"):
        assert (
            "no pool scales here; give one 'scaling: {max_replicas: …}'"
            in run(what, "--address", service, code=1).output
        )
    assert "bound by" in run("advice", "--address", service).output or (
        "no replica was looked at yet" in run("advice", "--address", service).output
    )
    assert "pools" in json.loads(run("advice", "--address", service, "--json").stdout)


def test_a_running_service_tells_its_plans(scaling_service: str) -> None:
    """Its planner's own: wanted by the bounds of the file, with history and terms."""
    wait_until(
        lambda: "chat" in run("status", "--address", scaling_service).output.split("no plan yet")[0],
        "the first plan",
    )
    found = json.loads(run("status", "chat", "--address", scaling_service, "--json").stdout)
    assert (found["pools"][0]["pool"], found["pools"][0]["wanted"]) == ("chat", 2)
    said = run("explain", "--address", scaling_service).output
    assert "2 to 4 replicas" in said
    assert "load time p90 30 s (as configured)" in said
    assert "2 (wanted)" in said
    assert run("history", "chat", "--address", scaling_service, "--points", 3).output.startswith("chat:")
    assert "does not scale; there are chat" in run("status", "x", "--address", scaling_service, code=1).output


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traffic that two replicas with eight permits each do not bear."""
    path = tmp_path_factory.mktemp("record") / "record.jsonl"
    record(path, requests=150, per_s=20.0, fleet="2*a100-80g/llama-3-8b:permits=8")
    return path


def test_advice_on_a_record_is_simulated(log: Path) -> None:
    """A pool whose permits are full is told to allow more, with the gain and its interval."""
    said = run("advice", "--record", log, "--seed", "1..3", "--workers", "1").output
    assert "pool chat: permits (simulated)" in said
    assert "max_concurrent 16" in said
    assert "Best: max_concurrent" in said
    assert "Nothing was applied." in said


def test_advice_as_a_vertical_pod_autoscalers_status(log: Path) -> None:
    """The change stands in its annotations; what is no GPU resource has no other place there."""
    options = ("--record", log, "--seed", "1", "--workers", "1")
    found = json.loads(run("advice", "chat", *options, "--vpa", "--container", "vllm").stdout)
    assert found["kind"] == "VerticalPodAutoscaler"
    assert found["metadata"]["annotations"]["steersman.io/bound"] == "permits"
    (container,) = found["status"]["recommendation"]["containerRecommendations"]
    assert container["containerName"] == "vllm"
    plain = json.loads(run("advice", "chat", *options, "--json").stdout)
    assert plain["simulated"] is True
    assert {each["change"]["name"] for each in plain["gains"]} == {"max_concurrent 12", "max_concurrent 16"}


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--vpa",), 2, "--vpa: a recommendation is simulated; give --record"),
        (("--record", "LOG", "--hardware", "Abacus"), 2, "--hardware: no card 'Abacus' is known"),
        (("--record", "LOG", "--price", "x"), 2, "--price: 'x' is no price"),
        (("none", "--record", "LOG"), 1, "pools with some: chat"),
    ],
)
def test_a_mistake_names_its_option(log: Path, options: tuple[str, ...], code: int, said: str) -> None:
    """Before anything is played."""
    given = [str(log) if each == "LOG" else each for each in options]
    assert said in run("advice", *given, code=code).output

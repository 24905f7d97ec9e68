from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from extproc.cli import group


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(group, ["plan", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_fleets_stand_beside_the_recorded_one(log: Path) -> None:
    """A line each, with attainment, times, use, cost and what binds; it is said to be simulated."""
    said = run(log, "--replicas", "1..2", "--seed", "1", "--workers", "1").output
    assert "pool chat: 150 requests in" in said
    assert "seeds 1 (simulated)" in said
    assert "timings are fitted to the first 150 streamed requests" in said
    for name in ("as recorded", "1 replicas", "2 replicas", "attained", "cost/h", "bound by", "KV p99"):
        assert name in said


def test_the_cheapest_fleet_is_searched(log: Path) -> None:
    """Of the kinds asked for, with their prices, as JSON; lists are combined each with each."""
    options: tuple[str, ...] = (
        "--hardware",
        "H100,L40S",
        "--price",
        "H100=9",
        "--price",
        "L40S=1",
        "--max-concurrent",
        "32,64",
    )
    options += (
        "--cheapest",
        "--target",
        "0.9",
        "--seed",
        "1",
        "--requests",
        "80",
        "--no-fit",
        "--workers",
        "1",
    )
    found = json.loads(run(log, *options, "--json").stdout)
    assert found["simulated"] is True
    assert found["requests"] == 80
    assert [each["name"] for each in found["fleets"]] == [
        "as recorded",
        "H100, max_concurrent 32",
        "H100, max_concurrent 64",
        "L40S, max_concurrent 32",
        "L40S, max_concurrent 64",
    ]
    kinds = {each["kind"]: each for each in found["search"]["kinds"]}
    assert len(kinds) == 5
    costs = {name: each["enough"]["cost_per_hour"] for name, each in kinds.items() if each["enough"]}
    assert costs[found["search"]["cheapest"]] == min(costs.values())
    assert found["fleets"][1]["cost_per_hour"] == pytest.approx(27.0)


def test_a_kind_that_is_never_enough_is_said(log: Path) -> None:
    """With what binds, and what to change."""
    options = ("--cheapest", "--ttft-ms", "1", "--max-replicas", "2", "--seed", "1", "--requests", "40")
    said = run(log, *options, "--workers", "1").output
    assert "TTFT 1 ms: 2 replicas are not enough (0.00%; first tokens are late)" in said


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--replicas", "0"), 2, "--replicas: '0' cannot be used; write 4, 2,4,8 or 2..6"),
        (("--replicas", "4..2"), 2, "--replicas: '4..2' cannot be used"),
        (("--replicas", "1.5"), 2, "--replicas: '1.5' cannot be used"),
        (("--replicas", "1..999"), 2, "999 fleets are more than one command plays; ask for 200 at most"),
        (("--hardware", "GTX 9000"), 2, "--hardware: no card 'GTX 9000' is known"),
        (("--gpus", "2"), 2, "--gpus: say of which card, with --hardware"),
        (("--max-concurrent", "many"), 2, "--max-concurrent: 'many' cannot be used"),
        (("--ttft-ms", "nan"), 2, "--ttft-ms: 'nan' cannot be used"),
        (("--load", "0"), 2, "--load: '0' cannot be used"),
        (("--price", "H100"), 2, "--price: 'H100' is no price; write H100=4.2"),
        (("--price", "H100=-1"), 2, "is no price"),
        (("--plot", "plan.txt"), 2, "--plot: 'plan.txt' ends in none of .png, .svg, .pdf"),
        (("--seed", "x"), 2, "--seed: 'x' is no seed"),
        (("--pool", "none"), 1, "pools with some: chat"),
    ],
)
def test_a_mistake_names_its_option(log: Path, options: tuple[str, ...], code: int, said: str) -> None:
    """Before anything is played."""
    assert said in run(log, *options, code=code).output

"""`steersman simulate` prints a table, writes what it says, and names the option that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from extproc.cli import group

SMALL = ["--fleet", "2*a100-80g/llama-3-8b", "--limit", "40", "--workers", "1", "--traces", "/nonexistent"]


def simulate(*arguments: str) -> Result:
    """The command's result."""
    return CliRunner().invoke(group, ["simulate", *SMALL, *arguments])


def test_the_table_works_without_traces() -> None:
    """A made-up workload is the default; every line of the table is there and says simulated."""
    result = simulate("--strategy", "steer,round-robin", "--load", ".5,.9")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-1] == "simulated; timings from splitwise-sim / vidur"
    assert [line.split("  ")[0] for line in lines[1:-1]] == ["poisson on 2*a100-80g/llama-3-8b"] * 4
    assert "4/4 poisson" in result.stderr


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    """Two runs give equal JSON and equal pictures."""
    written = []
    for name in ("a", "b"):
        result = simulate(
            "--strategy", "steer,oracle", "--load", ".8", "--limit", "20", "--out", str(tmp_path / name)
        )
        assert result.exit_code == 0, result.output
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]
    assert {"cells.json", "attainment-by-load.svg", "attainment-by-load.png", "ttft.svg"} <= written[0].keys()


def test_json_is_what_is_written(tmp_path: Path) -> None:
    """--json prints cells.json."""
    result = simulate("--strategy", "steer", "--load", ".9", "--json", "--out", str(tmp_path))
    assert result.stdout == (tmp_path / "cells.json").read_text()
    assert json.loads(result.stdout)["cells"][0]["strategy"] == "steer"


def test_parameters_reach_the_strategy() -> None:
    """A cap of a few tokens changes what happens, and only for the strategy that it names."""
    plain, capped = (
        json.loads(simulate("--strategy", "steer,oracle", "--load", "1.5", "--json", *given).stdout)["cells"]
        for given in ((), ("--param", "steer.queue_tokens=1"))
    )
    assert plain[0] == capped[0]
    assert plain[1] != capped[1]


def test_a_public_trace_that_is_not_there_has_a_stand_in() -> None:
    """The stand-in is said, on stderr and in the table."""
    result = simulate("--trace", "azure-code", "--strategy", "steer", "--load", ".5")
    assert result.exit_code == 0, result.output
    assert "bursts stands in (set TRACES)" in result.stderr
    assert "stand-in for azure-code" in result.stdout


def test_replicas_scale_the_fleet() -> None:
    """--replicas sets how many there are in all."""
    result = simulate("--strategy", "steer", "--load", ".5", "--replicas", "3")
    assert "×3" in result.stdout


def test_two_sites_say_who_went_where() -> None:
    """The reasons are said beside the table, and the load may be another fleet's."""
    fleet = "1*a100-80g/llama-3-8b,way=40,1*h100-80g/llama-3-8b"
    arguments = ("--strategy", "steer", "--load", ".5", "--json")
    result = simulate(*arguments, "--fleet", fleet)
    assert result.exit_code == 0, result.output
    assert "% answered by the centre; " in result.stderr
    assert "simple" in result.stderr
    of_eight = simulate(*arguments, "--fleet", fleet, "--load-of", "8b")

    def span_s(result: Result) -> float:
        return float(json.loads(result.stdout)["cells"][0]["figures"]["duration_s"])

    assert span_s(of_eight) < span_s(result)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--load-of", "9b"], "--load-of: fleet '9b': unknown hardware"),
        (["--fleet", "way=40"], "--fleet: fleet 'way=40' is empty"),
        (["--trace", "nothing.csv"], "--trace: no trace 'nothing.csv'"),
        (["--fleet", "9b"], "--fleet: fleet '9b': unknown hardware"),
        (["--fleet", "8b-mixed", "--replicas", "1"], "--replicas: fleet '8b-mixed' cannot have 1 replicas"),
        (["--strategy", "best"], "--strategy: no strategy 'best'"),
        (["--load", "much"], "--load: 'much' is no load"),
        (["--seed", "one"], "--seed: 'one' is no seed"),
        (["--param", "steer.queue_tokens=few"], "--param: 'steer.queue_tokens=few': 'few' is no int"),
        (["--strategy", "random", "--param", "steer.queue_tokens=9"], "add it to --strategy"),
        (["--quick"], "--quick goes with --campaign"),
    ],
)
def test_a_mistake_names_its_option(arguments: list[str], said: str) -> None:
    """Exit 2, the option and the mend on stderr."""
    result = simulate(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_broken_trace_names_its_line(tmp_path: Path) -> None:
    """A file's own mistake is exit 2 too."""
    path = tmp_path / "broken.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n1.0,x,3\n")
    result = simulate("--trace", str(path), "--strategy", "steer", "--load", ".5")
    assert result.exit_code == 2
    assert f"--trace: {path}:2" in result.stderr


def test_the_names_are_listed() -> None:
    """`list` shows traces, workloads, strategies and fleets."""
    result = simulate("--strategy", "list")
    for word in ("azure-conversation", "noisy-neighbour", "envoy-least-request", "70b-straggler"):
        assert word in result.stdout

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner

from extproc.cli.sim_replica import command
from extproc.sim.fleetfile import FleetFileError, load_fleet
from tests.stand.waits import PATIENCE_S


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_runs_until_interrupted_and_exits_0(number: signal.Signals) -> None:
    """Prints each address, answers there, and leaves on either signal."""
    arguments = ["--count", "2", "--port", "0", "--time-scale", "100", "--name", "pair"]
    process = subprocess.Popen(
        [sys.executable, "-m", "extproc.cli.sim_replica", *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0].startswith("pair-0  http://127.0.0.1:")
        assert lines[2].startswith("simulated; timings from splitwise-sim / vidur")
        for line in lines[:2]:
            with urllib.request.urlopen(line.split()[1] + "/health", timeout=PATIENCE_S) as answer:
                assert answer.status == 200
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--hardware", "tpu"], "unknown hardware 'tpu'; known: a100-80g/llama-3-8b"),
        (["--count", "3", "--port", "65535"], "use --port 65533 or lower"),
        (["--time-scale", "0"], "time_scale must be above 0"),
        (["--kv-capacity-tokens", "100"], "must hold one request of max_total_tokens (8192)"),
        (["--noise", "2"], "noise must lie in 0..0.3"),
        (["-f", "no-such.yaml"], "does not exist"),
    ],
)
def test_bad_options_exit_2_and_name_the_fix(arguments: list[str], said: str) -> None:
    """A configuration error."""
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


def test_a_bad_fleet_file_exits_2_with_every_problem(tmp_path: Path) -> None:
    """Each with the file and the path inside it; and no option beside it."""
    path = tmp_path / "fleet.yaml"
    path.write_text("replicas: [{name: a, slowdwn: 3}, {name: b, noise: 3}]\nextra: 1\n")
    result = CliRunner().invoke(command, ["-f", str(path)])
    assert result.exit_code == 2
    assert "replicas[0].slowdwn: unknown key; did you mean 'slowdown'?" in result.output
    assert "replicas[1]: replica 'b': noise must lie in 0..0.3, not 3" in result.output
    assert "extra: unknown key" in result.output
    result = CliRunner().invoke(command, ["-f", str(path), "--count", "2"])
    assert result.exit_code == 2
    assert "-f goes with no other option" in result.output


def test_a_taken_port_is_an_operating_error() -> None:
    """Exit 1, with what to try."""
    process = subprocess.Popen(
        [sys.executable, "-m", "extproc.cli.sim_replica", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        port = process.stdout.readline().split()[1].rsplit(":", 1)[1]
        result = CliRunner().invoke(command, ["--port", port])
        process.terminate()
    assert result.exit_code == 1
    assert "try another --port" in result.output


def test_list_shows_the_hardware() -> None:
    """`--hardware list` is how a user learns the names."""
    result = CliRunner().invoke(command, ["--hardware", "list"])
    assert result.exit_code == 0
    assert "h100-tp4/llama-2-70b  485000 KV tokens" in result.output


def test_a_fleet_file_becomes_specs() -> None:
    """Defaults apply, `count` spreads names and ports."""
    specs = load_fleet(
        "defaults: {hardware: h100-80g/llama-3-8b, time_scale: 10}\n"
        "replicas:\n"
        "  - {name: slow, port: 9001, slowdown: 3, time_scale: 1}\n"
        "  - {name: pool, port: 9010, count: 2, seed: 5}\n"
    )
    assert [(spec.name, spec.port, spec.time_scale, spec.seed) for spec in specs] == [
        ("slow", 9001, 1, 0),
        ("pool-0", 9010, 10, 5),
        ("pool-1", 9011, 10, 5),
    ]
    assert {spec.hardware for spec in specs} == {"h100-80g/llama-3-8b"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("replicas: [", "not YAML"),
        ("- 1", "the top level must be a mapping"),
        ("replicas: []", "at least one replica"),
        ("replicas: [3]", "replicas[0]: must be a mapping"),
        ("defaults: {name: x}\nreplicas: [{name: a}]", "defaults.name: unknown key"),
        ("replicas: [{port: 3}]", "replicas[0]: "),
        ("replicas: [{name: a, port: x}]", "$.port"),
        ("replicas: [{name: a, count: 0}]", "count must lie in 1..1000"),
        ("replicas: [{name: a}, {name: a}]", "two are named 'a'"),
        ("replicas: [{name: a, port: 1}, {name: b, port: 1}]", "both listen on 127.0.0.1:1"),
    ],
)
def test_a_bad_fleet_file_says_where(text: str, said: str) -> None:
    """One mistake a file."""
    with pytest.raises(FleetFileError) as caught:
        load_fleet(text)
    assert said in str(caught.value)

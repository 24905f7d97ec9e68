from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from steersman_agent.config import AgentConfig, ReplicaSettings
from steersman_agent.nvml_fake import HEALTHY, write_script
from tests.stand.waits import PATIENCE_S

AGENT = [sys.executable, "-m", "steersman_agent"]


def agent(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AGENT, *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def test_once_without_a_configuration_shows_this_machines_gpus() -> None:
    """Or says once that there is no driver; either way it is JSON and no failure."""
    done = agent("--once", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    if found["gpus"]:
        assert found["gpus"][0]["uuid"].startswith("GPU-")
    else:
        assert found["no_gpus_because"]
        assert done.stderr.count("\n") == 1


def test_once_shows_replicas_and_scripted_gpus(tmp_path: Path) -> None:
    """A replica that is not there is loading; a lost GPU is lost; unknown is null."""
    write_script(tmp_path / "gpus.json", {"gpus": [{"ecc_corrected": None}, {"lost": True}]})
    file = tmp_path / "agent.yaml"
    file.write_text(
        f"node: gpu-7\nnvml: fake:{tmp_path}/gpus.json\n"
        "replicas: [{address: 127.0.0.1:1, pool: p, engine: vllm, gpus: [0]}]\n"
    )
    done = agent("-f", str(file), "--once", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["node"] == "gpu-7"
    replica = found["replicas"][0]
    assert (replica["state"], replica["running"]) == ("LOADING", None)
    assert replica["gpu_uuids"] == ["GPU-fake-0000"]
    assert [gpu["lost"] for gpu in found["gpus"]] == [False, True]
    assert found["gpus"][0]["ecc_corrected"] is None
    assert found["gpus"][0]["ecc_uncorrected"] == 0
    assert "LOADING" in agent("-f", str(file), "--once").stdout


def test_check_tells_every_mistake_and_exits_2(tmp_path: Path) -> None:
    """On stderr, one line each."""
    file = tmp_path / "agent.yaml"
    file.write_text("services: [nowhere]\nreplicas: [{address: x, pool: p, engine: tgi}]\n")
    done = agent("-f", str(file), "--check")
    assert done.returncode == 2
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == [
        "services[0]",
        "replicas[0].address",
    ]
    file.write_text("services: [127.0.0.1:9003]\n")
    assert agent("-f", str(file), "--check").returncode == 0


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--check"]])
def test_wrong_usage_exits_2_and_says_what_to_write(arguments: list[str]) -> None:
    """No traceback."""
    done = agent(*arguments)
    assert done.returncode == 2
    assert "-f agent.yaml" in done.stderr or "--json goes with --once" in done.stderr


def test_sigterm_ends_it_in_order(tmp_path: Path) -> None:
    """Exit 0, also while the service is away."""
    file = tmp_path / "agent.yaml"
    file.write_text("services: ['127.0.0.1:1']\nnvml: 'off'\n")
    with subprocess.Popen([*AGENT, "-f", str(file)], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "replicas, to 127.0.0.1:1" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


def test_the_fakes_keys_are_all_documented() -> None:
    """Whoever writes a script reads the module's head."""
    import steersman_agent.nvml_fake as module

    for key in HEALTHY:
        assert re.search(rf"\b{key}\b", module.__doc__ or ""), key


def test_steersman_agent_is_the_same_command() -> None:
    """`extproc.cli.agent` adds nothing."""
    from extproc.cli import agent as module
    from steersman_agent.command import command

    assert module.command is command
    assert set(AgentConfig.model_fields) >= {"node", "services", "replicas", "drain"}
    assert "address" in ReplicaSettings.model_fields

"""`steersman completion`: the scripts, and what a Tab is offered, by the real program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import STEERSMAN, run, steersman

CONFIG = """
gateway: {auth: none}
classes: [{name: premium}, {name: standard}]
pools:
  - {name: chat, models: [llama, llama-long], endpoints: [{address: "10.0.0.1:80"}]}
  - {name: code, models: [coder], endpoints: [{address: "10.0.0.2:80"}]}
tenants: [{name: acme}, {name: globex}]
experiments: {deeper: {pools: [chat]}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "steersman.yaml").write_text(CONFIG)
    return tmp_path


def tab(folder: Path, line: str, **environment: str) -> list[str]:
    """What is offered at the end of a line."""
    words = line.split(" ")
    told = {"_STEERSMAN_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STEERSMAN")}
    done = run(*STEERSMAN, cwd=folder, environment={**clean, **told, **environment})
    assert (done.returncode, done.stderr) == (0, "")
    return [each.partition(",")[2] for each in done.stdout.splitlines() if each]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("steersman te", ["tenants", "tenant"]),
        ("steersman tenant s", ["set", "show"]),
        ("steersman tenant show ", ["acme", "globex"]),
        ("steersman tenant show g", ["globex"]),
        ("steersman tenant set acme --class p", ["premium"]),
        ("steersman tenant set acme --model l", ["llama", "llama-long"]),
        ("steersman tenant key revoke a", ["acme"]),
        ("steersman experiment stop ", ["deeper"]),
        ("steersman experiment start x --pool c", ["chat", "code"]),
        ("steersman fleet drain 10", ["10.0.0.1:80", "10.0.0.2:80"]),
        ("steersman replay --strategy steer,least_w", ["steer,least_work"]),
        ("steersman completion f", ["fish"]),
        ("steersman top --pane d", ["decisions"]),
    ],
)
def test_names_of_the_file_are_offered(folder: Path, line: str, offered: list[str]) -> None:
    """Commands from the table, names from the configuration in this folder."""
    found = tab(folder, line)
    assert sorted(found) == sorted(offered) or (len(found) >= len(offered) and set(offered) <= set(found))


def test_the_file_that_is_named_is_the_one_that_is_read(folder: Path, tmp_path: Path) -> None:
    """-f before the environment, the environment before this folder's file."""
    other = tmp_path / "other.yaml"
    other.write_text("tenants: [{name: initech}]\n")
    assert tab(folder, f"steersman tenant set --file {other} ") == ["initech"]
    assert tab(folder, "steersman tenant set ", STEERSMAN_CONFIG=str(other)) == ["initech"]


@pytest.mark.parametrize("text", ["", "{{", "tenants: 3", "tenants: [3, {}]", "[]"])
def test_a_file_that_cannot_be_read_offers_nothing(tmp_path: Path, text: str) -> None:
    """A Tab never fails."""
    (tmp_path / "steersman.yaml").write_text(text)
    assert tab(tmp_path, "steersman tenant show ") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_that_its_shell_takes(shell: str) -> None:
    """Printed by the command; read by the shell where it is here."""
    script = steersman("completion", shell)
    assert "_STEERSMAN_COMPLETE" in script
    binary = shutil.which(shell)
    if binary is not None:
        checked = subprocess.run(
            [binary, "-n"], input=script, capture_output=True, text=True, timeout=60, check=False
        )
        assert (checked.returncode, checked.stderr) == (0, "")


def test_bash_completes_by_the_script(folder: Path) -> None:
    """The function that it defines fills COMPREPLY."""
    bash = shutil.which("bash")
    assert bash is not None, "every machine of ours has bash"
    program = folder / "steersman"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from extproc.cli import main; main()' \"$@\"\n")
    program.chmod(0o755)
    text = steersman("completion", "bash") + (
        "\nCOMP_WORDS=(steersman tenant show a); COMP_CWORD=3\n"
        f"_steersman_completion {program}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
    )
    done = subprocess.run(
        [bash, "-c", text], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("acme\n", "")

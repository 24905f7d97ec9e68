from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from extproc.cli import group

BAD = Path(__file__).parent.parent / "config" / "bad"
GOOD = """
gateway: {auth: none}
pools:
  - {name: chat, models: [m], endpoints: [{address: 127.0.0.1:8000}]}
"""


def test_a_good_file(tmp_path: Path) -> None:
    """Exit 0 and one line."""
    path = tmp_path / "a.yaml"
    path.write_text(GOOD, encoding="utf-8")
    result = CliRunner().invoke(group, ["check", "-f", str(path)])
    assert (result.exit_code, result.stdout) == (0, f"{path}: 1 pool, 1 endpoint, 0 tenants: good\n")
    assert result.stderr == ""


def test_a_bad_file() -> None:
    """Exit 2, every mistake on stderr, nothing on stdout."""
    path = BAD / "everything.yaml"
    result = CliRunner().invoke(group, ["check", "-f", str(path)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == path.with_suffix(".txt").read_text(encoding="utf-8").replace("FILE", str(path))


def test_the_default_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """steersman.yaml here, or what STEERSMAN_CONFIG names; a missing one is exit 2."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(group, ["check"])
    assert result.exit_code == 2
    assert result.stderr == (
        "steersman.yaml: cannot be read: No such file or directory; give the configuration with -f FILE\n"
    )
    (tmp_path / "steersman.yaml").write_text(GOOD, encoding="utf-8")
    assert CliRunner().invoke(group, ["check"]).exit_code == 0
    monkeypatch.setenv("STEERSMAN_CONFIG", str(BAD / "empty.yaml"))
    assert CliRunner().invoke(group, ["check"]).exit_code == 2


def test_as_a_program(tmp_path: Path) -> None:
    """The console script's exit code is the process's."""
    script = "from extproc.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "check", "-f", str(BAD / "version.yaml")],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{BAD}/version.yaml:1: version: 2 is not one of 1\n"


QUOTAS = """
tenants:
  - name: a
    keys: [{sha256: b8cec3233078f4557e6656104cbcb2283ee9e4ae8eee28c1d7cc81f977c25497}]
    quota: {burst: 0.5%s}
"""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (QUOTAS % "", ""),
        (QUOTAS % ", budget_per_month: 5", "state.dir: is not set"),
        (QUOTAS % ", budget_per_month: 5" + "state: {dir: /var/lib/steersman}", ""),
        (QUOTAS % ", budget_per_month: 5" + "state: {dir: /var, enabled: false}", "state.enabled: is false"),
        (QUOTAS % ", budget_per_month: 5" + "sharing: {redis: 'redis://127.0.0.1:1'}", ""),
    ],
)
def test_quotas_that_a_restart_forgets_are_noted(tmp_path: Path, more: str, said: str) -> None:
    """Where some are set and neither Redis nor a folder keeps them; the file is good all the same."""
    path = tmp_path / "a.yaml"
    path.write_text(GOOD.replace("gateway: {auth: none}\n", "") + more, encoding="utf-8")
    result = CliRunner().invoke(group, ["check", "-f", str(path)])
    assert result.exit_code == 0, result.stderr
    assert (said in result.stderr) if said else not result.stderr, result.stderr
    plain = CliRunner().invoke(group, ["check", "--json", "-f", str(path)])
    assert bool(json.loads(plain.stdout)["warnings"]) == bool(said)


def test_what_may_not_be_meant_is_a_warning(tmp_path: Path) -> None:
    """Exit 0, on standard error and in JSON: a decision port that anybody reaches."""
    path = tmp_path / "a.yaml"
    path.write_text(GOOD + "service: {listen: ['0.0.0.0:50051']}\n", encoding="utf-8")
    result = CliRunner().invoke(group, ["check", "-f", str(path)])
    assert result.exit_code == 0
    assert result.stderr.startswith(f"{path}: warning: service.listen: 0.0.0.0:50051 is not loopback")
    told = json.loads(CliRunner().invoke(group, ["check", "-f", str(path), "--json"]).stdout)
    assert (told["good"], len(told["warnings"])) == (True, 1)

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from recorded_traffic import record

from extproc.cli import group
from extproc.config.load import loads


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded strategy with a setting that is plainly wrong for its traffic."""
    path = tmp_path_factory.mktemp("record") / "record.jsonl"
    record(path, requests=420, per_s=30.0, parameters={"kv_share": 0.02, "queue_tokens": 128})
    return path


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(group, ["tune", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


@pytest.mark.soak
def test_a_gain_is_told_with_its_interval_and_its_settings(log: Path, tmp_path: Path) -> None:
    """What to paste is a configuration's; the same seed finds the same."""
    out = tmp_path / "tuned.yaml"
    options = ("--strategy", "steer", "--trials", "6", "--objective", "attainment", "--seeds", "2")
    said = run(log, *options, "--out", out)
    assert "judged on the" in said.stdout
    assert "(simulated)" in said.stdout
    assert "95 % interval [+" in said.stdout
    assert "trial 6 of 6" in said.stderr
    text = out.read_text()
    assert text in said.stdout
    pool = yaml.safe_load(text)["pools"][0]
    assert pool["name"] == "chat"
    assert pool["strategy_parameters"]["steer"]["kv_share"] > 0.5
    whole = f"gateway: {{auth: none}}\n{text}    models: [m]\n    endpoints: [{{address: 127.0.0.1:8000}}]\n"
    assert loads(whole).pools[0].strategy_parameters["steer"] == pool["strategy_parameters"]["steer"]
    plain = [json.loads(run(log, *options, "--json").stdout) for _ in range(2)]
    assert plain[0] == plain[1]
    assert plain[0]["gain"]["shown"] is True
    assert plain[0]["gain"]["low"] > 0
    assert plain[0]["before"]["kv_share"] == 0.02


@pytest.mark.soak
def test_no_gain_keeps_what_there_is(log: Path, tmp_path: Path) -> None:
    """Other parameters are not recommended on the strength of the part that was searched on."""
    out = tmp_path / "tuned.yaml"
    said = run(log, "--strategy", "latency", "--trials", "2", "--seeds", "1", "--out", out, "--json")
    assert json.loads(said.stdout)["gain"]["shown"] is False
    assert "no gain was shown" in out.read_text()
    assert "No gain is shown" in run(log, "--strategy", "latency", "--trials", "2", "--seeds", "1").output


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--strategy", "round_robin"), 2, "--strategy: strategy 'round_robin' has no parameter to tune"),
        (("--strategy", "x"), 2, "--strategy: no strategy 'x'"),
        (("--limit", "100"), 1, "too few to search on"),
        (("--objective", "x"), 2, "is not one of"),
    ],
)
def test_a_mistake_names_itself(log: Path, options: tuple[str, ...], code: int, said: str) -> None:
    """And its mend."""
    assert said in run(log, *options, code=code).output


def test_without_optuna(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named before the record is read."""
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "tuning needs the extra 'lab': pip install" in run(log, "--trials", "2", code=2).output

"""`steersman envoy-config`: what it writes and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from click.testing import CliRunner

from extproc.cli.envoy_config import command

MINIMAL = Path(__file__).parents[2] / "envoy" / "examples" / "minimal.yaml"


def test_yaml_goes_to_standard_output() -> None:
    """Ready for a pipe."""
    result = CliRunner().invoke(command, ["-f", str(MINIMAL)])
    assert result.exit_code == 0
    assert yaml.load(result.stdout, Loader=yaml.CSafeLoader)["node"]["cluster"] == "steersman"


def test_json_goes_to_a_file(tmp_path: Path) -> None:
    """With -o nothing is printed."""
    target = tmp_path / "envoy.json"
    result = CliRunner().invoke(command, ["-f", str(MINIMAL), "--format", "json", "-o", str(target)])
    assert (result.exit_code, result.stdout) == (0, "")
    assert json.loads(target.read_text())["node"]["cluster"] == "steersman"


def test_every_problem_is_printed(tmp_path: Path) -> None:
    """Exit 2, one line a problem, nothing on standard output."""
    bad = tmp_path / "bad.yaml"
    bad.write_text("gateway: {retries: 99, auth: maybe}\npools: []\n")
    result = CliRunner().invoke(command, ["-f", str(bad)])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 3


def test_a_target_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """Without a traceback."""
    result = CliRunner().invoke(command, ["-f", str(MINIMAL), "-o", str(tmp_path / "no" / "where.yaml")])
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


def test_ads_leaves_the_pools_to_the_service() -> None:
    """Static is the default."""
    result = CliRunner().invoke(command, ["-f", str(MINIMAL), "--mode", "ads"])
    tree = yaml.load(result.stdout, Loader=yaml.CSafeLoader)
    assert [cluster["name"] for cluster in tree["static_resources"]["clusters"]] == ["steersman"]
    assert "ads" in tree["dynamic_resources"]["cds_config"]


def test_what_a_static_envoy_does_not_know_is_said(tmp_path: Path) -> None:
    """Replicas of a file; names are in it, and over ADS everything is told."""
    file = tmp_path / "steersman.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "pools": [
                    {
                        "name": "chat",
                        "models": ["m"],
                        "endpoints": [{"address": "llm.test:8000", "zone": "a"}],
                        "discovery": {"file": "/etc/more.yaml", "dns": [{"name": "x.test", "port": 9000}]},
                    }
                ],
                "gateway": {"auth": "none"},
            }
        )
    )
    result = CliRunner().invoke(command, ["-f", str(file)])
    assert result.exit_code == 0, result.stderr
    assert "pools[0].discovery.file" in result.stderr
    assert "--mode ads" in result.stderr
    clusters = yaml.load(result.stdout, Loader=yaml.CSafeLoader)["static_resources"]["clusters"]
    (named,) = (each for each in clusters if each["name"].startswith("pool.chat"))
    assignment = named["load_assignment"]
    assert assignment["cluster_name"] == named["name"]
    found = {
        zone.get("locality", {}).get("zone", ""): [
            each["endpoint"]["hostname"] for each in zone["lb_endpoints"]
        ]
        for zone in assignment["endpoints"]
    }
    assert found == {"a": ["llm.test"], "": ["x.test"]}
    assert CliRunner().invoke(command, ["-f", str(file), "--mode", "ads"]).stderr == ""

"""`steersman alerts`: what it prints."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from extproc.cli.alerts import command, show

ALERT = {
    "labels": {"alertname": "Slow", "severity": "critical", "pool": "chat"},
    "annotations": {"summary": "It is slow.", "description": "pool chat: slow", "detail": "very"},
    "startsAt": "2026-01-01T00:00:00.000Z",
    "endsAt": "2026-01-01T00:01:00.000Z",
}
QUIET = {"firing": [], "pending": [], "recent": [], "rules": [], "webhooks": {}}


def test_export_prints_the_built_in_rules() -> None:
    """As YAML that Prometheus reads."""
    found = CliRunner().invoke(command, ["export"])
    assert found.exit_code == 0
    names = [rule["alert"] for rule in yaml.safe_load(found.output)["groups"][0]["rules"]]
    assert {"LatencyAndErrors", "SloBurnFast"} <= set(names)


def test_export_of_a_configuration_has_its_rules_and_objectives(tmp_path: Path) -> None:
    """And lacks what is switched off; -o writes a file."""
    rule = {"name": "Mine", "when": {"all_of": [{"signal": "held", "above": 5}]}}
    config = {
        "gateway": {"auth": "none"},
        "pools": [{"name": "chat", "models": ["m"], "endpoints": [{"address": "127.0.0.1:9"}]}],
        "alerts": {"rules": [rule], "off": ["GpuFault"], "slo": {"objective": 0.99}},
    }
    file, out = tmp_path / "steersman.yaml", tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(config))
    found = CliRunner().invoke(command, ["export", "-f", str(file), "-o", str(out)])
    assert (found.exit_code, found.output) == (0, "")
    rules = {rule["alert"]: rule for rule in yaml.safe_load(out.read_text())["groups"][0]["rules"]}
    assert rules["Mine"]["expr"] == "(sum (steersman_held) > 5)"
    assert "GpuFault" not in rules
    assert "/ 0.01 > 14.4" in rules["SloBurnFast"]["expr"]


def test_a_bad_configuration_exits_2(tmp_path: Path) -> None:
    """With what is wrong."""
    file = tmp_path / "steersman.yaml"
    file.write_text("pools: []\n")
    assert CliRunner().invoke(command, ["export", "-f", str(file)]).exit_code == 2


def test_what_fires_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    """With its figures, its words and its beginning; what is over with its end."""
    box = {"waiting": 2, "trouble": "answered 500", "delivered": 3, "dropped": 1}
    show({**QUIET, "firing": [ALERT], "recent": [ALERT] * 12, "webhooks": {"pager": box}})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "firing  critical Slow  pool chat: slow"
    assert lines[1].strip() == "very; It is slow. Since 2026-01-01T00:00:00.000Z."
    assert lines[3].endswith("until 2026-01-01T00:01:00.000Z.")
    assert "… and 2 more that are over" in lines
    assert lines[-1] == "webhook pager: 3 delivered, 2 waiting, 1 lost: answered 500"


def test_when_nothing_fires_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """And lists the rules when asked."""
    rule = {"name": "Slow", "each": "pool", "severity": "info", "summary": "S.", "firing": 0, "pending": 0}
    show({**QUIET, "rules": [rule]}, rules=True)
    assert capsys.readouterr().out == "nothing fires (1 rules)\nquiet    info      Slow of each pool: S.\n"


def test_without_a_service_it_exits_1() -> None:
    """And says where it looked."""
    found = CliRunner().invoke(command, ["--address", "127.0.0.1:9"])
    assert found.exit_code == 1
    assert "127.0.0.1:9" in found.output

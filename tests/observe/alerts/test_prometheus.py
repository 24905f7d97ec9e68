"""The rules as Prometheus' own, judged by the real promtool."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.cli.alerts import exported
from extproc.config.alerts import Alerts
from extproc.config.signals import CODES, SIGNALS
from extproc.observe.alerts.defaults import rules_of
from extproc.observe.alerts.prometheus import export, expression_of
from extproc.observe.alerts.rules import Condition, Rule
from extproc.observe.metrics.table import TABLE

ROOT = Path(__file__).resolve().parents[3]
FILE = ROOT / "deploy" / "prometheus" / "alerts.yaml"
BUDGETS = {"standard": 0.05}


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The real one; without it the test skips with the reason, and in CI fails."""
    binary = shutil.which("promtool")
    if binary is None:
        pytest.skip("no promtool on PATH; apt-get install prometheus")
    return subprocess.run([binary, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_the_file_in_deploy_is_what_the_built_in_rules_make() -> None:
    """STEERSMAN_UPDATE_DOCS=1 writes it anew."""
    if os.environ.get("STEERSMAN_UPDATE_DOCS"):
        FILE.write_text(exported(None), encoding="utf-8")
    assert FILE.read_text(encoding="utf-8") == exported(None), "write it anew: STEERSMAN_UPDATE_DOCS=1"


def test_promtool_takes_the_built_in_rules() -> None:
    """Names, expressions, durations and templates."""
    found = promtool("check", "rules", str(FILE))
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"{len(rules_of(Alerts()))} rules found" in found.stdout


def every_rule() -> list[Rule]:
    """A rule for each signal in each scope, of each kind of comparison."""
    rules = []
    for name, signal in SIGNALS.items():
        for each in signal.scopes:
            over_s = 60 if signal.windowed else 0
            conditions = [
                Condition(name, over_s=over_s, above=1.0),
                Condition(name, over_s=over_s, below=0.5, above=0.1),
            ]
            if signal.windowed and name != "slo_burn":
                conditions += [
                    Condition(name, over_s=over_s, times=2.0),
                    Condition(name, over_s=120, times=0.5),
                ]
            if name == "refusal_rate":
                conditions += [Condition(name, over_s=60, above=0.1, code=code) for code in CODES]
            for condition in conditions:
                for only in (None, frozenset({"a.b", "c"})):
                    rules.append(Rule(f"R{len(rules)}", each, ((condition,),), only=only, summary="{{ x"))
                if each != "fleet" and "fleet" in signal.scopes:
                    whole = Condition(name, fleet=True, over_s=over_s, above=1.0)
                    rules.append(
                        Rule(f"R{len(rules)}", each, ((condition, whole), (whole, condition), (whole,)))
                    )
    return rules


def test_promtool_takes_a_rule_of_each_kind(tmp_path: Path) -> None:
    """Every signal, every scope, every comparison, one class or several with their own objectives."""
    for budgets in (BUDGETS, {"premium": 0.01, "standard": 0.05}):
        file = tmp_path / "rules.yaml"
        file.write_text(export(every_rule(), budgets=budgets))
        found = promtool("check", "rules", str(file))
        assert found.returncode == 0, found.stdout + found.stderr


def test_only_metrics_that_exist_are_named() -> None:
    """With labels that they have."""
    known = {f"steersman_{spec.name}": set(spec.labels) for spec in TABLE}
    for rule in yaml.safe_load(export(every_rule(), budgets=BUDGETS))["groups"][0]["rules"]:
        for name, braces in re.findall(r"(steersman_\w+)(?:\{([^}]*)\})?", rule["expr"]):
            base = re.sub(r"_(bucket|count)$", "", name)
            assert base in known, name
            assert set(re.findall(r"(\w+)=", braces)) <= known[base], rule["expr"]


def test_what_prometheus_cannot_reckon_is_taken_from_the_service() -> None:
    """A tenant's pattern is not in the metrics."""
    rules = {rule["alert"]: rule for rule in yaml.safe_load(FILE.read_text())["groups"][0]["rules"]}
    assert rules["TenantUnusual"]["expr"] == 'max(steersman_alerts_firing{rule="TenantUnusual"}) > 0'
    assert "for" not in rules["TenantUnusual"], "the service has waited already"
    latency = Condition("ttft_p90_ms", over_s=60, above=1.0)
    assert expression_of(Rule("R", "tenant", ((latency,),)), BUDGETS) is None
    assert expression_of(Rule("R", "pool", ((latency,),)), BUDGETS) is not None


def _series(pool: str, *, slow_from: int, errors_from: int, minutes: int) -> list[dict[str, str]]:
    """A scrape a minute: 60 requests, fast until one minute, without errors until another."""
    fast, slow, good, bad = [0], [0], [0], [0]
    for minute in range(1, minutes + 1):
        late = minute > slow_from
        failing = minute > errors_from
        fast.append(fast[-1] + (0 if late else 60))
        slow.append(slow[-1] + 60)
        good.append(good[-1] + (30 if failing else 60))
        bad.append(bad[-1] + (30 if failing else 0))
    times = f'steersman_ttft_seconds_bucket{{pool="{pool}",class="standard",le='
    ended = f'steersman_requests_total{{tenant="t",pool="{pool}",class="standard",outcome='
    count = f'steersman_ttft_seconds_count{{pool="{pool}",class="standard"}}'
    rows: list[tuple[str, list[int]]] = [
        (f'{times}"0.1"}}', fast),
        (f'{times}"2.0"}}', slow),
        (f'{times}"+Inf"}}', slow),
        (count, slow),
        (f'{ended}"ok"}}', good),
        (f'{ended}"error"}}', bad),
    ]
    return [{"series": name, "values": " ".join(map(str, values))} for name, values in rows]


def test_promtool_fires_them_as_we_do(tmp_path: Path) -> None:
    """Latency with errors fires for its pool; latency alone does not; both with the labels we give."""
    rules = tmp_path / "alerts.yaml"
    # Two minutes' windows: promtool scrapes once a minute.
    text = exported(None).replace("[60s]", "[120s]").replace("offset 60s", "offset 120s")
    rules.write_text(text)
    fired = {
        "exp_labels": {"severity": "critical", "pool": "trouble"},
        "exp_annotations": {
            "summary": "First tokens come late and answers fail, both at once: the pool is in trouble.",
            "description": "pool trouble: 1.81k",
        },
    }
    test: dict[str, Any] = {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    *_series("trouble", slow_from=70, errors_from=70, minutes=90),
                    *_series("slow", slow_from=70, errors_from=1_000, minutes=90),
                ],
                "alert_rule_test": [
                    {"eval_time": "69m", "alertname": "LatencyAndErrors", "exp_alerts": []},
                    {"eval_time": "75m", "alertname": "LatencyAndErrors", "exp_alerts": [fired]},
                ],
            }
        ],
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump(test))
    found = promtool("test", "rules", str(file))
    assert found.returncode == 0, found.stdout + found.stderr

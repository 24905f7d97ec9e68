"""Grafana's dashboards, Prometheus' configuration, the collector's: what they name is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_harness import script

from extproc.observe.metrics.table import PREFIX, TABLE

BY_NAME = {spec.name: spec for spec in TABLE}
NAMES = ("fleet", "tenants", "slos", "decisions")
_METRIC = re.compile(rf"\b{PREFIX}([a-z0-9_]+)\b(?:\{{([^}}]*)\}})?")
_SUFFIX = re.compile(r"_(bucket|sum|count)$")


def _expressions(made: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in made["panels"] for target in panel["targets"]]


@pytest.fixture(params=NAMES)
def board(request: pytest.FixtureRequest, root: Path) -> dict[str, Any]:
    """A kept dashboard."""
    path = root / f"deploy/grafana/dashboards/{request.param}.json"
    made: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return made


def test_dashboards_are_fresh(root: Path) -> None:
    """The kept files are what dashboards.py writes, and there are no others."""
    module = script("grafana/dashboards.py")
    made = module.dashboards()
    assert set(made) == {f"{name}.json" for name in NAMES}
    assert {path.name for path in (root / "deploy/grafana/dashboards").iterdir()} == set(made)
    for name, each in made.items():
        kept = (root / "deploy/grafana/dashboards" / name).read_text(encoding="utf-8")
        assert kept == module.text(each), f"{name}: run python deploy/grafana/dashboards.py"


def test_metrics_exist(board: dict[str, Any]) -> None:
    """Every metric in a panel is one that the service has, read as its kind, by labels that it has."""
    for expression in _expressions(board):
        found = list(_METRIC.finditer(expression))
        assert found, expression
        for each in found:
            name = each[1]
            histogram = BY_NAME.get(_SUFFIX.sub("", name))
            spec = BY_NAME.get(name) or (histogram if histogram and histogram.kind == "histogram" else None)
            assert spec is not None, name
            assert (spec.kind == "histogram") == bool(_SUFFIX.search(name)), name
            labels = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", each[2] or ""))
            assert labels <= set(spec.labels), expression
        known = {label for each in found for label in _labels(each[1])} | {"le"}
        for by in re.findall(r"by \(([^)]*)\)", expression):
            assert {part.strip() for part in by.split(",")} <= known, expression
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]  # it is our own text
            assert label in _labels(metric.removeprefix(PREFIX))


def _labels(name: str) -> tuple[str, ...]:
    return BY_NAME[name if name in BY_NAME else _SUFFIX.sub("", name)].labels


def test_panels_fit(board: dict[str, Any]) -> None:
    """Panels have a title, an own id, and a place that no other one takes."""
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["title"]
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def _promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool on PATH; apt-get install prometheus")
    return found


def test_queries_parse(board: dict[str, Any], tmp_path: Path) -> None:
    """Prometheus' own parser takes every query."""
    rules = [
        {"record": f"panel:{at}", "expr": expression.replace("$__rate_interval", "1m")}
        for at, expression in enumerate(_expressions(board))
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run(
        [_promtool(), "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_its_configuration(root: Path, tmp_path: Path) -> None:
    """promtool is content with the scrape configuration and the rules that it names."""
    token = tmp_path / "token"
    token.write_text("x", encoding="utf-8")
    text = (root / "deploy/prometheus/prometheus.yaml").read_text(encoding="utf-8")
    text = text.replace("/etc/prometheus/alerts.yaml", str(root / "deploy/prometheus/alerts.yaml"))
    file = tmp_path / "prometheus.yaml"
    file.write_text(text.replace("/run/secrets/metrics_token", str(token)), encoding="utf-8")
    done = subprocess.run(
        [_promtool(), "check", "config", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_chart_has_the_same_rules(root: Path) -> None:
    """The chart's PrometheusRule is made of the very file that Prometheus reads."""
    link = root / "deploy/helm/steersman/files/alerts.yaml"
    assert link.resolve() == root / "deploy/prometheus/alerts.yaml"


def test_the_collectors_pipelines_hold_together(root: Path) -> None:
    """What a pipeline names is defined, what is defined is used, and spans and metrics have a way."""
    config = yaml.safe_load((root / "deploy/otel/collector.yaml").read_text(encoding="utf-8"))
    pipelines = config["service"]["pipelines"]
    assert {"traces", "metrics"} <= set(pipelines)
    for kind in ("receivers", "processors", "exporters"):
        used = {name for pipeline in pipelines.values() for name in pipeline[kind]}
        assert used == set(config[kind]), kind
    assert set(config["service"]["extensions"]) == set(config["extensions"])
    for pipeline in pipelines.values():
        assert pipeline["processors"][0] == "memory_limiter"


def test_grafanas_provisioning_names_one_source(root: Path) -> None:
    """The dashboards' default source is the provisioned one, and their folder the one that is mounted."""
    folder = root / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards/steersman.yaml").read_text())["providers"]
    for name in NAMES:
        made = json.loads((root / f"deploy/grafana/dashboards/{name}.json").read_text(encoding="utf-8"))
        assert made["templating"]["list"][0]["current"]["value"] == source["uid"]
    compose = yaml.safe_load((root / "docker-compose.yml").read_text(encoding="utf-8"))
    assert any(
        v.split(":")[1] == provider["options"]["path"] for v in compose["services"]["grafana"]["volumes"]
    )

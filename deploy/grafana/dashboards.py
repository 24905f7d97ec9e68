"""Grafana's dashboards, written as JSON: `python deploy/grafana/dashboards.py` renews the folder beside it.

Owns what each shows and its layout; the metrics' meaning is docs/metrics.md's. In a query `{POOL}` and
`{TENANT}` stand for what the viewer has selected. A test holds the files to this, and every metric's name and
label to the service's own table.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH = 24
HEIGHT = 8


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: its queries with their legends, how many of 24 columns wide."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    about: str = ""
    stacked: bool = False
    ceiling: float | None = None
    #: Values from which the colour changes: (value, colour).
    steps: tuple[tuple[float, str], ...] = field(default=())


def _quantile(share: float, metric: str, by: str, where: str) -> str:
    labels = f"le, {by}" if by else "le"
    return (
        f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket{{{where}}}[$__rate_interval])))"
    )


def _rate(metric: str, by: str, where: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))"


def _used(part: str, whole: str) -> str:
    return f"max by (endpoint, gpu) ({part}) / max by (endpoint, gpu) ({whole})"


POOL = 'pool=~"$pool"'
TENANT = 'tenant=~"$tenant"'

FLEET = (
    Panel(
        "Endpoints ready",
        (("sum(max by (pool, endpoint) (steersman_endpoint_ready{POOL}))", "ready"),),
        kind="stat",
        width=4,
    ),
    Panel(
        "Telemetry stale",
        (("sum(max by (pool, endpoint) (steersman_endpoint_stale{POOL}))", "stale"),),
        kind="stat",
        width=4,
        about="Endpoints whose last report is older than three heartbeats.",
        steps=((0, "green"), (1, "orange")),
    ),
    Panel(
        "In flight",
        (("sum(steersman_in_flight{POOL})", "in flight"),),
        kind="stat",
        width=4,
    ),
    Panel("Held", (("sum(steersman_held{POOL})", "held"),), kind="stat", width=4),
    Panel(
        "Alerts firing",
        (("sum(steersman_alerts_firing)", "firing"),),
        kind="stat",
        width=4,
        steps=((0, "green"), (1, "red")),
    ),
    Panel(
        "Cards lost",
        (("sum(max by (endpoint, gpu) (steersman_gpu_lost))", "lost"),),
        kind="stat",
        width=4,
        steps=((0, "green"), (1, "red")),
    ),
    Panel(
        "Health",
        (("min by (pool, endpoint) (steersman_endpoint_health{POOL})", "{{pool}} {{endpoint}}"),),
        unit="percentunit",
        width=12,
        ceiling=1,
        about="0 to 1, as the services see it; `steersman fleet` names the causes.",
    ),
    Panel(
        "In flight by endpoint",
        (("max by (pool, endpoint) (steersman_endpoint_in_flight{POOL})", "{{pool}} {{endpoint}}"),),
        width=12,
    ),
    Panel(
        "Running in the engine",
        (("max by (pool, endpoint) (steersman_endpoint_running{POOL})", "{{pool}} {{endpoint}}"),),
    ),
    Panel(
        "Waiting in the engine",
        (("max by (pool, endpoint) (steersman_endpoint_waiting{POOL})", "{{pool}} {{endpoint}}"),),
        about="Kept about one deep; the rest waits at the gateway.",
    ),
    Panel(
        "KV memory",
        (
            (
                "max by (pool, endpoint) (steersman_endpoint_kv_utilization{POOL})",
                "{{pool}} {{endpoint}}",
            ),
        ),
        unit="percentunit",
        ceiling=1,
    ),
    Panel(
        "GPU utilisation",
        (("max by (endpoint, gpu) (steersman_gpu_utilization_ratio)", "{{endpoint}} {{gpu}}"),),
        unit="percentunit",
        ceiling=1,
    ),
    Panel(
        "GPU memory used",
        (
            (
                _used("steersman_gpu_memory_used_bytes", "steersman_gpu_memory_total_bytes"),
                "{{endpoint}} {{gpu}}",
            ),
        ),
        unit="percentunit",
        ceiling=1,
    ),
    Panel(
        "GPU temperature",
        (("max by (endpoint, gpu) (steersman_gpu_temperature_celsius)", "{{endpoint}} {{gpu}}"),),
        unit="celsius",
    ),
    Panel(
        "GPU power",
        (("max by (endpoint, gpu) (steersman_gpu_power_watts)", "{{endpoint}} {{gpu}}"),),
        unit="watt",
    ),
)

TENANTS = (
    Panel("Requests", ((_rate("steersman_requests_total", "tenant", TENANT), "{{tenant}}"),), "reqps"),
    Panel(
        "Refusals",
        ((_rate("steersman_refusals_total", "tenant, code", TENANT), "{{tenant}} {{code}}"),),
        "reqps",
        about="Turned away by the gateway, by the error's code.",
    ),
    Panel(
        "Outcomes",
        ((_rate("steersman_requests_total", "outcome", TENANT), "{{outcome}}"),),
        "reqps",
        stacked=True,
    ),
    Panel(
        "Tokens",
        ((_rate("steersman_tokens_total", "tenant, direction", TENANT), "{{tenant}} {{direction}}"),),
        width=12,
        about="A second, by tenant and direction.",
    ),
    Panel(
        "Quotas used",
        (("max by (tenant, limit) (steersman_quota_used_ratio{TENANT})", "{{tenant}} {{limit}}"),),
        unit="percentunit",
        width=12,
    ),
    Panel("In flight", (("sum by (tenant) (steersman_tenant_in_flight{TENANT})", "{{tenant}}"),)),
    Panel("Held", (("sum by (tenant) (steersman_tenant_held{TENANT})", "{{tenant}}"),)),
    Panel(
        "Replica time",
        ((_rate("steersman_gpu_seconds_total", "tenant", TENANT), "{{tenant}}"),),
        about="Seconds of a replica's time, a second.",
    ),
    Panel(
        "Cost a day",
        (("sum by (tenant) (increase(steersman_cost_total{TENANT}[1d]))", "{{tenant}}"),),
        kind="bargauge",
        width=12,
        about="By the pools' prices, in their currency.",
    ),
    Panel(
        "Tokens a day",
        (
            (
                "sum by (tenant, direction) (increase(steersman_tokens_total{TENANT}[1d]))",
                "{{tenant}} {{direction}}",
            ),
        ),
        kind="bargauge",
        width=12,
    ),
)

_CLASS = f'{POOL}, class=~"$class"'


def _met(window: str) -> str:
    met = f'sum by (class) (rate(steersman_slo_requests_total{{class=~"$class", met="yes"}}[{window}]))'
    return f'{met} / sum by (class) (rate(steersman_slo_requests_total{{class=~"$class"}}[{window}]))'


SLOS = (
    Panel(
        "Targets met, last hour",
        ((_met("1h"), "{{class}}"),),
        unit="percentunit",
        kind="stat",
        width=12,
        steps=((0, "red"), (0.95, "orange"), (0.99, "green")),
        about="Requests that met their class's targets, of all that ended.",
    ),
    Panel("Targets met", ((_met("$__rate_interval"), "{{class}}"),), unit="percentunit", width=12, ceiling=1),
    Panel(
        "Time to first token",
        tuple(
            (_quantile(share, "steersman_ttft_seconds", "class", _CLASS), f"{{{{class}}}} p{share * 100:g}")
            for share in (0.5, 0.95, 0.99)
        ),
        unit="s",
    ),
    Panel(
        "Time for each further token",
        tuple(
            (_quantile(share, "steersman_tpot_seconds", "class", _CLASS), f"{{{{class}}}} p{share * 100:g}")
            for share in (0.5, 0.95, 0.99)
        ),
        unit="s",
    ),
    Panel(
        "Whole requests",
        tuple(
            (
                _quantile(share, "steersman_request_seconds", "class", _CLASS),
                f"{{{{class}}}} p{share * 100:g}",
            )
            for share in (0.5, 0.95, 0.99)
        ),
        unit="s",
    ),
    Panel(
        "Held at the gateway",
        tuple(
            (_quantile(share, "steersman_hold_seconds", "class", _CLASS), f"{{{{class}}}} p{share * 100:g}")
            for share in (0.5, 0.95, 0.99)
        ),
        unit="s",
        width=12,
    ),
    Panel(
        "Time to first token, spread",
        ((f"sum by (le) (increase(steersman_ttft_seconds_bucket{{{_CLASS}}}[$__rate_interval]))", "{{le}}"),),
        unit="s",
        kind="heatmap",
        width=12,
    ),
)

DECISIONS = (
    Panel(
        "Decisions",
        ((_rate("steersman_decisions_total", "pool, strategy", POOL), "{{pool}} {{strategy}}"),),
        "reqps",
    ),
    Panel(
        "Degraded decisions",
        ((_rate("steersman_decisions_total", "pool", POOL + ', degraded="yes"'), "{{pool}}"),),
        "reqps",
        about="Made by least_request, from stale telemetry or after a fault of ours.",
    ),
    Panel(
        "Time of a decision",
        tuple(
            (_quantile(share, "steersman_decision_seconds", "", ""), f"p{share * 100:g}")
            for share in (0.5, 0.95, 0.99)
        ),
        unit="s",
    ),
    Panel(
        "Prediction error",
        (("avg by (what) (steersman_prediction_error_ratio)", "{{what}}"),),
        unit="percentunit",
        about="What was predicted against what came.",
    ),
    Panel("Events", ((_rate("steersman_events_total", "event"), "{{event}}"),), "ops"),
    Panel(
        "Event loop lag",
        ((_quantile(0.99, "steersman_event_loop_lag_seconds", "", ""), "p99"),),
        unit="s",
        about="How much later than asked for the service's loop woke.",
    ),
    Panel("Held by class", (("sum by (pool, class) (steersman_held{POOL})", "{{pool}} {{class}}"),)),
    Panel("In flight by pool", (("sum by (pool) (steersman_in_flight{POOL})", "{{pool}}"),)),
    Panel(
        "Versions",
        (("count by (version) (steersman_build_info)", "{{version}}"),),
        kind="stat",
    ),
)


def _panel(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.ceiling is not None:
        defaults["max"] = panel.ceiling
    if panel.steps:
        steps = [
            {"value": None if at == 0 else value, "color": colour}
            for at, (value, colour) in enumerate(panel.steps)
        ]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
        defaults["color"] = {"mode": "thresholds"}
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "fillOpacity": 10,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none"},
        }
    options: dict[str, Any] = {}
    if panel.kind == "timeseries":
        options = {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    elif panel.kind in ("stat", "bargauge"):
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}}
    elif panel.kind == "heatmap":
        options = {"calculate": False, "yAxis": {"unit": panel.unit}, "color": {"scheme": "Spectral"}}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": 4 if panel.kind == "stat" else HEIGHT},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + at),
                "datasource": SOURCE,
                "expr": expression.replace("{POOL}", f"{{{POOL}}}").replace("{TENANT}", f"{{{TENANT}}}"),
                "legendFormat": legend,
                "format": "heatmap" if panel.kind == "heatmap" else "time_series",
                "instant": panel.kind in ("stat", "bargauge"),
            }
            for at, (expression, legend) in enumerate(panel.queries)
        ],
    }


def _variable(name: str, metric: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": f"label_values({metric}, {name})", "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "sort": 1,
    }


def dashboard(uid: str, title: str, panels: tuple[Panel, ...], variables: dict[str, str]) -> dict[str, Any]:
    """A whole dashboard; panels flow from left to right in rows."""
    made, x, y, row = [], 0, 0, 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > WIDTH:
            x, y, row = 0, y + row, 0
        made.append(_panel(number, panel, x, y))
        x, row = x + panel.width, max(row, made[-1]["gridPos"]["h"])
    source = {
        "name": "source",
        "type": "datasource",
        "query": "prometheus",
        "label": "Data source",
        "current": {"text": "Prometheus", "value": "prometheus"},
    }
    return {
        "uid": f"steersman-{uid}",
        "title": f"Steersman / {title}",
        "tags": ["steersman"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "graphTooltip": 1,
        "links": [{"type": "dashboards", "title": "Steersman", "tags": ["steersman"], "asDropdown": True}],
        "templating": {"list": [source, *(_variable(name, metric) for name, metric in variables.items())]},
        "panels": made,
    }


def dashboards() -> dict[str, dict[str, Any]]:
    """All of them, by file name."""
    pool = {"pool": "steersman_in_flight"}
    return {
        "fleet.json": dashboard("fleet", "Fleet", FLEET, pool),
        "tenants.json": dashboard("tenants", "Tenants", TENANTS, {"tenant": "steersman_requests_total"}),
        "slos.json": dashboard("slos", "SLOs", SLOS, {**pool, "class": "steersman_slo_requests_total"}),
        "decisions.json": dashboard("decisions", "Decisions", DECISIONS, pool),
    }


def text(made: dict[str, Any]) -> str:
    """As it is kept."""
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, made in dashboards().items():
        (FOLDER / name).write_text(text(made), encoding="utf-8")

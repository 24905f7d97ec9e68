"""docs/metrics.md is made from the table; with STEERSMAN_UPDATE_DOCS=1 this writes it."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from documents import with_contents
from prometheus_client.parser import text_string_to_metric_families as parse

from extproc.config.metrics import MetricsConfig
from extproc.observe.metrics import counting
from extproc.observe.metrics.exposition import render
from extproc.observe.metrics.samples import GPUS_MAX
from extproc.observe.metrics.snapshot import RULES_MAX
from extproc.observe.metrics.table import GROUPS, PREFIX, TABLE, WVA

DOC = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"
SETTINGS = MetricsConfig()
HEAD = f"""# Metrics

Prometheus reads them at the admin port (`GET /metrics`), as plain text or OpenMetrics. The client library
adds its own `process_*` metrics (memory, CPU, files).

**Which requests count.** Each service counts the requests that it has decided on itself, since it started.
So the figures of several services can be added up. A request whose end is never reported counts only in
`events_total{{event="expired"}}`.

**Counters begin at 0 with the service and never go back.** A series that was once there stays.

**Label values are bounded.** Up to `metrics.tenants_max` ({SETTINGS.tenants_max}) tenants have series of
their own. The others are summed as `other`. Requests without a known tenant are `(none)`. If there are more
tenants than places, half of the places go to those who come first. The other half goes to those with most
traffic: at least 1/(2 · tenants_max) of what all unnamed tenants had lately. Such a tenant's series begin
at 0; what it had before stays in `other`. Tenants keep their series until the service restarts. Sums over
tenants are always exact.

| label | values at most | beyond |
|---|---|---|
| tenant | `metrics.tenants_max` ({SETTINGS.tenants_max}), `other`, `(none)` | `other` |
| endpoint | `metrics.endpoints_max` ({SETTINGS.endpoints_max}) | in its pool's sums alone |
| gpu | {GPUS_MAX} of an endpoint | left out |
| pool, class | {counting.POOLS_MAX}, {counting.CLASSES_MAX} | `other` |
| strategy, code, event | {counting.STRATEGIES_MAX}, {counting.CODES_MAX}, {counting.EVENTS_MAX} | `other` |
| rule | {RULES_MAX} | left out |
| tenant × pool × class; tenant × code | {counting.CELLS_MAX:,}; {counting.REFUSALS_MAX:,} | all `other` |

**Nothing is made up.** Where an agent says nothing, or has been silent for too long, there is no sample.

(To make this page again: `STEERSMAN_UPDATE_DOCS=1 .venv/bin/pytest
tests/observe/metrics/test_documented.py`.)
"""
TAIL = """
## Metering

Of `steersman_events_total`: `metered.engine` and `metered.estimated` are ends whose output tokens the engine
counted, or we; `metered.impossible` ends whose engine said more than was asked for (its replica is suspect);
`credits` what operators forgave. See [metering](metering.md).

## Questions

```promql
# Share of requests within their targets, by class, over an hour
sum by (class) (rate(steersman_slo_requests_total{met="yes"}[1h]))
  / sum by (class) (rate(steersman_slo_requests_total[1h]))

# 99th percentile of the time to first token
histogram_quantile(0.99, sum by (pool, le) (rate(steersman_ttft_seconds_bucket[5m])))

# Share of requests that waited for longer than 100 ms
1 - sum(rate(steersman_hold_seconds_bucket{le="0.1"}[5m])) / sum(rate(steersman_hold_seconds_count[5m]))

# What each tenant has cost today
sum by (tenant) (increase(steersman_cost_total[1d]))

# Mean requests on each ready endpoint
sum by (pool) (steersman_in_flight) / sum by (pool) (steersman_pool_endpoints{ready="yes"})
```
"""


def page() -> str:
    """The whole document."""
    lines = [HEAD]
    for group, specs in GROUPS.items():
        lines += [f"## {group}", "", "| name | type | labels | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{spec.full_name}` | {spec.kind} | {', '.join(spec.labels)} | "
            + spec.meaning.replace("|", "\\|")
            + " |"
            for spec in specs
        ]
        lines.append("")
    lines += ["## Buckets", "", "Upper bounds in seconds; each histogram has `+Inf` besides.", ""]
    lines += ["| name | bounds |", "|---|---|"]
    lines += [
        f"| `{PREFIX}{spec.name}` | {', '.join(f'{bound:g}' for bound in spec.buckets)} |"
        for spec in TABLE
        if spec.buckets
    ]
    return with_contents("\n".join(lines) + "\n\n" + inspect.cleandoc(TAIL).strip() + "\n")


def test_the_page_is_what_the_table_says() -> None:
    """Names, types, labels, meanings and bounds."""
    if os.environ.get("STEERSMAN_UPDATE_DOCS"):
        DOC.write_text(page(), encoding="utf-8")
    assert DOC.read_text(encoding="utf-8") == page(), "write it anew: STEERSMAN_UPDATE_DOCS=1"


def test_what_is_documented_is_what_is_exported(scene: Callable[..., Any]) -> None:
    """Not one metric more, not one less; the page is read as a reader reads it."""
    text = DOC.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram) \| ", text, re.MULTILINE)
    documented = dict(rows)
    exposed, _ = render(scene().snapshot(), rest=lambda: None)
    exported = {
        metric.name + ("_total" if metric.type == "counter" else ""): metric.type
        for metric in parse(exposed.decode())
        if metric.name.startswith((PREFIX, WVA))
    }
    assert exported == documented


def test_whatever_names_a_metric_names_one_that_there_is() -> None:
    """Dashboards, alert rules and documents: a query for a metric that is not there answers nothing."""
    names = {spec.full_name for spec in TABLE}
    root, ends = DOC.parents[1], {".md", ".json", ".yaml", ".yml", ".tpl"}
    asked: dict[str, str] = {}
    for folder in ("docs", "deploy"):
        for file in sorted((root / folder).rglob("*")):
            if file.is_file() and file.suffix in ends:
                for name in re.findall(r"\b(?:steersman|wva)_[a-z0-9_]+", file.read_text(encoding="utf-8")):
                    asked.setdefault(re.sub(r"_(bucket|count|sum)$", "", name), str(file.relative_to(root)))
    for package in ("steersman_agent", "steersman_mlx"):
        asked.pop(package, None)
    assert len(asked) >= len(names)
    assert not {name: file for name, file in asked.items() if name not in names}

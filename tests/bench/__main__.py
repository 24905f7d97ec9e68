"""`make bench`: every figure that the README quotes, in one run.

Ratios within the run mean more than milliseconds on a shared machine; CPU per request holds best.
`python tests/bench [NAME …]` runs some; `--json FILE` writes the figures as well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e")]

import bench_agent
import bench_alerts
import bench_anomalies
import bench_bodies
import bench_analytics
import bench_cache
import bench_commands
import bench_decide
import bench_first_token
import bench_fairness
import bench_filters
import bench_fleet
import bench_gateway
import bench_idle
import bench_metrics
import bench_notice
import bench_path
import bench_picker
import bench_prefix
import bench_quota
import bench_reload
import bench_replica
import bench_routes
import bench_scaling
import bench_sim
import bench_telemetry
import bench_tenants
import bench_tokens
import bench_tracing
import bench_up
import bench_transport
from rows import Row

BENCHES = {
    "decide": bench_decide.run,
    "path": bench_path.run,
    "idle": bench_idle.run,
    "prefix": bench_prefix.run,
    "bodies": bench_bodies.run,
    "routes": bench_routes.run,
    "cache": bench_cache.run,
    "gateway": bench_gateway.run,
    "filters": bench_filters.run,
    "up": bench_up.run,
    "transport": bench_transport.run,
    "first_token": bench_first_token.run,
    "fleet": bench_fleet.run,
    "reload": bench_reload.run,
    "commands": bench_commands.run,
    "replica": bench_replica.run,
    "sim": bench_sim.run,
    "agent": bench_agent.run,
    "notice": bench_notice.run,
    "telemetry": bench_telemetry.run,
    "quota": bench_quota.run,
    "fairness": bench_fairness.run,
    "tenants": bench_tenants.run,
    "tokens": bench_tokens.run,
    "picker": bench_picker.run,
    "tracing": bench_tracing.run,
    "analytics": bench_analytics.run,
    "metrics": bench_metrics.run,
    "alerts": bench_alerts.run,
    "scaling": bench_scaling.run,
    "anomalies": bench_anomalies.run,
}


def main() -> None:
    """Run the chosen benches and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHES, []], help="which benches; all when left out")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for name in arguments.names or BENCHES:
        print(f"# {name}", flush=True)
        for row in BENCHES[name]():
            print(row, flush=True)
            rows.append(row)
    print(f"# {platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps([row.__dict__ for row in rows], indent=2) + "\n")


main()

"""`steersman demo`: the whole thing on simulated replicas, with three tenants' traffic."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path

import click

from extproc.cli.options import examples, log_to_stderr


@click.command(
    "demo",
    epilog=examples(
        "steersman demo",
        "steersman demo --smoke                         # 200 requests through every client, JSON, end",
        "steersman demo --trace azure.csv.gz --speed 5 --for 120",
        "steersman demo-fault hang 2                    # in another terminal: break something",
    ),
)
@click.option(
    "--smoke",
    is_flag=True,
    envvar="SMOKE",
    help="Send 200 requests through every client and route, print JSON, end. SMOKE=1 does the same.",
)
@click.option(
    "--trace",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="STEERSMAN_TRACE",
    help="Replay this trace (CSV, .gz or not: arrival_s,input_tokens,output_tokens).",
)
@click.option(
    "--speed",
    type=click.FloatRange(0.1, 50.0),
    help="How many times faster than life replicas run and requests arrive.  [default: 2; smoke: 4]",
)
@click.option("--for", "for_s", type=click.FloatRange(min=1.0), help="End after so many seconds.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the simulated and generated.")
@click.option(
    "--envoy",
    "envoy_path",
    type=click.Path(path_type=Path),
    envvar="STEERSMAN_ENVOY",
    help="Envoy's binary; the one beside this Python, then PATH's.",
)
@click.option(
    "--run-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep configuration and logs here; a private temporary folder when left out.",
)
@click.option("--table/--no-table", default=None, help="Show the live table; as is fit for the terminal.")
@click.option(
    "--faults/--no-faults",
    default=True,
    envvar="STEERSMAN_DEMO_FAULTS",
    help="Slow a replica down every now and then, and say so; never with --smoke.  [default: faults]",
)
def command(
    smoke: bool,
    trace: Path | None,
    speed: float | None,
    for_s: float | None,
    seed: int,
    envoy_path: Path | None,
    run_dir: Path | None,
    table: bool | None,
    faults: bool,
) -> None:
    """Run the whole thing on simulated replicas, with three tenants' traffic.

    Starts four simulated replicas in a cheap and a strong pool, the service and Envoy on free local ports,
    and sends them requests of three tenants, each of another class, through openai, huggingface_hub and
    text-generation. A third pool has none at rest: the service starts up to four on a wave of requests, and
    stops them after it. One tenant asks for more than its quota, and every minute a replica is slowed down
    for 20 s (--no-faults: never). Ctrl-C stops all.
    """
    log_to_stderr()
    click.echo("starting: simulated replicas, agents, the service and Envoy", err=True)
    for noisy in ("httpx", "httpx2", "openai"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from extproc.demo.run import Demo, DemoOptions
    from extproc.demo.workload import TraceError, workload
    from extproc.supervise.envoy import find_envoy
    from extproc.supervise.gateway import GatewayFailedError
    from extproc.supervise.rundir import run_directory

    try:
        work = workload(trace, seed=seed)
    except TraceError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    try:
        envoy = find_envoy(envoy_path)
        with run_directory(run_dir) as folder:
            demo = Demo(
                DemoOptions(
                    envoy=envoy,
                    run_dir=folder,
                    speed=speed or (4.0 if smoke else 2.0),
                    seed=seed,
                    faults=faults,
                    for_s=for_s,
                    pictured=not smoke and (sys.stdout.isatty() if table is None else table),
                ),
                work,
            )
            result = asyncio.run(demo.smoke() if smoke else demo.run())
    except GatewayFailedError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"{error.filename or '--run-dir'}: {error.strerror or error}", err=True)
        sys.exit(1)
    if smoke:
        if result is None:
            click.echo("interrupted", err=True)
            sys.exit(1)
        click.echo(json.dumps(result))
        sys.exit(0 if result["failed"] == 0 else 1)

"""The command line: `steersman agent`, and `python -m steersman_agent`. Owns options, output, exit codes."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from extproc.extras import need

if TYPE_CHECKING:
    from steersman_agent.config import AgentConfig

#: Exit code for a configuration that cannot be used.
EXIT_CONFIG = 2

log = logging.getLogger(__name__)


@click.command(
    "agent",
    epilog="\b\nExamples:\n"
    "  steersman agent -f agent.yaml\n"
    "  steersman agent -f agent.yaml --check\n"
    "  steersman agent --once --json | jq .gpus           # this machine's cards; needs no service",
)
@click.option(
    "-f",
    "--file",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="STEERSMAN_AGENT_CONFIG",
    help="The configuration (agent.yaml). With --once it may be left out: then only the GPUs are shown.",
)
@click.option("--once", is_flag=True, help="Look once, print what was found and exit; needs no service.")
@click.option("--json", "as_json", is_flag=True, help="With --once: print JSON.")
@click.option("--check", "check_only", is_flag=True, help="Check the configuration and exit.")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def command(file: Path | None, once: bool, as_json: bool, check_only: bool, verbose: bool) -> None:
    """Watch this node's GPUs and engines, and push what they say to the services.

    SIGTERM says goodbye and stops. Changes of `replicas` and `drain` in the file are taken while it
    runs. Exit codes: 0 done, 2 wrong usage or configuration.
    """
    if as_json and not once:
        raise click.UsageError("--json goes with --once")
    if file is None and not once:
        raise click.UsageError("give the configuration with -f agent.yaml (or look at the GPUs with --once)")
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname).1s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("grpc").setLevel(logging.INFO)  # its debug lines bury ours
    config = _load_or_exit(file, needs_services=not once)
    if not check_only and config.nvml != "off":
        need("agent", by="looking at GPUs", instead="set nvml: off")
    if any(replica.kv_events is not None for replica in config.replicas) and not once:
        need("kv-events", by="kv_events in agent.yaml", instead="leave it out")
    if check_only:
        counts = [(len(config.replicas), "replica"), (len(config.services), "service")]
        told = ", ".join(f"{count} {what}{'s' * (count != 1)}" for count, what in counts)
        click.echo(f"{file}: good: {told}")
    elif once:
        _look_once(config, as_json=as_json)
    else:
        _run_async(lambda: _run(config, file))


def _load_or_exit(file: Path | None, *, needs_services: bool) -> AgentConfig:
    from steersman_agent.config import AgentConfig, AgentConfigError, load

    if file is None:
        return AgentConfig()
    try:
        return load(file, needs_services=needs_services)
    except AgentConfigError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        sys.exit(EXIT_CONFIG)


def _look_once(config: AgentConfig, *, as_json: bool) -> None:
    from steersman_agent.agent import collect_once
    from steersman_agent.report import describe

    view, why = asyncio.run(collect_once(config))
    if why:
        click.echo(f"no GPU figures: {why}", err=True)
    if as_json:
        click.echo(json.dumps(describe(view, time.monotonic()) | {"no_gpus_because": why or None}, indent=2))
        return
    for replica in view.replicas:
        click.echo(
            f"{replica.address}  {replica.pool}  {replica.engine}  {replica.state.name}  "
            f"waiting {_said(replica.waiting)}  running {_said(replica.running)}  {replica.detail}"
        )
    for gpu in view.gpus:
        condition = "LOST" if gpu.lost else f"{_said(gpu.utilization_percent)} %"
        click.echo(f"GPU {gpu.index}  {gpu.name}  {gpu.uuid}  {condition}  {_said(gpu.temperature_c)} °C")


def _said(value: object) -> str:
    return "unknown" if value is None else str(value)


async def _run(config: AgentConfig, file: Path | None) -> None:
    from steersman_agent.agent import Agent

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if config.tls is None and (config.token_file or config.token_env):
        log.warning("the token travels unencrypted; set 'tls' where the services are not on this machine")
    log.info("node %s: %d replicas, to %s", config.node, len(config.replicas), ", ".join(config.services))
    await Agent(config, config_file=file).run(stop)


def _run_async(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """On uvloop where it is installed: it saves about a fifth of the agent's CPU."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())

"""`steersman up`: Envoy and the service for the user's own backends, kept running.

Owns the options and exit codes; the processes are `supervise`'s, the picture is `demo`'s.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import click

from extproc.cli.options import EXIT_CONFIG, config_option, examples, fail, load_or_exit, log_to_stderr
from extproc.config.model import Config


@click.command(
    "up",
    epilog=examples(
        "steersman up",
        "steersman up -f steersman.yaml --no-table --run-dir /var/log/steersman",
        "steersman doctor                               # in another terminal: does it all work?",
    ),
)
@config_option
@click.option(
    "--envoy",
    "envoy_path",
    type=click.Path(path_type=Path),
    envvar="STEERSMAN_ENVOY",
    help="Envoy's binary; the one beside this Python, then PATH's, when left out.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=2,
    show_default=True,
    help="Envoy's worker threads.",
)
@click.option(
    "--envoy-log-level",
    type=click.Choice(["trace", "debug", "info", "warning", "error", "critical", "off"]),
    default="warning",
    show_default=True,
    help="How much Envoy logs.",
)
@click.option(
    "--run-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep what is rendered and the logs here; a private temporary folder when left out.",
)
@click.option("--table/--no-table", default=None, help="Show the live table; as is fit for the terminal.")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def command(
    file: Path,
    envoy_path: Path | None,
    concurrency: int,
    envoy_log_level: str,
    run_dir: Path | None,
    table: bool | None,
    verbose: bool,
) -> None:
    """Start Envoy and the service for your backends, and supervise both.

    Restarts what dies, with backoff. Ctrl-C or SIGTERM drains and stops (twice: at once). A changed
    configuration is taken within two seconds, or at SIGHUP. The page to look at is on loopback, at an
    address that is printed, unless the configuration's `admin` says where. Exits 0 after a stop, 1 when
    something cannot be kept running, 2 on a wrong configuration.
    """
    from extproc.supervise.envoy import find_envoy
    from extproc.supervise.gateway import GatewayFailedError, GatewayOptions
    from extproc.supervise.page import opened_page
    from extproc.supervise.rundir import run_directory

    log_to_stderr(verbose=verbose)
    config = load_or_exit(file)
    _nameable(file.absolute())
    pictured = sys.stdout.isatty() if table is None else table
    try:
        envoy = find_envoy(envoy_path)
        with run_directory(run_dir) as folder:
            options = GatewayOptions(
                envoy=envoy,
                run_dir=folder,
                concurrency=concurrency,
                envoy_log_level=envoy_log_level,
                verbose=verbose,
                echo=None if pictured else _echo,
                page=opened_page() if config.admin is None else None,
                state_dir=_state_directory(config, file, run_dir),
            )
            asyncio.run(_up(config, file, options, pictured=pictured))
    except GatewayFailedError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"{error.filename or '--run-dir'}: {error.strerror or error}", err=True)
        sys.exit(1)


def _nameable(path: Path) -> None:
    """The service is told where the file lies, in a text: exits 2 where the path is none."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="replace")
        way = "rename it, or set a locale of UTF-8 (LC_ALL=C.UTF-8)"
        fail(f"{shown}: the folder's name is not UTF-8; {way}", code=EXIT_CONFIG)


def _state_directory(config: Config, file: Path, run_dir: Path | None) -> Path | None:
    """Where quotas outlive this run; None, and said, where that is nowhere."""
    from extproc.supervise.rundir import state_directory

    if not config.state.enabled or config.state.dir is not None or config.sharing is not None:
        return None
    folder = state_directory(file, run_dir)
    if folder is None:
        click.echo(
            f"{file.absolute().parent} cannot be written: quotas begin anew when 'up' does; "
            "set state.dir or --run-dir",
            err=True,
        )
    return folder


def _echo(name: str, line: str) -> None:
    click.echo(f"{name} | {line}", err=True)


async def _up(config: Config, file: Path, options: Any, *, pictured: bool) -> None:
    from rich.console import Console

    from extproc.history.follow import Follow
    from extproc.supervise.gateway import GatewayFailedError, SupervisedGateway
    from extproc.supervise.signals import Signals, first_of
    from extproc.terminal.live import Events, going_on, show_lines, show_picture
    from extproc.terminal.tables import clock, screen, status_view

    events = Events()
    gateway = SupervisedGateway(config, file, options=options, report=events)
    follow = Follow(file, gateway.reload)

    def draw(status: dict[str, Any], width: int, height: int) -> Any:
        return screen(
            status_view(status, width=width, height=height),
            title=f"[bold]steersman[/]  {gateway.url}",
            right=f"up {clock(status['uptime_s'])}   Ctrl-C drains and stops",
            notes=[f"[dim]page: [/]{gateway.page_url}"] if gateway.page_url else [],
            events=list(events.lines),
        )

    def hung_up() -> None:
        # A terminal that was closed sends SIGHUP as well, and means the end.
        if pictured and not sys.stdout.isatty():
            signals.stop.set()
        else:
            follow.now()

    signals = Signals(force=gateway.kill, reload=hung_up)
    with signals:
        try:
            await signals.unless_stopped(gateway.start())
            if not signals.stop.is_set():
                events(f"serving at {gateway.url} ; page at {gateway.page_url} ; logs in {options.run_dir}")
                failed = asyncio.create_task(gateway.failed())
                following = asyncio.create_task(follow.run())
                shown = (
                    show_picture(Console(), gateway.status, draw, events)
                    if pictured
                    else show_lines(gateway.status, events)
                )
                try:
                    await first_of(failed, signals.stop.wait(), going_on(shown, events))
                    if not signals.stop.is_set():
                        raise GatewayFailedError(failed.result())
                finally:
                    failed.cancel()
                    following.cancel()
                    await asyncio.gather(failed, following, return_exceptions=True)
        finally:
            if signals.stop.is_set():
                events("stopping: Envoy drains, then the service (again to force)")
            await gateway.stop()
    events("stopped")

"""`steersman serve`: the service alone."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click

from extproc.cli.options import config_option, load_or_exit, log_to_stderr

log = logging.getLogger(__name__)


@click.command("serve")
@config_option
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def command(file: Path, verbose: bool) -> None:
    """Run the service alone: ext_proc, access log and health over gRPC.

    SIGHUP reloads the configuration (a bad one changes nothing), SIGTERM drains.
    """
    from extproc.app import App
    from extproc.wire.server import BindError

    log_to_stderr(verbose=verbose)
    config = load_or_exit(file)

    async def serve() -> None:
        app = App(config)
        app.handle_signals(file)
        for address in await app.start():
            log.info("listening on %s", address)
        for address in app.telemetry_addresses:
            log.info("listening for agents on %s", address)
        await app.run(config_file=file)

    try:
        run_async(serve)
    except BindError as error:
        click.echo(str(error), err=True)
        sys.exit(1)


def run_async(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine function on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())

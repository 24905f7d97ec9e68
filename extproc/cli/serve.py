"""`steersman serve`: the service alone."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click

from extproc.cli.options import EXIT_CONFIG, config_option, examples, load_or_exit, log_to_stderr

log = logging.getLogger(__name__)

#: Objects that come beyond those that go until the youngest are looked through for garbage. At 700, as usual,
#: that is every few requests, and 4 % of their cost; a look at so many takes half a millisecond.
OBJECTS_UNTIL_COLLECTION = 5_000


@click.command(
    "serve",
    epilog=examples(
        "steersman serve -f /etc/steersman/steersman.yaml",
        "kill -HUP $(pidof -x steersman)                # take a changed file at once",
    ),
)
@config_option
@click.option(
    "--kept-of",
    hidden=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file is a supervisor's copy of this one: read it at SIGHUP alone, write into this one.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def command(file: Path, kept_of: Path | None, verbose: bool) -> None:
    """Run the service alone: ext_proc, access log and health over gRPC.

    A changed configuration is taken within two seconds, or at SIGHUP (a bad one changes nothing); SIGTERM
    drains.
    """
    # Nothing that is imported is garbage: a seventh of the time to start.
    gc.disable()
    from extproc.config.load import ConfigError
    from extproc.service.app import App
    from extproc.service.heap import keep_heap
    from extproc.wire.server import BindError

    keep_heap()
    log_to_stderr(verbose=verbose)
    config = load_or_exit(file)

    async def serve() -> None:
        app = App(config)
        app.handle_signals(file, kept_of=kept_of)
        addresses = await app.start()
        # What was imported lives as long as the process: a full collection (0.3 s on a busy core) need not
        # look at it, while decisions wait.
        gc.freeze()
        gc.set_threshold(OBJECTS_UNTIL_COLLECTION)
        gc.enable()
        for address in addresses:
            log.info("listening on %s", address)
        for address in app.ads_addresses:
            log.info("telling Envoy of endpoints on %s", address)
        for address in app.telemetry_addresses:
            log.info("listening for agents on %s", address)
        await app.run(config_file=file, kept_of=kept_of)

    try:
        run_async(serve)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        sys.exit(EXIT_CONFIG)
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

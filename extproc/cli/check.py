"""`steersman check`."""

from __future__ import annotations

from pathlib import Path

import click

from extproc.cli.options import config_option, load_or_exit


@click.command("check")
@config_option
def command(file: Path) -> None:
    """Check a configuration.

    Prints every mistake at once as FILE:LINE: PATH: what to write instead, and exits 2; exits 0 with
    one line when there is none.
    """
    config = load_or_exit(file)
    endpoints = sum(len(pool.endpoints) for pool in config.pools)
    click.echo(
        f"{file}: {len(config.pools)} pools, {endpoints} endpoints, {len(config.tenants)} tenants: good"
    )

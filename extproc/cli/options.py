"""What several commands share: the configuration option, logging, how mistakes are shown."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from extproc.config.load import ConfigError, load
from extproc.config.model import Config

#: Exit code for a configuration that cannot be used.
EXIT_CONFIG = 2

config_option = click.option(
    "-f",
    "--file",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    default="steersman.yaml",
    show_default=True,
    envvar="STEERSMAN_CONFIG",
    help="The configuration.",
)


def load_or_exit(path: Path) -> Config:
    """Load a configuration; on mistakes print every one to stderr and exit 2."""
    try:
        return load(path)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        sys.exit(EXIT_CONFIG)


def log_to_stderr(*, verbose: bool = False) -> None:
    """Plain lines on stderr."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname).1s %(name)s: %(message)s",
        stream=sys.stderr,
    )

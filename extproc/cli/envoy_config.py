"""`steersman envoy-config`: prints the Envoy bootstrap for a configuration.

Owns the command's options and exit codes; what is rendered is control's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import click

from extproc.cli.options import EXIT_CONFIG, config_option, examples, fail, load_or_exit


@click.command(
    "envoy-config",
    epilog=examples(
        "steersman envoy-config -o envoy.yaml && envoy -c envoy.yaml",
        "steersman envoy-config --mode ads -o envoy.yaml    # pools and endpoints come from the service",
        "steersman envoy-config --format json | jq .static_resources.listeners",
    ),
)
@config_option
@click.option(
    "--mode",
    default="static",
    show_default=True,
    type=click.Choice(["static", "ads"]),
    help="static: the pools are in the bootstrap. ads: the service tells Envoy its pools while it runs.",
)
@click.option(
    "--format",
    "form",
    default="yaml",
    show_default=True,
    type=click.Choice(["yaml", "json"]),
    help="What Envoy reads; both say the same.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this file; to standard output when left out.",
)
def command(file: Path, mode: Literal["static", "ads"], form: str, output: Path | None) -> None:
    """Render the Envoy bootstrap for your pools.

    Run it with `envoy -c FILE`. Exits with 2 when the configuration is wrong, every problem on
    standard error.
    """
    config = load_or_exit(file)

    # Late: other commands need none of it. Light: a thousand pydantic validators take a second.
    from extproc.config.cautions import left_out
    from extproc.config.load import ConfigError
    from extproc.control import light

    light.install()
    from extproc.control.bootstrap import render_bootstrap, to_json, to_yaml

    try:
        bootstrap = render_bootstrap(config, mode)
    except ConfigError as error:
        fail(*map(str, error.problems), code=EXIT_CONFIG)
    if mode == "static":
        for each in left_out(config):
            click.echo(f"{file}: warning: {each}", err=True)
    text = to_json(bootstrap) if form == "json" else to_yaml(bootstrap)
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        if config.service.token_file or config.service.token_env:
            output.touch(mode=0o600)  # the token stands in it; a file that is there keeps its rights
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        click.echo(f"{output}: cannot be written: {error.strerror}", err=True)
        sys.exit(2)

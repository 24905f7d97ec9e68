"""`steersman check`."""

from __future__ import annotations

from pathlib import Path

import click

from extproc.cli.options import config_option, examples, json_option, load_or_exit, print_json


@click.command(
    "check",
    epilog=examples(
        "steersman check",
        "steersman check -f /etc/steersman/steersman.yaml",
        "steersman check --json | jq '.problems[].message'",
    ),
)
@config_option
@json_option
@click.option("--schema", is_flag=True, help="Print the file's JSON Schema, for editors, and check nothing.")
def command(file: Path, as_json: bool, schema: bool) -> None:
    """Check a configuration.

    Prints every mistake at once as FILE:LINE: PATH: what to write instead, and exits 2; exits 0 with
    one line when there is none. What is good and may not be meant is said on standard error as a warning, and
    so is an extra that is needed and not installed here. Tokenizers' files are read. Nobody is asked: what
    runs is `steersman doctor`'s to check.
    """
    if schema:
        from extproc.config.schema import schema as made

        print_json(made())
        return
    from extproc.config.cautions import cautions
    from extproc.config.installed import lacking
    from extproc.tokens.check import wrong_tokenizers

    config = load_or_exit(file, as_json=as_json)
    warnings = [*cautions(config), *lacking(config), *wrong_tokenizers(config)]
    endpoints = sum(len(pool.endpoints) for pool in config.pools)
    if as_json:
        print_json(
            {
                "good": True,
                "file": str(file),
                "problems": [],
                "warnings": warnings,
                "pools": len(config.pools),
                "endpoints": endpoints,
                "tenants": len(config.tenants),
            }
        )
        return
    for warning in warnings:
        click.echo(f"{file}: warning: {warning}", err=True)
    click.echo(
        f"{file}: {_count(len(config.pools), 'pool')}, {_count(endpoints, 'endpoint')}, "
        f"{_count(len(config.tenants), 'tenant')}: good"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"

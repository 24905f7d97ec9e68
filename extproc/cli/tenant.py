"""`steersman tenant`: keys."""

from __future__ import annotations

import json
import secrets

import click

from extproc.core.tenant import hash_key

#: Says whose key it is wherever it turns up (a leak, a log).
KEY_PREFIX = "sk-steer-"


def new_key() -> str:
    """A key of 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


@click.group("tenant")
def command() -> None:
    """Make tenants' keys."""


@command.group("key")
def key_group() -> None:
    """API keys, which the service knows by their hash alone."""


@key_group.command("new")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def key_new(as_json: bool) -> None:
    """Make a key: give the first line to the client, put the hash into the configuration.

    The key is shown once and kept nowhere.
    """
    key = new_key()
    if as_json:
        click.echo(json.dumps({"key": key, "sha256": hash_key(key)}))
        return
    click.echo(f"key:    {key}")
    click.echo(f"sha256: {hash_key(key)}")

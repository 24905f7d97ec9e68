"""`steersman tenant key`: makes, lists and revokes API keys. A key is printed once and kept nowhere."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from extproc.cli.changing import asked_why, make, tell, tenant_index, who_option, why_option
from extproc.cli.completion import complete_tenants
from extproc.cli.options import config_option, examples, json_option, load_or_exit, print_json
from extproc.config.load import ConfigError
from extproc.config.model import Config, KeyConfig, TenantConfig
from extproc.config.secret import key_secret
from extproc.core.tenant import hash_key
from extproc.history.changes import key_id
from extproc.history.surgery import Add, Edit, Put

#: Says whose key it is wherever it turns up (a leak, a log).
KEY_PREFIX = "sk-steer-"
#: So many digits of a hash name a key at the least.
HASH_DIGITS_MIN = 8
EXPIRES_DAYS_MAX = 36_500
_SPAN = re.compile(r"(\d{1,6})([hdwy])")
_HOURS = {"h": 1, "d": 24, "w": 7 * 24, "y": 365 * 24}


def new_key() -> str:
    """A key of 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


@click.group(
    "key",
    epilog=examples(
        'steersman tenant key new acme --name ci --expires 90d --why "for the pipeline"',
        "steersman tenant key list acme",
        'steersman tenant key revoke acme ci --why "it was in a log"',
    ),
)
def key_group() -> None:
    """API keys, which the service knows by their hash alone."""


@key_group.command(
    "new",
    epilog=examples(
        'steersman tenant key new acme --name ci --expires 90d --why "for the pipeline"',
        "steersman tenant key new                       # a key and its hash, to paste; nothing is written",
    ),
)
@click.argument("tenant", required=False, shell_complete=complete_tenants)
@click.option("--name", default="", help="What the key is called in reports and quotas.")
@click.option("--expires", default="", help="When it ends: a span (90d, 12h, 4w, 1y) or a time (2027-01-31).")
@config_option
@why_option
@who_option
@json_option
def key_new(
    tenant: str | None, name: str, expires: str, file: Path, why: str, who: str, as_json: bool
) -> None:
    """Make a key. With TENANT its hash is put into the configuration, and the key is ready to be used.

    Without TENANT nothing is written: give the first line to the client, put the hash into the
    configuration. In either case the key is shown once and kept nowhere.
    """
    key = new_key()
    if tenant is None:
        if name or expires:
            raise click.UsageError("--name and --expires want a TENANT")
        _say({"key": key, "sha256": hash_key(key)}, as_json=as_json)
        return
    until = _time(expires) if expires else None
    found: dict[str, str] = {}

    def edits(config: Config) -> Sequence[Edit]:
        at = tenant_index(config, tenant)
        if name and any(key_id(each) == name for each in config.tenants[at].keys):
            raise click.UsageError(f"{tenant} has a key {name!r} already; choose another name")
        entry: dict[str, Any] = {}
        entry.update(_hashed(key, config))
        found.update(entry)
        if name:
            entry["name"] = name
        if until is not None:
            entry["expires"] = until
        return [Add(("tenants", at, "keys"), entry)]

    make(file, edits, why=asked_why(why), who=who, command=f"tenant key new {tenant}")
    _say({"key": key, **found, "id": name or next(iter(found.values()))[:12]}, as_json=as_json)


@key_group.command(
    "list", epilog=examples("steersman tenant key list acme", "steersman tenant key list acme --json")
)
@click.argument("tenant", shell_complete=complete_tenants)
@config_option
@json_option
def key_list(tenant: str, file: Path, as_json: bool) -> None:
    """List a tenant's keys: what each is called, until when it is valid, its hash's beginning."""
    config = load_or_exit(file)
    now = datetime.now(UTC)
    rows = [
        {
            "id": key_id(key),
            "state": _state(key, now),
            "not_before": key.not_before.isoformat() if key.not_before else None,
            "expires": key.expires.isoformat() if key.expires else None,
            "hash": (key.sha256 or key.hmac_sha256 or "")[:12],
        }
        for key in config.tenants[tenant_index(config, tenant)].keys
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        until = f"until {row['expires']}" if row["expires"] else "for good"
        click.echo(f"{row['id']:<24} {row['state']:<14} {until:<32} {row['hash']}")


@key_group.command("revoke", epilog=examples('steersman tenant key revoke acme ci --why "it was in a log"'))
@click.argument("tenant", shell_complete=complete_tenants)
@click.argument("key")
@config_option
@why_option
@who_option
@json_option
def key_revoke(tenant: str, key: str, file: Path, why: str, who: str, as_json: bool) -> None:
    """Revoke a key, by its name or its hash's first digits. It stays in the file, marked."""

    def edits(config: Config) -> Sequence[Edit]:
        at = tenant_index(config, tenant)
        return [Put(("tenants", at, "keys", key_index(config.tenants[at], key), "revoked"), True)]

    done = make(file, edits, why=asked_why(why), who=who, command=f"tenant key revoke {tenant} {key}")
    tell(done, file, as_json=as_json, nothing="it is revoked already")


def key_index(tenant: TenantConfig, key: str) -> int:
    """Which of a tenant's keys is meant; a wrong usage when none or several are."""
    named = [i for i, each in enumerate(tenant.keys) if each.name == key]
    if not named and len(key) >= HASH_DIGITS_MIN:
        digits = key.lower()
        named = [i for i, e in enumerate(tenant.keys) if (e.sha256 or e.hmac_sha256 or "").startswith(digits)]
    if len(named) == 1:
        return named[0]
    ids = ", ".join(key_id(each) for each in tenant.keys) or "none"
    what = "several keys are" if named else "no key is"
    raise click.UsageError(
        f"{what} {key!r}; {tenant.name} has {ids} (or give {HASH_DIGITS_MIN} digits of a hash)"
    )


def _hashed(key: str, config: Config) -> dict[str, str]:
    """Under the service's secret where this process can read it."""
    try:
        secret = key_secret(config.identity)
    except ConfigError:
        secret = None
    return {"sha256" if secret is None else "hmac_sha256": hash_key(key, secret)}


def _time(text: str) -> datetime:
    now = datetime.now(UTC).replace(microsecond=0)
    if span := _SPAN.fullmatch(text):
        hours = int(span[1]) * _HOURS[span[2]]
        if 0 < hours <= EXPIRES_DAYS_MAX * 24:
            return now + timedelta(hours=hours)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither a span such as 90d nor a time such as 2027-01-31", param_hint="--expires"
        ) from None
    found = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    if found <= now:
        raise click.BadParameter(f"{text} has passed", param_hint="--expires")
    return found


def _state(key: KeyConfig, now: datetime) -> str:
    if key.revoked:
        return "revoked"
    if key.not_before is not None and now < key.not_before:
        return "not yet valid"
    return "expired" if key.expires is not None and now >= key.expires else "valid"


def _say(found: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found))
        return
    width = max(7, *(len(name) + 2 for name in found))
    for name, value in found.items():
        click.echo(f"{name + ':':<{width}} {value}")

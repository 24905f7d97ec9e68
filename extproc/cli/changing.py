"""What the commands that change the configuration share: their options, the mistakes, the audit log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from extproc.cli.options import EXIT_CONFIG, print_json
from extproc.config.load import ConfigError
from extproc.config.model import Config
from extproc.history.change import Change, change
from extproc.history.changes import changes
from extproc.history.surgery import Edit, EditError, edited
from extproc.history.versions import HistoryError, user
from extproc.observe.audit import AuditLog

why_option = click.option("--why", default="", help="Why, for the history.")
who_option = click.option("--who", default="", help="Who, for the history; $USER when left out.")


def asked_why(why: str) -> str:
    """A change without a reason is refused."""
    if not why.strip():
        raise click.UsageError("say why with --why TEXT; it is kept in the history")
    return why.strip()


def make(
    file: Path, edits: Callable[[Config], Sequence[Edit]], *, why: str, who: str, command: str
) -> Change | None:
    """Edit the configuration; exits 2 with every mistake, 1 when it cannot be written."""
    return told(
        lambda: change(
            file,
            lambda text, config: edited(text, edits(config)),
            why=asked_why(why),
            command=command,
            who=who,
        ),
        file,
        who=who,
        why=why,
    )


def told(work: Callable[[], Change | None], file: Path, *, who: str, why: str) -> Change | None:
    """Do a change, write it into the audit log, and word what went wrong."""
    try:
        done = work()
    except ConfigError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        click.echo("nothing was changed", err=True)
        sys.exit(EXIT_CONFIG)
    except EditError as error:
        click.echo(f"{file}: {error}", err=True)
        sys.exit(EXIT_CONFIG)
    except (HistoryError, OSError) as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    if done is not None:
        _audit(done, who=who or user(), why=why)
    return done


def tell(
    done: Change | None, file: Path, *, as_json: bool, nothing: str = "it is so already", **facts: Any
) -> None:
    """Say which version was written, or that there was nothing to change."""
    if as_json:
        version = done.entry.version if done is not None else None
        print_json({"changed": done is not None, "file": str(file), "version": version, **facts})
    elif done is None:
        click.echo(f"nothing to change: {nothing}")
    else:
        click.echo(f"{file}: version {done.entry.version} written; a running service takes it within 2 s")


def tenant_index(config: Config, name: str) -> int:
    """Where a tenant stands in the file; a wrong usage when it does not."""
    for i, tenant in enumerate(config.tenants):
        if tenant.name == name:
            return i
    names = [tenant.name for tenant in config.tenants]
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    raise click.UsageError(f"no tenant {name!r}; there are {shown or 'none'}")


def _audit(done: Change, *, who: str, why: str) -> None:
    audit = AuditLog(done.after.audit)
    version = done.entry.version
    order: dict[str, Any] = {"stage": "written", "who": who, "why": why, "version": version}
    if done.before is not None:
        for name, facts in changes(done.before, done.after):
            audit.event(name, **facts, **order)
    audit.event("config_written", command=done.entry.command, sha256=done.entry.sha256, **order)
    audit.flush(last=True)

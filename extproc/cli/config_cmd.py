"""`steersman config`: the configuration's history, differences between versions, and rollback."""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path

import click
import msgspec

from extproc.cli.changing import asked_why, told, who_option, why_option
from extproc.cli.options import config_option
from extproc.history.change import rollback
from extproc.history.versions import Entry, History, HistoryError, Reading, read_text


@click.group("config")
def command() -> None:
    """The configuration's history: who changed what, and rollback."""


@command.command("history")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, without the texts.")
def history(file: Path, as_json: bool) -> None:
    """List the versions: number, time, who, by which command, why.

    Changes of an editor's are 'changed outside'. Exits 1 when an entry was altered or is missing.
    """
    reading = _read(file)
    if as_json:
        told_of = (msgspec.structs.asdict(each) for each in reading.entries)
        rows = [{name: value for name, value in each.items() if name != "text"} for each in told_of]
        click.echo(json.dumps(rows, indent=2))
    else:
        for each in reading.entries:
            click.echo(f"{each.version:>5}  {each.at}  {each.who or '?':<16} {each.command:<28} {each.why}")
    _complain(reading)


@command.command("diff")
@click.argument("old", type=int)
@click.argument("new", type=int, required=False)
@config_option
def diff(old: int, new: int | None, file: Path) -> None:
    """Show what changed between two versions, or between one and the file as it stands."""
    reading = _read(file)
    try:
        first = reading.version(old)
        second: Entry | None = reading.version(new) if new is not None else None
        text = second.text if second is not None else read_text(file)
    except (HistoryError, OSError) as error:
        raise click.ClickException(str(error)) from None
    for line in difflib.unified_diff(
        first.text.splitlines(keepends=True),
        text.splitlines(keepends=True),
        f"{file} version {old}",
        f"{file} version {new}" if second is not None else str(file),
    ):
        click.echo(line if line.endswith("\n") else f"{line}\n", nl=False)
    _complain(reading)


@command.command("rollback")
@click.argument("version", type=int)
@config_option
@why_option
@who_option
def rollback_(version: int, file: Path, why: str, who: str) -> None:
    """Write an earlier version's text again, as a new version; a running service takes it live."""
    done = told(lambda: rollback(file, version, why=asked_why(why), who=who), file, who=who, why=why)
    if done is None:
        click.echo(f"nothing to change: version {version} is what stands there")
        return
    if done.before is None:
        click.echo(f"what stood in {file} could not be used; it is kept as {file}.refused", err=True)
    click.echo(
        f"{file}: version {done.entry.version} written, the text of version {version}; "
        "a running service takes it within 2 s"
    )


def _read(file: Path) -> Reading:
    if not History(file).exists:
        raise click.ClickException(f"{file} has no history yet; the first change by a command begins it")
    try:
        return History(file).read()
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from None


def _complain(reading: Reading) -> None:
    for problem in reading.problems:
        click.echo(problem, err=True)
    if reading.problems:
        sys.exit(1)

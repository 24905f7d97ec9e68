"""`steersman config`: the configuration's history, differences between versions, and rollback."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

import click
import msgspec

from extproc.cli.changing import asked_why, tell, told, who_option, why_option
from extproc.cli.options import config_option, examples, json_option, print_json
from extproc.history.change import rollback
from extproc.history.versions import ConfigHistory, HistoryError, Version, VersionLog, read_text


@click.group(
    "config",
    epilog=examples(
        "steersman config history",
        "steersman config diff 4                        # version 4 against the file",
        'steersman config rollback 4 --why "the new weights starve batch"',
    ),
)
def command() -> None:
    """The configuration's history: who changed what, and rollback."""


@command.command(
    "history", epilog=examples("steersman config history", "steersman config history --json | jq '.[-1]'")
)
@config_option
@json_option
def history(file: Path, as_json: bool) -> None:
    """List the versions: number, time, who, by which command, why.

    Changes of an editor's are 'changed outside'; JSON leaves the texts out. Exits 1 when an entry was
    altered or is missing.
    """
    reading = _read(file)
    if as_json:
        told_of = (msgspec.structs.asdict(each) for each in reading.entries)
        rows = [{name: value for name, value in each.items() if name != "text"} for each in told_of]
        print_json(rows)
    else:
        for each in reading.entries:
            click.echo(f"{each.version:>5}  {each.at}  {each.who or '?':<16} {each.command:<28} {each.why}")
    _complain(reading)


@command.command("diff", epilog=examples("steersman config diff 3 4", "steersman config diff 4 --json"))
@click.argument("old", type=int)
@click.argument("new", type=int, required=False)
@config_option
@json_option
def diff(old: int, new: int | None, file: Path, as_json: bool) -> None:
    """Show what changed between two versions, or between one and the file as it stands."""
    reading = _read(file)
    try:
        first = reading.version(old)
        second: Version | None = reading.version(new) if new is not None else None
        text = second.text if second is not None else read_text(file)
    except (HistoryError, OSError) as error:
        raise click.ClickException(str(error)) from None
    lines = [
        line.rstrip("\n")
        for line in difflib.unified_diff(
            first.text.splitlines(keepends=True),
            text.splitlines(keepends=True),
            f"{file} version {old}",
            f"{file} version {new}" if second is not None else str(file),
        )
    ]
    if as_json:
        print_json({"file": str(file), "old": old, "new": new, "diff": lines})
    else:
        for line in lines:
            click.echo(line)
    _complain(reading)


@command.command(
    "rollback", epilog=examples('steersman config rollback 4 --why "the new weights starve batch"')
)
@click.argument("version", type=int)
@config_option
@why_option
@who_option
@json_option
def rollback_(version: int, file: Path, why: str, who: str, as_json: bool) -> None:
    """Write an earlier version's text again, as a new version; a running service takes it live."""
    done = told(lambda: rollback(file, version, why=asked_why(why), who=who), file, who=who, why=why)
    if done is None or as_json:
        tell(done, file, as_json=as_json, nothing=f"version {version} is what stands there")
        return
    if done.before is None:
        click.echo(f"what stood in {file} could not be used; it is kept as {file}.refused", err=True)
    click.echo(
        f"{file}: version {done.entry.version} written, the text of version {version}; "
        "a running service takes it within 2 s"
    )


def _read(file: Path) -> VersionLog:
    if not ConfigHistory(file).exists:
        raise click.ClickException(f"{file} has no history yet; the first change by a command begins it")
    try:
        return ConfigHistory(file).read()
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from None


def _complain(reading: VersionLog) -> None:
    for problem in reading.problems:
        click.echo(problem, err=True)
    if reading.problems:
        sys.exit(1)

"""Every `steersman …` line of README and docs is one that the command line takes."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest
from documents import PAGES, blocks, name_of

from extproc.cli import group


def lines() -> list[tuple[str, str]]:
    """(where, command line) of each, with continued lines joined."""
    found = []
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8")):
            if block.language in ("", "sh", "bash", "text"):
                text = block.text.replace("\\\n", " ")
                found += [
                    (f"{name_of(page)}:{block.line}: {line.strip()}", line.strip())
                    for line in text.splitlines()
                    if line.strip().startswith("steersman ")
                ]
    return found


LINES = lines()


def taken(line: str) -> None:
    """Parse a line to its last command, as a run would; raises click's errors."""
    words = shlex.split(line, comments=True)[1:]
    for stop in ("|", ">", "&", "&&"):
        words = words[: words.index(stop)] if stop in words else words
    command: click.Command = group
    context: click.Context | None = None
    name = "steersman"
    while True:
        context = command.make_context(name, list(words), parent=context)
        if not isinstance(command, click.Group):
            return
        words = [*context._protected_args, *context.args]
        if not words:
            assert command.invoke_without_command
            return
        found = command.get_command(context, words[0])
        if found is None:
            raise click.UsageError(f"no command {words[0]!r}")
        name, command, words = words[0], found, words[1:]


@pytest.mark.parametrize("line", [line for _, line in LINES], ids=[where for where, _ in LINES])
def test_a_documented_command_is_taken(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a reader types is understood; files that it names need not be there."""
    monkeypatch.chdir(tmp_path)
    try:
        taken(line)
    except click.exceptions.Exit:
        pass  # --help and --version are answered while they are parsed
    except click.UsageError as error:
        if "does not exist" not in error.format_message():
            raise


def test_a_wrong_line_is_seen() -> None:
    """An option, a command or an argument that is not there."""
    for line in ("steersman check --fiel x", "steersman fleet drian A", "steersman config diff"):
        with pytest.raises(click.UsageError):
            taken(line)
    assert len(LINES) > 100

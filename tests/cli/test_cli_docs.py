"""docs/cli.md is made from the commands' own help; with STEERSMAN_UPDATE_DOCS=1 this writes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import click
from documents import with_contents

from extproc.cli import COMMANDS, GROUPS, group
from extproc.cli.options import EXIT_CODES
from extproc.doctor.checks import CHECKS

DOC = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
#: One form, whatever terminal this runs in.
FORM: dict[str, Any] = {"terminal_width": 100, "max_content_width": 100, "color": False}
HEAD = """# The command line

There is one command, `steersman`. Every part of it has `--help` with examples, and this page is made from
those.

Results go to standard output, everything else to standard error. `--json` prints JSON for programs. Colours
and progress are shown only on a terminal; `NO_COLOR` turns colours off. `STEERSMAN_CONFIG` stands in for
`-f`, `STEERSMAN_ADDRESS` for `--address`.

A service of this machine is found by what it listens at (`service.listen`): its operators' socket is beside a
unix socket, and for a port in a private folder of its user (`$XDG_RUNTIME_DIR/steersman`, else
`/tmp/steersman-UID`). Only that user and root may open it. `--address unix:…orders.sock` names it itself.
From another machine `--address https://host:9090` is the admin port; the token comes from `STEERSMAN_TOKEN`,
further authorities from `SSL_CERT_FILE`.

(To make this page again: `STEERSMAN_UPDATE_DOCS=1 .venv/bin/pytest tests/cli/test_cli_docs.py`.)
"""
COMPLETION = """## Completion

`steersman completion bash|zsh|fish` prints a script; commands and options are completed, and the names of
tenants, pools, models, classes, experiments and endpoints from the configuration file.

```sh
eval "$(steersman completion bash)"                                  # bash, for this shell
steersman completion zsh > "${fpath[1]}/_steersman"                  # zsh
steersman completion fish > ~/.config/fish/completions/steersman.fish  # fish
```
"""
TOP = """## Keys of `steersman top`

| key | what it does |
|---|---|
| `q`, Ctrl-C | quits |
| `1` `2` `3` `4`, Tab, ← → | fleet, tenants, decisions, alerts |
| `s`, `r` | sorts by the next column; reverses |
| `/` | filters by a text (Enter keeps it, Esc clears it) |
| `p`, Space | pauses |
| ↑ ↓, PgUp, PgDn, Home, End | scroll |
"""


def page() -> str:
    """The whole document."""
    parts = [HEAD, _overview(), _exit_codes()]
    root = click.Context(group, info_name="steersman", **{**FORM, **group.context_settings})
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n")
        for name in names:
            parts += _sections(group, name, root)
    parts += [COMPLETION, TOP, _checks()]
    return with_contents("\n".join(parts).rstrip() + "\n")


def _sections(parent: click.Group, name: str, above: click.Context) -> Iterator[str]:
    command = parent.get_command(above, name)
    assert command is not None
    # A test that ran a command alone has left its help option behind, without the group's -h.
    command = copy(command)
    command._help_option = None
    context = click.Context(command, info_name=name, parent=above, **FORM)
    depth = "#" * (context.command_path.count(" ") + 2)
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    yield f"{depth} `{context.command_path}`\n\n```text\n{text}\n```\n"
    if isinstance(command, click.Group):
        for sub in command.list_commands(context):
            yield from _sections(command, sub, context)


def _overview() -> str:
    """Every command in a sentence, with a link to what it takes."""
    rows = [
        f"| [`steersman {name}`](#steersman-{name}) | {_sentence(name)} |"
        for names in GROUPS.values()
        for name in names
    ]
    return "\n".join(["## All commands", "", "| command | what it does |", "|---|---|", *rows, ""])


def _sentence(name: str) -> str:
    """The first sentence of a command's help."""
    command = group.get_command(click.Context(group), name)
    assert command is not None
    paragraph = (command.help or "").partition("\n\n")[0]
    return " ".join(paragraph.split())


def _exit_codes() -> str:
    rows = "\n".join(f"| {code} | {text} |" for code, text in EXIT_CODES.items())
    return f"## Exit codes\n\n| code | meaning |\n|---|---|\n{rows}\n"


def _checks() -> str:
    rows = "\n".join(f"| `{check.id}` | {check.about} |" for check in CHECKS)
    head = (
        "## What `steersman doctor` checks\n\nA finding has the check's name, what was seen and the mend.\n"
    )
    return f"{head}\n| check | what is well |\n|---|---|\n{rows}\n"


def test_the_page_is_what_the_commands_say() -> None:
    """Every command with its options and examples, the exit codes, doctor's checks."""
    if os.environ.get("STEERSMAN_UPDATE_DOCS"):
        DOC.write_text(page(), encoding="utf-8")
    assert DOC.read_text(encoding="utf-8") == page(), "write it anew: STEERSMAN_UPDATE_DOCS=1"


def test_the_page_has_every_command() -> None:
    """None is left out by a heading that lacks it."""
    text = DOC.read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f"### `steersman {name}`" in text
        assert f"| [`steersman {name}`](#steersman-{name}) | " in text

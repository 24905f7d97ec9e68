"""What all commands share: options, examples, exit codes, logging, how mistakes are shown.

Exit codes (EXIT_CODES): 0 done, 1 failed, 2 bad usage or a configuration that cannot be used. What a command
found out goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from extproc.config.places import DEFAULT_FILE, FILE_VARIABLE

if TYPE_CHECKING:
    from extproc.config.load import Problem
    from extproc.config.model import Config

#: Something was asked for and could not be done, or is not well.
EXIT_FAILED = 1
#: A configuration that cannot be used, and wrong usage.
EXIT_CONFIG = 2

#: What every command ends with.
EXIT_CODES = {
    0: "done; `doctor`, `check`: all is well (warnings are allowed); `--watch` and `top`: ended by you",
    1: "failed: nobody answers, no such tenant or request, something is not well, or it broke off",
    2: "wrong usage, or a configuration that cannot be used: every mistake is on standard error",
}

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def examples(*lines: str) -> str:
    """A command's `epilog`: lines to copy. `# …` behind one says what it does."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def print_json(value: Any) -> None:
    """One JSON document on standard output, indented."""
    click.echo(json.dumps(value, indent=2))


def fail(*lines: str, code: int = EXIT_FAILED) -> NoReturn:
    """Say on standard error what went wrong, and exit."""
    for line in lines:
        click.echo(line, err=True)
    sys.exit(code)


config_option = click.option(
    "-f",
    "--file",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=DEFAULT_FILE,
    show_default=True,
    envvar=FILE_VARIABLE,
    show_envvar=True,
    help="The configuration.",
)


def load_or_exit(path: Path, *, as_json: bool = False) -> Config:
    """Load a configuration; on mistakes print every one and exit 2.

    They go to standard error; with `as_json` to standard output, as `{"good": false, "problems": […]}`.
    """
    # Late: pydantic's models take a second to build on a slow core, and help needs none.
    from extproc.config.load import ConfigError, load

    try:
        return load(path)
    except ConfigError as error:
        if as_json:
            print_json({"good": False, "file": str(path), "problems": problems_json(error.problems)})
            sys.exit(EXIT_CONFIG)
        fail(*map(str, error.problems), code=EXIT_CONFIG)


def problems_json(problems: Iterable[Problem]) -> list[dict[str, Any]]:
    """Mistakes as plain values."""
    return [
        {"file": each.file, "line": each.line, "path": each.path, "message": each.message}
        for each in problems
    ]


def log_to_stderr(*, verbose: bool = False) -> None:
    """Plain lines on stderr."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname).1s %(name)s: %(message)s",
        stream=sys.stderr,
    )


def cache_options(about: str) -> Callable[[Any], Any]:
    """--cache and --cache-ttl, for commands that play a response cache; `about` says what it does there."""

    def options(command: Any) -> Any:
        ttl = click.option(
            "--cache-ttl",
            type=click.FloatRange(1),
            default=3_600.0,
            show_default=True,
            help="Seconds that answers live.",
        )
        size = click.option("--cache", type=click.FloatRange(0, min_open=True), metavar="MIB", help=about)
        return size(ttl(command))

    return options

"""Progress of long work: a bar on standard error where that is a terminal, lines or nothing elsewhere.

Owns the bar alone; what is said at each step is the command's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

Step = Callable[[str], None]


@contextmanager
def steps(what: str, total: int, *, lines: bool = False) -> Iterator[Step]:
    """Call what is given once for each of `total` steps, with a few words on it.

    Without a terminal each step is a line on standard error with `lines`, and nothing without.
    """
    if not sys.stderr.isatty():
        yield (lambda text: click.echo(text, err=True)) if lines else (lambda _: None)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("[dim]{task.fields[said]}[/]"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, said="")
        yield lambda text: bar.update(task, advance=1, said=escape(text))

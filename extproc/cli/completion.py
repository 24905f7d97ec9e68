"""`steersman completion`, and what a Tab is offered: names from the configuration file, read as plain YAML.

Owns the scripts' command, and the names of tenants, pools, models, classes, strategies, experiments and
endpoints. A Tab must not wait and never fails: a file that cannot be read offers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from extproc.cli.options import examples, fail
from extproc.config.plain import own_file, plain

#: The environment variable by which a shell asks this program for completions (click's way).
VARIABLE = "_STEERSMAN_COMPLETE"

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _entries(section: Any) -> Iterator[Mapping[str, Any]]:
    yield from (each for each in section if isinstance(each, dict)) if isinstance(section, list) else ()


def _names(section: Any) -> list[str]:
    return [str(each["name"]) for each in _entries(section) if "name" in each]


def _of(names: Callable[[Mapping[str, Any]], list[str]]) -> Complete:
    """A completion of names in the file."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = names(plain(Path(ctx.params["file"]) if ctx.params.get("file") else own_file()))
        return [CompletionItem(name) for name in dict.fromkeys(found) if name.startswith(incomplete)]

    return complete


def _experiments(config: Mapping[str, Any]) -> list[str]:
    found = config.get("experiments")
    return [str(name) for name in found] if isinstance(found, dict) else []


complete_tenants = _of(lambda config: _names(config.get("tenants")))
complete_pools = _of(lambda config: _names(config.get("pools")))
complete_classes = _of(lambda config: _names(config.get("classes")))
complete_experiments = _of(_experiments)
complete_models = _of(
    lambda config: (
        [str(name) for pool in _entries(config.get("pools")) for name in pool.get("models") or []]
        + _names(config.get("families"))
    )
)
complete_endpoints = _of(
    lambda config: [
        str(each["address"])
        for pool in _entries(config.get("pools"))
        for each in _entries(pool.get("endpoints"))
        if "address" in each
    ]
)


def complete_strategies(_ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The strategies there are; in a list a,b,c the last one is completed."""
    from extproc.config.plugins import strategy_names
    from extproc.core.catalogue import STRATEGY_NAMES

    before, comma, last = incomplete.rpartition(",")
    names = (*STRATEGY_NAMES, *strategy_names())
    return [CompletionItem(f"{before}{comma}{name}") for name in names if name.startswith(last)]


@click.command(
    "completion",
    epilog=examples(
        'eval "$(steersman completion bash)"                                # for this shell',
        "steersman completion bash > ~/.local/share/bash-completion/completions/steersman",
        'steersman completion zsh > "${fpath[1]}/_steersman"',
        "steersman completion fish > ~/.config/fish/completions/steersman.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print a shell's completion script.

    It completes commands and options, and the names of tenants, pools, models, classes, experiments and
    endpoints from the configuration that the command line names (else steersman.yaml in this folder).
    """
    from click.shell_completion import get_completion_class

    from extproc.cli import group

    found = get_completion_class(shell)
    if found is None:
        fail(f"click knows no completion for {shell}")
    click.echo(found(group, {}, "steersman", VARIABLE).source(), nl=False)

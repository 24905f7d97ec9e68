"""What other distributions add: objects behind entry points, each loaded when something names it.

Owns the looking up and the one error. What is never named is never imported, so that a plugin which is broken
stops nobody who does not use it. Knows nothing of what is added, nor of the rest, so that node agents use it
too. docs/plugins.md says how a package is made.
"""

from __future__ import annotations

import inspect
from importlib.metadata import EntryPoint, entry_points
from typing import Final, Literal

Kind = Literal["engine", "strategy"]

#: The entry points' groups.
GROUPS: Final[dict[Kind, str]] = {"engine": "steersman.engines", "strategy": "steersman.strategies"}


class PluginError(ValueError):
    """An entry point cannot be used; the message names it and its distribution, and says why."""


def names(kind: Kind) -> tuple[str, ...]:
    """The names that other distributions add here, sorted; nothing is imported."""
    return tuple(sorted({each.name for each in entry_points(group=GROUPS[kind])}))


def load(kind: Kind, name: str) -> object:
    """The object behind a name. KeyError where nobody has it, PluginError where it does not load."""
    found = list(entry_points(group=GROUPS[kind], name=name))
    if not found:
        raise KeyError(name)
    distributions = sorted({_distribution(each) for each in found})
    if len(distributions) > 1:
        raise PluginError(f"{kind} {name!r} is in two distributions: {', '.join(distributions)}")
    try:
        made = found[0].load()
    except Exception as error:
        raise unfit(kind, name, f"{type(error).__name__}: {error}") from error
    if inspect.isabstract(made):
        missing = ", ".join(sorted(made.__abstractmethods__))
        raise unfit(kind, name, f"its class lacks {missing}")
    return made


def unfit(kind: Kind, name: str, why: str) -> PluginError:
    """The error for an entry point that cannot be used."""
    found = next(iter(entry_points(group=GROUPS[kind], name=name)))
    return PluginError(f"{kind} {name!r} of the distribution {_distribution(found)} cannot be used: {why}")


def _distribution(found: EntryPoint) -> str:
    return f"{found.dist.name} {found.dist.version}" if found.dist is not None else "of no name"

"""Strategies of other distributions: found by their entry points, imported when one is named.

An entry point of the group `steersman.strategies` has the strategy's name and leads to its class, which
derives from `extproc.core.strategies.Strategy`. What is never named is never imported, so that a plugin which
is broken stops nobody who does not use it.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Final

from extproc.core.catalogue import STRATEGY_NAMES

GROUP: Final = "steersman.strategies"


class PluginError(ValueError):
    """A distribution's strategy cannot be used; names the distribution and says why."""


def strategy_names() -> tuple[str, ...]:
    """What other distributions add here, sorted; ours come first where names are equal."""
    return tuple(sorted({each.name for each in entry_points(group=GROUP)} - set(STRATEGY_NAMES)))


def load_strategy(name: str) -> bool:
    """Registers the strategy of that name, where a distribution has one; PluginError where it is broken."""
    found = list(entry_points(group=GROUP, name=name))
    if name in STRATEGY_NAMES or not found:
        return name in STRATEGY_NAMES
    distributions = sorted({_distribution(each) for each in found})
    if len(distributions) > 1:
        raise PluginError(f"strategy {name!r} is in two distributions: {', '.join(distributions)}")
    # Late: what decides takes a third of a check's time to import, and most files name none but ours.
    from extproc.core.strategies import register

    try:
        register(name, found[0].load())
    except Exception as error:
        said = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise PluginError(
            f"strategy {name!r} of the distribution {distributions[0]} cannot be used: {said}"
        ) from error
    return True


def _distribution(found: EntryPoint) -> str:
    return f"{found.dist.name} {found.dist.version}" if found.dist is not None else "of no name"

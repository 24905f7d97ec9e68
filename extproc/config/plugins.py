"""Strategies of other distributions, registered when one is named (extproc/plugins.py finds them).

An entry point's object is the strategy's class, which derives from `extproc.core.strategies.Strategy`.
"""

from __future__ import annotations

from extproc import plugins
from extproc.core.catalogue import STRATEGY_NAMES


def strategy_names() -> tuple[str, ...]:
    """What other distributions add here, sorted; ours come first where names are equal."""
    return tuple(name for name in plugins.names("strategy") if name not in STRATEGY_NAMES)


def load_strategy(name: str) -> bool:
    """Registers the strategy of that name, where a distribution has one; PluginError where it is broken."""
    if name in STRATEGY_NAMES:
        return True
    try:
        found = plugins.load("strategy", name)
    except KeyError:
        return False
    # Late: what decides takes a third of a check's time to import, and most files name none but ours.
    from extproc.core.strategies import register

    try:
        register(name, found)
    except Exception as error:
        said = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise plugins.unfit("strategy", name, said) from error
    return True

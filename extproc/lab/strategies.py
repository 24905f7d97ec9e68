"""A strategy by the name that reports have for it: in the registry, with what packages add.

Owns the one check of such a name. Every process that plays asks here first, so that a package's strategy is
registered in it.
"""

from __future__ import annotations

from collections.abc import Mapping

from extproc.config.plugins import load_strategy, strategy_names
from extproc.core.strategies import STRATEGIES, build
from extproc.core.strategies.parameter import Value
from extproc.sim.world import ORACLE
from extproc.sim.world.run import CLASSICS, registered


def check_strategy(name: str, given: Mapping[str, Value]) -> str:
    """Its name in the registry, where it is from now on.

    Raises ValueError for a name that nobody has or a parameter that it has not, PluginError for a package's
    fault.
    """
    own = registered(name)
    if own not in STRATEGIES and not load_strategy(own):
        known = ", ".join(dict.fromkeys([*STRATEGIES, *strategy_names(), *CLASSICS, ORACLE]))
        raise ValueError(f"no strategy {name!r}; there are {known}")
    build(own, given)
    return own

"""What other packages add: objects behind entry points, each loaded when something names it.

Owns the looking up and the one error. A package that is installed and that no file names is not imported.
Knows nothing of what is added, nor of the rest, so that node agents use it too. docs/plugins.md says how a
package is made.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points


class PluginError(Exception):
    """An entry point cannot be used; the message names it and its package, and says why."""


@cache
def _points(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def names(group: str) -> tuple[str, ...]:
    """The names that installed packages add to a group, sorted; nothing is imported."""
    return tuple(sorted(_points(group)))


def load(group: str, name: str) -> object:
    """The object behind a name. KeyError where no package has it, PluginError where it does not load."""
    point = _points(group)[name]
    try:
        return point.load()
    except Exception as error:
        raise unfit(group, name, f"{type(error).__name__}: {error}") from error


def unfit(group: str, name: str, why: str) -> PluginError:
    """The error for an entry point that cannot be used."""
    point = _points(group)[name]
    package = point.dist.name if point.dist is not None else "a package"
    return PluginError(f"{name!r} of group {group}, from {package} ({point.value}), cannot be used: {why}")

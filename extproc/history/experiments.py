"""Starting and stopping experiments by order: what changes in the configuration's file.

Owns the edits. Like every change they are checked whole, recorded with who and why, and then taken by the
services that read the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from extproc.config.model import Config
from extproc.history.change import Change, change
from extproc.history.surgery import Edit, Put, Remove, edited


def start_edits(config: Config, name: str, section: dict[str, Any]) -> Sequence[Edit]:
    """A new experiment. ValueError where there is one of that name."""
    if name in config.experiments:
        raise ValueError(f"there is an experiment {name!r} already; stop it, or take another name")
    return [Put(("experiments", name), section)]


def stop_edits(config: Config, name: str, keep: str | None) -> Sequence[Edit]:
    """An experiment gone, and where `keep` names an arm, its strategy made the pools' own."""
    found = config.experiments.get(name)
    if found is None:
        raise ValueError(
            f"no experiment {name[:63]!r} here; there are {', '.join(config.experiments) or 'none'}"
        )
    changes: list[Edit] = [Remove(("experiments", name))]
    if keep is None:
        return changes
    arm = found.arms.get(keep)
    if arm is None:
        raise ValueError(f"no arm {keep[:63]!r}; there are {', '.join(found.arms) or 'none'}")
    for i, pool in enumerate(config.pools):
        if pool.name not in found.pools:
            continue
        if pool.strategy != arm.strategy:
            changes.append(Put(("pools", i, "strategy"), arm.strategy))
        known = pool.strategy_parameters.get(arm.strategy, {})
        changes += [
            Put(("pools", i, "strategy_parameters", arm.strategy, parameter), value)
            for parameter, value in arm.parameters.items()
            if known.get(parameter) != value
        ]
    return changes


def written(file: Path, edits: Any, *, why: str, command: str, who: str) -> Change:
    """The file with the edits (`edits(config)`). Raises ValueError, ConfigError, EditError, HistoryError."""
    done = change(file, lambda text, config: edited(text, edits(config)), why=why, command=command, who=who)
    assert done is not None, "an experiment that comes or goes is a change"
    return done

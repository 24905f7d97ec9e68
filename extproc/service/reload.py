"""A changed configuration made ready to be taken: read, checked, compared and built, for a thread.

Owns all of a reload that grows with the file. What is left for the event loop is to put it in place.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from extproc.config.access import accesses
from extproc.config.engine_keys import engine_keys
from extproc.config.load import ConfigError, load
from extproc.config.model import Config
from extproc.config.restart import restart_needed
from extproc.config.secret import answer_keys
from extproc.config.site_keys import SiteKeys, site_keys
from extproc.core.policy import SchedulerSettings
from extproc.core.tenant import Directory
from extproc.history.changes import Event, changes
from extproc.service.build import directory_of, settings_of
from extproc.upstream import ReplicaAccess


@dataclass(frozen=True, slots=True)
class Reread:
    """What a configuration comes to. `events` are its changes of tenants, for the audit log."""

    config: Config
    directory: Directory
    settings: SchedulerSettings
    engine_keys: dict[str, str] = field(repr=False)
    accesses: dict[str, ReplicaAccess]
    site_keys: SiteKeys = field(default_factory=SiteKeys, repr=False)
    events: list[Event] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why a configuration cannot be taken; `restart`: it is well, but not for a service that runs."""

    problems: list[str]
    restart: bool = False


def built(config: Config) -> Reread:
    """Everything that requests go by. Raises ConfigError."""
    answer_keys(config.cache)  # so that a mistake there changes nothing
    keys = engine_keys(config)
    return Reread(
        config,
        directory_of(config),
        settings_of(config),
        keys,
        accesses(config, keys),
        site_keys=site_keys(config),
    )


def read_again(path: Path, old: Config, *, live: bool) -> Reread | Unusable:
    """The file beside what runs, or every reason why it cannot be taken."""
    try:
        read = built(load(path))
    except ConfigError as error:
        return Unusable([str(problem) for problem in error.problems])
    if changed := restart_needed(old, read.config, live=live):
        return Unusable([f"needs a restart: {', '.join(changed)}"], restart=True)
    return replace(read, events=changes(old, read.config))


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection meanwhile: a large file is some million objects, none of them garbage before
    the end, and each collection would hold every thread for as long as it looks at all of them."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()

"""A changed configuration made ready to be taken: read, checked, compared and built, for a thread.

Owns all of a reload that grows with the file. What is left for the event loop is to put it in place.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from extproc.config.engine_keys import engine_keys
from extproc.config.load import ConfigError, load
from extproc.config.model import Config
from extproc.config.restart import restart_needed
from extproc.core.families import Family
from extproc.core.scheduler import Policy
from extproc.core.tenant import Directory
from extproc.history.changes import Event, changes
from extproc.service.build import directory_of, families_of, policy_of


@dataclass(frozen=True, slots=True)
class Reread:
    """What a new configuration comes to. `events` are its changes of tenants, for the audit log."""

    config: Config
    directory: Directory
    families: dict[str, Family]
    policy: Policy
    events: list[Event]
    engine_keys: dict[str, str]


def read_again(path: Path, old: Config, *, live: bool) -> Reread | list[str]:
    """The file beside what runs, or every reason why it cannot be taken."""
    try:
        new = load(path)
        directory = directory_of(new)
        families = families_of(new)
        keys = engine_keys(new)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    if changed := restart_needed(old, new, live=live):
        return [f"needs a restart: {', '.join(changed)}"]
    return Reread(new, directory, families, policy_of(new), changes(old, new), keys)


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

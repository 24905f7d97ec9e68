"""A configuration file read as plain YAML, without the models: for commands that must not wait.

Owns no state and checks nothing: a file that cannot be read says nothing, and `steersman check` says why.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extproc.config.places import DEFAULT_FILE, FILE_VARIABLE, address_of

#: A larger file is not read so: it would take longer than what is asked of it.
FILE_BYTES_MAX = 2 * 1024 * 1024


def own_file() -> Path:
    """The configuration that commands read here: the environment's, else the one in this folder."""
    return Path(os.environ.get(FILE_VARIABLE) or DEFAULT_FILE)


def plain(file: Path) -> Mapping[str, Any]:
    """A file's top level; empty where it cannot be read."""
    import yaml  # late: most commands' help needs none

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if file.stat().st_size > FILE_BYTES_MAX:
            return {}
        found = yaml.load(file.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506 (both are safe loaders)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def service_of(file: Path) -> str | None:
    """The address of a file's service, as `--address` takes it; None where the file does not say."""
    service = plain(file).get("service")
    if not isinstance(service, dict):
        return None
    listen, run_dir = service.get("listen"), service.get("run_dir")
    first = listen[0] if isinstance(listen, list) and listen else listen
    if not isinstance(first, str) or not isinstance(run_dir, str | None):
        return None
    return address_of(first, run_dir)

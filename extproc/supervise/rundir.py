"""The folder of one run: what is rendered, sockets and logs. Private, and gone afterwards.

And the folder of what outlives runs.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def run_directory(kept: Path | None) -> Iterator[Path]:
    """A temporary folder (0700), removed at the end; or `kept`, made when missing and left there."""
    if kept is not None:
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield kept.resolve()
        return
    try:
        made = Path(tempfile.mkdtemp(prefix="steersman-"))
    except FileNotFoundError as error:
        # Python tells all the places that it tried, and no way out.
        raise OSError(0, f"{error.strerror}; name one that this user may write to", "--run-dir") from None
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def state_directory(file: Path, kept: Path | None) -> Path | None:
    """Where quotas outlive `up`: in the run folder that is kept, else beside the configuration (FILE.state).

    None where nothing can be written there.
    """
    folder = (
        kept.absolute() / "state" if kept is not None else file.absolute().with_name(f"{file.name}.state")
    )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None

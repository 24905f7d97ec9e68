"""The folder of one run: what is rendered, sockets and logs. Private, and gone afterwards."""

from __future__ import annotations

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

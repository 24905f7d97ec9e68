"""`steersman serve` whose clock is off, as other sites see it: by the seconds in the file that
STEERSMAN_TEST_CLOCK names.

Run as a process of its own: `python clocked_service.py CONFIG`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from extproc.cli.options import log_to_stderr
from extproc.config.load import load
from extproc.service.app import App


def wall() -> float:
    """This machine's time, and as much more."""
    return time.time() + float(Path(os.environ["STEERSMAN_TEST_CLOCK"]).read_text())


async def main(file: Path) -> None:
    """Serve until SIGTERM."""
    app = App(load(file))
    assert app.processor.sites is not None
    app.processor.sites._wall = wall
    app.handle_signals(file)
    await app.start()
    await app.run(config_file=file)


if __name__ == "__main__":
    log_to_stderr(verbose=False)
    asyncio.run(main(Path(sys.argv[1])))

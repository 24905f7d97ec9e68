"""`steersman serve`, but SIGUSR1 makes it tell Envoy of a cluster that Envoy refuses.

Our configuration's checks let none through, so it is put into the publisher by hand.
Run as a process of its own: `python poison_service.py CONFIG`.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from datetime import timedelta
from pathlib import Path

from extproc.cli.options import log_to_stderr
from extproc.config.load import load
from extproc.control.snapshot import FleetSnapshot, Resource, Resources
from extproc.service.app import App


def poison(app: App) -> None:
    """A connect timeout of 0, which the protocol's own rules forbid."""
    from extproc.control.resources import pool_cluster

    config = app.config
    clusters = [
        pool_cluster(config, pool, each, mode="ads") for pool in config.pools for each in config.classes
    ]
    clusters[0].connect_timeout = timedelta(0)
    publisher = app.roster.publisher
    assert publisher._snapshot is not None
    bad = Resources.of(Resource(cluster.name, bytes(cluster)) for cluster in clusters)
    publisher.publish(FleetSnapshot(bad, publisher._snapshot.endpoints))


async def main(file: Path) -> None:
    """Serve until SIGTERM."""
    app = App(load(file))
    app.handle_signals(file)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, poison, app)
    await app.start()
    await app.run(config_file=file)


if __name__ == "__main__":
    log_to_stderr(verbose=False)
    asyncio.run(main(Path(sys.argv[1])))

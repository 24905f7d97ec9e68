"""workers.py: Ctrl-C is whose the pool is, and no worker's."""

from __future__ import annotations

import signal

from extproc.lab.workers import worker_pool


def test_workers_ignore_ctrl_c_and_we_do_not() -> None:
    """From their first moment on, by what they are started with."""
    usual = signal.getsignal(signal.SIGINT)
    with worker_pool(1) as pool:
        assert pool.apply(signal.getsignal, (signal.SIGINT,)) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is usual is not signal.SIG_IGN

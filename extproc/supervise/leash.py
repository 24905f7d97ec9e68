"""Ties a process to its parent, then becomes the command: `python -I -S leash.py PARENT_PID COMMAND...`.

A supervisor killed with -9 runs no handler, so nothing of its own could stop the children; only the
kernel can. PR_SET_PDEATHSIG does, and it survives exec. It is set here, in a process of its own, and
not in subprocess's `preexec_fn`: that runs between fork and exec of a process with gRPC's threads.
Runs as a plain script (about 15 ms), so it imports nothing of the project.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Never returns: ends or becomes the command."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the leash was on
        sys.exit(1)
    try:
        os.execvp(command[0], command)  # noqa: S606 (an argument list of our own)
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])

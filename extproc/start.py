"""The console script `steersman`, before anything is imported.

Owns what Ctrl-C does meanwhile: it ends the process, as it ends any program that has nothing to put in order
yet, and shows no traceback of imports.
"""

from __future__ import annotations

# The interpreter has this one already; `signal` and `typing` take as long as it takes to press Ctrl-C.
import _signal as signal  # type: ignore[import-not-found]


def main() -> object:
    """Run the command that the arguments name."""
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from extproc.cli import main as command

    # click ends a command in order from here on; where a shell has said to ignore it, that stays.
    signal.signal(signal.SIGINT, usual)
    return command()


if __name__ == "__main__":
    main()

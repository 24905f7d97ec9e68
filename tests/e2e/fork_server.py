"""Starts the tests' child processes: a process that has imported the project forks them.

`python -m extproc.cli serve` spends 3 s of CPU on imports before it does anything; a fork of a process that
has them takes milliseconds, and is a process like any other from there on. Programs that are not ours (Envoy,
redis-server) are forked here too and then executed.

Whatever becomes of the tests, nothing is left running: the server ends when its client does (its socket
closes), and the kernel kills its children when it ends.

Run as `fork_server.py DESCRIPTOR MODULE...`: speaks JSON lines over the socket, one answer to each: `{"pid"}`
to `{"arguments", "out", "errors", "cwd", "environment"}`, the outputs being files' paths, and `{"code"}` to
`{"wait": pid}`, once that one has ended.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from typing import Any

from extproc.control import light

PR_SET_PDEATHSIG = 1


def main(link: socket.socket, preloaded: list[str]) -> None:
    """Serve until the client is gone; in a child, be what was asked for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # As in the service and in `envoy-config`, which install it before they import any of Envoy's messages.
    light.install()
    for name in preloaded:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # the children share these pages: no collection may write into them
    own = os.getpid()
    with link.makefile("rwb") as lines:
        for line in lines:
            order = json.loads(line)
            if "wait" in order:
                answer = {"code": os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])}
            elif pid := os.fork():
                answer = {"pid": pid}
            else:
                break
            lines.write(json.dumps(answer).encode() + b"\n")
            lines.flush()
        else:
            return
    link.close()
    become(order, own)


def become(order: dict[str, Any], parent: int) -> None:
    """Run the command in this process, which ends with its parent."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before it was asked for
        os._exit(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(order["cwd"])
    for descriptor, path in ((1, order["out"]), (2, order["errors"])):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(file, descriptor)
        os.close(file)
    command = order["arguments"]
    ours = command[0] == sys.executable and (command[1] == "-m" or not command[1].startswith("-"))
    if not ours:
        os.execvpe(command[0], command, order["environment"])  # noqa: S606 (an argument list of our own)
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.path.pop(0)  # this script's folder
    if command[1] == "-m":
        sys.argv = command[2:]
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(command[1])))  # noqa: PTH100, PTH120 (as Python does)
        sys.argv = command[1:]
        runpy.run_path(command[1], run_name="__main__")


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])

"""Drains an Envoy before its container is stopped: `drain.py 127.0.0.1:9901 SECONDS` (a preStop hook).

Says "not ready", lets endpoint lists forget this pod, then closes the listeners and waits until no request
runs, at most so many seconds in all. Exit code 0 either way: a hook that fails would only be logged.
Standard library alone.
"""

from __future__ import annotations

import re
import sys
import time
import urllib.request

#: What kube-proxy and load balancers may take until they send nothing more here.
FORGET_S = 5.0
LOOK_S = 0.5
_RUNNING = re.compile(r"^http\.[^ ]*downstream_rq_active: (\d+)", re.MULTILINE)


def _ask(admin: str, path: str, *, method: str = "GET") -> str:
    request = urllib.request.Request(f"http://{admin}{path}", method=method)
    with urllib.request.urlopen(request, timeout=2) as answer:  # noqa: S310
        body: bytes = answer.read(1024 * 1024)
    return body.decode(errors="replace")


def running(admin: str) -> int:
    """Requests under way, the admin's own not counted."""
    text = _ask(admin, "/stats?filter=downstream_rq_active")
    return sum(int(m[1]) for m in _RUNNING.finditer(text) if not m[0].startswith("http.admin"))


def drain(admin: str, seconds: float, *, forget_s: float = FORGET_S) -> None:
    """Returns when nothing runs any more, Envoy is gone, or time is up."""
    deadline = time.monotonic() + seconds
    try:
        _ask(admin, "/healthcheck/fail", method="POST")
        time.sleep(min(forget_s, seconds))
        _ask(admin, "/drain_listeners?graceful&skip_exit", method="POST")
        while time.monotonic() < deadline and running(admin):
            time.sleep(LOOK_S)
    except OSError as error:
        print(f"{admin}: {error}", file=sys.stderr)


if __name__ == "__main__":
    drain(sys.argv[1], float(sys.argv[2]))

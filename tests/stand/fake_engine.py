"""An engine as the launcher sees one: a process that loads, then answers its health page; or misbehaves.

Run as `python fake_engine.py PORT [load=SECONDS] [deaf] [child] [daemon] [silent] [exit=CODE]`. `deaf`
ignores SIGTERM, `child` leaves a process in its group, `daemon` one in its own session, `silent` hears none.
"""

from __future__ import annotations

import http.server
import os
import signal
import sys
import time


class Page(http.server.BaseHTTPRequestHandler):
    """Well, whatever is asked."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main(port: int, *traits: str) -> None:
    """Until it is ended."""
    told = dict(each.partition("=")[::2] for each in traits)
    print(f"engine at {port} with {os.environ.get('CARDS', 'no cards')}", flush=True)
    if "deaf" in told:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for kind in ("child", "daemon"):
        if kind in told and not os.fork():
            if kind == "daemon":
                os.setsid()
                if os.fork():
                    os._exit(0)
            while True:
                time.sleep(1)
    if "exit" in told:
        print("no such model", flush=True)
        sys.exit(int(told["exit"]))
    if "silent" in told:
        while True:
            time.sleep(1)
    time.sleep(float(told.get("load", "0")))
    http.server.HTTPServer(("127.0.0.1", port), Page).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])

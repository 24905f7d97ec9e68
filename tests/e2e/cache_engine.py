"""An engine that sends what a test says, piece by piece, and ends well, cuts off, or waits in between."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Told:
    """What the next answers are: pieces, and how they end."""

    def __init__(self) -> None:
        self.status = 200
        self.kind = "application/json"
        self.pieces: Sequence[bytes] = ()
        self.cut = False
        #: After so many pieces it waits for `goes_on`.
        self.holds_at: int | None = None


class CacheEngine:
    """Context manager; `requests` counts what came."""

    def __init__(self) -> None:
        self.told = Told()
        self.requests = 0
        self.goes_on = threading.Event()
        #: It has begun to wait.
        self.holding = threading.Event()
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                engine.requests += 1
                told = engine.told
                self.send_response(told.status)
                self.send_header("content-type", told.kind)
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for i, piece in enumerate(told.pieces):
                    if i == told.holds_at:
                        engine.holding.set()
                        engine.goes_on.wait(60)
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    self.wfile.flush()
                if told.cut:
                    self.close_connection = True
                    return
                self.wfile.write(b"0\r\n\r\n")

        class Listening(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """A client that left is no news."""

        self._server = Listening(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def tell(self, *pieces: bytes, kind: str = "application/json", **more: Any) -> None:
        """What the next answers are."""
        told = Told()
        told.pieces, told.kind = pieces, kind
        for name, value in more.items():
            setattr(told, name, value)
        self.goes_on.clear()
        self.holding.clear()
        self.told = told

    def __enter__(self) -> CacheEngine:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.goes_on.set()
        self._server.shutdown()
        self._server.server_close()

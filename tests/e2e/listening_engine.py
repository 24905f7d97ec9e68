"""A TLS server that keeps every byte that it was sent inside TLS, and answers nothing."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path


class ListeningEngine:
    """Context manager; `heard` is all that came after handshakes, `tried` how many connections did."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._context.set_alpn_protocols(["h2", "http/1.1"])
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.heard = b""
        self.tried = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> ListeningEngine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self.tried += 1
            # Whoever does not believe our certificate hangs up in the handshake.
            with contextlib.suppress(OSError):
                client.settimeout(10)
                with self._context.wrap_socket(client, server_side=True) as inside:
                    while data := inside.recv(65536):
                        self.heard += data

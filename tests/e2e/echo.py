"""An engine that answers with what it was sent, and raw HTTP/1.1 to it through a gateway."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gateway import KEYS, Gateway

KEY = {"authorization": f"Bearer {KEYS['acme']}", "content-type": "application/json"}


class Echo:
    """Upstreams that keep what they were sent: (headers, body) of each request, by address."""

    def __init__(self, count: int) -> None:
        self.seen: dict[str, list[tuple[dict[str, str], bytes]]] = {}
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), self._handler()) for _ in range(count)]
        self.addresses = [f"127.0.0.1:{server.server_address[1]}" for server in self.servers]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        echo = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                chunks = []
                if "content-length" in self.headers:
                    chunks.append(self.rfile.read(int(self.headers["content-length"])))
                else:
                    while size := int(self.rfile.readline(), 16):
                        chunks.append(self.rfile.read(size))
                        self.rfile.readline()
                    while self.rfile.readline().strip():
                        pass
                address = f"127.0.0.1:{self.server.server_address[1]}"
                headers = {name.lower(): value for name, value in self.headers.items()}
                echo.seen.setdefault(address, []).append((headers, b"".join(chunks)))
                answer = b'{"usage":{"prompt_tokens":11,"completion_tokens":3}}'
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def __enter__(self) -> Echo:
        for server in self.servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def last(self) -> tuple[str, dict[str, str], bytes]:
        """Address, headers and body of the only request since the last call."""
        ((address, (each,)),) = ((a, got) for a, got in self.seen.items() if got)
        self.seen.clear()
        return address, *each


def prompt(size: int = 10) -> bytes:
    """A completion's body of so many letters that are two bytes each."""
    body = {"model": "tiny-chat", "prompt": "ü" * size, "max_tokens": 5}
    return json.dumps(body, ensure_ascii=False).encode()


def raw(gateway: Gateway, data: bytes, *, slice_bytes: int = 65_536, timeout_s: float = 30.0) -> bytes:
    """Send bytes as they are, in slices; the answer's first bytes."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=timeout_s) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(data), slice_bytes):
            connection.sendall(data[at : at + slice_bytes])
        return connection.recv(65_536)


def head(framing: str) -> bytes:
    """A request's head."""
    lines = ["POST /v1/completions HTTP/1.1", "host: x", *(f"{k}: {v}" for k, v in KEY.items()), framing]
    return "\r\n".join([*lines, "", ""]).encode()


def chunked(body: bytes, size: int, *, trailers: bytes = b"") -> bytes:
    """A request with a chunked body."""
    parts = (body[at : at + size] for at in range(0, len(body), size))
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return head("transfer-encoding: chunked") + chunks + b"0\r\n" + trailers + b"\r\n"

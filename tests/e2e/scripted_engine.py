"""An engine that answers by a script of the test's, on any path and method, and keeps what it was sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """What an engine was sent."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Script:
    """One answer: `events` are a stream's, each with its name or "" before its data; else `body` is JSON, or
    bytes as they are. A stream that is `cut` ends without its end."""

    body: Any = field(default_factory=dict)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    events: Sequence[tuple[str, Any]] | None = None
    cut: bool = False


#: The status of an answer that never comes: the connection ends.
LOST = 0
#: TGI's, vLLM's and llama.cpp's page of health.
WELL = Script({"status": "ok"})


class ScriptedEngine:
    """Context manager; `seen` are its requests in order, without looks at its health."""

    def __init__(
        self, answer: Callable[[SeenRequest], Script], *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.answer = answer
        self.seen: list[SeenRequest] = []
        #: Answers wait for it.
        self.open = threading.Event()
        self.open.set()
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _served(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = self._read(headers)
                request = SeenRequest(self.command, self.path, headers, body)
                if self.path.endswith("/health"):
                    return self._whole(WELL)
                engine.seen.append(request)
                engine.open.wait(30)
                said = engine.answer(request)
                if said.status == LOST:
                    self.close_connection = True
                    return None
                return self._stream(said) if said.events is not None else self._whole(said)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _served  # noqa: N815 (the server looks for them)

            def _read(self, headers: Mapping[str, str]) -> bytes:
                if headers.get("transfer-encoding") != "chunked":
                    return self.rfile.read(int(headers.get("content-length", "0")))
                pieces = []
                while size := int(self.rfile.readline(), 16):
                    pieces.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(pieces)

            def _begin(self, said: Script, kind: str, more: Mapping[str, str]) -> None:
                self.send_response(said.status)
                for name, value in {"content-type": kind, **more, **said.headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            def _whole(self, said: Script) -> None:
                data = said.body if isinstance(said.body, bytes) else json.dumps(said.body).encode()
                self._begin(said, "application/json", {"content-length": str(len(data))})
                self.wfile.write(data)

            def _stream(self, said: Script) -> None:
                ends = {"transfer-encoding": "chunked"} if said.cut else {"connection": "close"}
                self._begin(said, "text/event-stream", ends)
                for name, event in said.events or ():
                    named = f"event: {name}\n".encode() if name else b""
                    data = event if isinstance(event, str) else json.dumps(event)
                    piece = named + b"data: " + data.encode() + b"\n\n"
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if said.cut else piece)
                    self.wfile.flush()
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                """Nothing: the tests read `seen`."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self.address = f"{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> ScriptedEngine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.open.set()
        self._server.shutdown()
        self._thread.join(5)
        self._server.server_close()

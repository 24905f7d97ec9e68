"""A server that knows one model only, as vLLM, SGLang and paid providers do, and keeps what it was sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: How long it waits for a test that has shut it, should that end without a word.
WAIT_S = 120.0


class Engine:
    """It answers while `open` is set, with `status` where that is not 200; it may want a `key`."""

    def __init__(self, model: str, *, key: str = "", adapters: Sequence[str] = ()) -> None:
        """`adapters` are names that it knows beside its model's."""
        self.model, self.key, self.names = model, key, {model, *adapters}
        self.seen: list[tuple[dict[str, str], bytes]] = []
        self.open = threading.Event()
        self.open.set()
        #: A stream stops after its first event while this is clear.
        self.flows = threading.Event()
        self.flows.set()
        self.status = 200
        #: What it counts of each request, and the words that it streams.
        self.usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(200 if self.path == "/health" else 404, {})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {k.lower(): v for k, v in self.headers.items()}
                engine.seen.append((headers, body))
                engine.open.wait(WAIT_S)
                asked = json.loads(body)
                if engine.key and headers.get("authorization") != f"Bearer {engine.key}":
                    self._answer(401, {"error": {"message": "wrong key"}})
                elif engine.status != 200:
                    self._answer(engine.status, {"error": {"message": "not now"}})
                elif asked.get("model") not in engine.names:
                    self._answer(404, {"error": {"message": "no such model"}})
                elif asked.get("stream"):
                    self._stream(asked)
                else:
                    message = {"role": "assistant", "content": engine.model}
                    choice = {"index": 0, "message": message, "finish_reason": "stop"}
                    self._answer(200, {"model": engine.model, "choices": [choice], "usage": engine.usage})

            def _answer(self, status: int, answer: dict[str, Any]) -> None:
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _stream(self, asked: dict[str, Any]) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("connection", "close")
                self.end_headers()
                told = {"object": "chat.completion.chunk", "model": engine.model}
                for i in range(engine.usage["completion_tokens"]):
                    choice = {"index": 0, "delta": {"content": f"w{i} "}, "finish_reason": None}
                    self._event({**told, "choices": [choice]})
                    engine.flows.wait(WAIT_S)
                self._event({**told, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
                if (asked.get("stream_options") or {}).get("include_usage"):
                    self._event({**told, "choices": [], "usage": engine.usage})
                self.wfile.write(b"data: [DONE]\n\n")
                self.close_connection = True

            def _event(self, event: dict[str, Any]) -> None:
                self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
                self.wfile.flush()

            def log_message(self, *_: object) -> None:
                """Nothing: the tests read `seen`."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Engine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.open.set()
        self.flows.set()
        self._server.shutdown()
        self._thread.join(5)
        self._server.server_close()

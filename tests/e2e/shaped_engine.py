"""An engine that answers as told by the request: in whose shape, how many tokens, with which error.

Raw HTTP/1.1 on an event loop in a thread, so that what was written when a client left is known exactly.

- `x-shape: vllm | sglang | llamacpp | tgi`   whose chunks
- `x-tokens`, `x-gap-ms`    how many tokens, and the time between two events
- `x-per-event`             tokens in one event
- `x-say`                   JSON: what is written in place of tokens, event by event, or a whole body
- `x-choices`               in each event so many choices, of so many tokens each
- `x-raw`                   JSON: texts that are written as they are after the tokens, in place of an end
- `x-kind`                  the answer's content type
- `x-after`                 so many tokens come before what is said
- `x-holds-at`              after so many tokens it waits for `goes_on`
"""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from typing import Any

from turn_shapes import TURNS, written

from tests.stand.waits import PATIENCE_S

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ntransfer-encoding: chunked\r\n%s\r\n"
PROMPT_TOKENS = 11
PORTS = 4


class ShapedEngine:
    """Context manager; `written` are the tokens sent for each request, by its `x-name`."""

    def __init__(self, *, fails: bool = False) -> None:
        """`fails`: it answers everything at once with an error inside a 200."""
        self._fails = fails
        #: What came through Envoy; the service's own looks came by themselves.
        self.requests = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.written: dict[str, int] = {}
        self.goes_on = threading.Event()
        self.asked: dict[str, tuple[dict[str, str], dict[str, Any]]] = {}
        #: It listens on several ports, as replicas of several pools.
        self.addresses: list[str] = []

    def __enter__(self) -> ShapedEngine:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(PATIENCE_S)
        return self

    async def _start(self) -> None:
        self._servers = [await asyncio.start_server(self._serve, "127.0.0.1", 0) for _ in range(PORTS)]
        self.addresses = [f"127.0.0.1:{s.sockets[0].getsockname()[1]}" for s in self._servers]

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _stop(self) -> None:
        for server in self._servers:
            server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                fields = (line.partition(":") for line in lines[1:] if line)
                headers = {name.lower(): value.strip() for name, _, value in fields}
                data = await reader.readexactly(int(headers.get("content-length", "0")))
                body = json.loads(data) if data else {}
                self.asked[headers.get("x-name", "")] = (headers, body)
                await self._answer(lines[0].split()[1], headers, body, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(
        self,
        path: str,
        headers: dict[str, str],
        body: dict[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.requests += "x-request-id" in headers
        if self._fails:
            headers["x-say"], headers["x-tokens"] = json.dumps([DEAD]), "0"
        streams = bool(body.get("stream")) or path == "/generate_stream"
        kind = b"text/event-stream" if streams else b"application/json"
        kind = headers.get("x-kind", "").encode() or kind
        packed = b"content-encoding: gzip\r\n" if "gzip" in headers.get("accept-encoding", "") else b""
        extra = "".join(f"{n}: {v}\r\n" for n, v in json.loads(headers.get("x-answer-headers", "{}")).items())
        writer.write(HEAD % (kind, packed + extra.encode()))
        tokens, said = int(headers.get("x-tokens", "0")), json.loads(headers.get("x-say", "null"))
        if not tokens and "x-raw" in headers:
            for text in json.loads(headers["x-raw"]):
                _chunk(writer, text.encode())
                await writer.drain()
        elif not streams:
            answer = json.dumps(said if said is not None else whole(headers, tokens)).encode()
            _chunk(writer, gzip.compress(answer) if packed else answer)
        elif path in TURNS:
            await self._turns(path, headers, reader, writer, tokens, said)
        else:
            await self._stream(headers, body, reader, writer, tokens, said)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _stream(
        self,
        headers: dict[str, str],
        body: dict[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        tokens: int,
        said: list[Any] | None,
    ) -> None:
        name, shape = headers.get("x-name", ""), headers.get("x-shape", "vllm")
        choices, raw = int(headers.get("x-choices", "1")), json.loads(headers.get("x-raw", "null"))
        each, gap_s = int(headers.get("x-per-event", "1")), float(headers.get("x-gap-ms", "0")) / 1e3
        holds_at = int(headers.get("x-holds-at", "0"))
        options = body.get("stream_options") or {}
        self.written[name] = 0
        for event in OPENING[shape] if said is None else ():
            _event(writer, chunk(shape, event))
        made = 0
        while made < tokens:
            step = min(each, tokens - made)
            made += step
            last = made == tokens and not CLOSING[shape]
            event = chunk(shape, TOKEN[shape], " word" * step, last=last)
            if options.get("continuous_usage_stats") and shape in ("vllm", "sglang"):
                event["usage"] = usage(made)
            event["choices"] *= choices
            _event(writer, event)
            await self._sent(name, made * choices, reader, writer, gap_s)
            if made == holds_at:
                await asyncio.to_thread(self.goes_on.wait)
        for event in said or ():
            _event(writer, event)
        if raw is not None:
            for text in raw:
                _chunk(writer, text.encode())
                await writer.drain()
            return
        if said is None:
            for event in CLOSING[shape]:
                _event(writer, chunk(shape, event, last=True))
            if options.get("include_usage"):
                _event(writer, {**chunk(shape, {}), "choices": [], "usage": usage(tokens)})
        _chunk(writer, b"data: [DONE]\n\n")

    async def _sent(
        self, name: str, made: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gap_s: float
    ) -> None:
        """So many tokens of a stream were written. Raises ConnectionError where its reader has left."""
        await writer.drain()
        if reader.at_eof():
            raise ConnectionError
        self.written[name] = made
        if gap_s:
            await asyncio.sleep(gap_s)

    async def _turns(
        self,
        path: str,
        headers: dict[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        tokens: int,
        said: list[Any] | None,
    ) -> None:
        name, gap_s = headers.get("x-name", ""), float(headers.get("x-gap-ms", "0")) / 1e3
        opening, token, closing = TURNS[path]
        self.written[name] = 0
        for event in opening(PROMPT_TOKENS):
            _chunk(writer, written(event))
        for made in range(1, tokens + 1):
            _chunk(writer, written(token()))
            await self._sent(name, made, reader, writer, gap_s)
        for event in closing(PROMPT_TOKENS, tokens) if said is None else said:
            _chunk(writer, written(event))


DEAD = {"error": {"message": "EngineCore is dead", "type": "InternalServerError", "code": 500}}

#: What opens a choice, what carries a token ("\0" is its text), and what closes it without one.
OPENING: dict[str, list[Any]] = {
    "vllm": [{"role": "assistant", "content": ""}],
    "sglang": [{"role": "assistant", "content": "", "reasoning_content": None, "tool_calls": None}],
    "llamacpp": [{"role": "assistant", "content": None}],
    "tgi": [],
}
TOKEN: dict[str, Any] = {
    "vllm": {"content": "\0"},
    "sglang": {"role": None, "content": "\0", "reasoning_content": None, "tool_calls": None},
    "llamacpp": {"content": "\0"},
    "tgi": {"role": "assistant", "content": "\0"},
}
CLOSING: dict[str, list[Any]] = {
    "vllm": [],
    "sglang": [{"role": None, "content": None, "reasoning_content": None, "tool_calls": None}],
    "llamacpp": [{}],
    "tgi": [],
}


def chunk(shape: str, delta: dict[str, Any], text: str = "", *, last: bool = False) -> dict[str, Any]:
    """One chat chunk."""
    delta = {key: text if value == "\0" else value for key, value in delta.items()}
    choice = {"index": 0, "delta": delta, "finish_reason": "length" if last else None}
    extra: dict[str, Any] = {"usage": None} if shape == "tgi" else {}
    about = {"id": "chatcmpl-17", "object": "chat.completion.chunk", "created": 1764441111, "model": "m"}
    return {**about, "choices": [choice], **extra}


def usage(tokens: int) -> dict[str, int]:
    """OpenAI's usage."""
    total = PROMPT_TOKENS + tokens
    return {"prompt_tokens": PROMPT_TOKENS, "total_tokens": total, "completion_tokens": tokens}


def whole(headers: dict[str, str], tokens: int) -> dict[str, Any]:
    """A chat completion."""
    said = int(headers.get("x-claims", tokens))
    message = {"role": "assistant", "content": " word" * tokens}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"object": "chat.completion", "model": "m", "choices": [choice], "usage": usage(said)}


def _event(writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
    # As engines write JSON: without blanks.
    _chunk(writer, b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n")


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))

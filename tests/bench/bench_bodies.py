"""The worst bodies of the allowed size: what reading one keeps everybody else waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator

from rows import Row

from extproc.core.reading import parse
from extproc.core.request import Request, prefix_of
from extproc.core.routes import ROUTES

BODY_BYTES = 4 * 1024 * 1024 - 64
AIM_MS = 20.0
#: The path, and how a body of it is filled.
BODIES = {
    "embeddings": ("/v1/embeddings", b'{"input":[', b'""', b"]}"),
    "texts in a document": ("/v1/rerank", b'{"query":"x","documents":[{"content":[', b'""', b"]}]}"),
    "no documents": ("/v1/rerank", b'{"query":"x","texts":[{"messages":[', b"1", b"]}]}"),
    "long numbers": ("/v1/messages", b'{"messages":[{"content":[{"text":[', b"1" * 4000, b"]}]}]}"),
    "messages": ("/v1/chat/completions", b'{"messages":[', b"{}", b"]}"),
    "parts": ("/v1/chat/completions", b'{"messages":[{"content":[', b'{"text":""}', b"]}]}"),
    "lists of ids": ("/v1/completions", b'{"prompt":[', b"[]", b"]}"),
    "token ids": ("/v1/completions", b'{"prompt":[', b"1", b"]}"),
    "texts": ("/v1/completions", b'{"prompt":[', b'""', b"]}"),
    "fields": ("/generate", b'{"inputs":"x",', b'"a":1', b"}"),
    "escaped text": ("/generate", b'{"inputs":"', b"\\u00e9", b'"}'),
}


def run() -> Iterator[Row]:
    """Yield milliseconds of the thread's own time, the best of five."""
    for name, (path, before, unit, after) in BODIES.items():
        count = (BODY_BYTES - len(before) - len(after)) // (len(unit) + 1)
        body = before + b",".join([unit] * count) + after
        best = float("inf")
        for _ in range(5):
            began = time.thread_time()
            request = parse(ROUTES[path][0], body)
            if isinstance(request, Request):
                prefix_of(request)
            best = min(best, time.thread_time() - began)
        yield Row(f"bodies: 4 MiB of {name}", best * 1e3, "ms", AIM_MS)

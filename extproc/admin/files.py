"""The page's files, and the charts' library out of its own package.

Owns what is served under / and /static. Only files of a list made at the start are served; no path of a
request is ever joined to a folder. Nothing is fetched from anywhere else.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from aiohttp import web

STATIC = Path(str(resources.files("extproc.admin"))) / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: The charts' library changes with its package alone; the page's own files are asked for again each time.
VENDOR_AGE_S = 86_400
GZIP_LEVEL = 6


@dataclass(frozen=True, slots=True)
class File:
    """One file as it is sent."""

    body: bytes
    packed: bytes
    kind: str
    etag: str
    age_s: int


class Files:
    """All files by their path under /static; "index.html" is the page."""

    def __init__(self) -> None:
        self._paths = {
            path.relative_to(STATIC).as_posix(): path
            for path in sorted(STATIC.rglob("*"))
            if path.suffix in TYPES
        }
        plotly = find_spec("plotly")
        if plotly is not None and plotly.origin is not None:
            charts = Path(plotly.origin).parent / "package_data" / "plotly.min.js"
            if charts.is_file():
                self._paths["vendor/plotly.min.js"] = charts
        self._read: dict[str, File] = {}
        self._lock = asyncio.Lock()

    async def page(self, request: web.Request) -> web.StreamResponse:
        """The page itself."""
        return await self._send(request, "index.html")

    async def static(self, request: web.Request) -> web.StreamResponse:
        """One of its files."""
        return await self._send(request, request.match_info["path"])

    async def _send(self, request: web.Request, path: str) -> web.StreamResponse:
        source = self._paths.get(path)
        if source is None:
            raise web.HTTPNotFound(text="no such file")
        found = self._read.get(path) or await self._load(source, path)
        headers = {
            "ETag": found.etag,
            "Cache-Control": f"private, max-age={found.age_s}" if found.age_s else "no-cache",
            "Vary": "Accept-Encoding",
        }
        if found.etag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
        headers["Content-Type"] = found.kind
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            return web.Response(body=found.packed, headers={**headers, "Content-Encoding": "gzip"})
        return web.Response(body=found.body, headers=headers)

    async def _load(self, source: Path, path: str) -> File:
        async with self._lock:
            found = self._read.get(path)
            if found is None:
                # Five megabytes take a third of a second to pack.
                found = self._read[path] = await asyncio.to_thread(_read, source, path)
            return found


def _read(source: Path, path: str) -> File:
    body = source.read_bytes()
    return File(
        body=body,
        packed=gzip.compress(body, GZIP_LEVEL, mtime=0),
        kind=TYPES[source.suffix],
        etag=f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        age_s=VENDOR_AGE_S if path.startswith("vendor/") else 0,
    )

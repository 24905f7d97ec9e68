"""A Kubernetes API of our own: lists and patches pods, and knows nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from extproc.scaling.pods import COST
from tests.stand.web_server import listening


def pod(name: str, ip: str = "", **annotations: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "annotations": annotations}, "status": {"podIP": ip}}


class ClusterApi:
    """Lists and patches pods for who shows the token, page by page; keeps what it was asked."""

    def __init__(self, *pods: dict[str, Any]) -> None:
        self.pods = {each["metadata"]["name"]: each for each in pods}
        self.asked: list[str] = []
        self.status = 200
        self.page = 2
        #: Who asks waits while this is clear.
        self.open = asyncio.Event()
        self.open.set()
        self.url = ""

    async def list(self, request: web.Request) -> web.Response:
        assert request.headers["authorization"] == "Bearer the-account"
        await self.open.wait()
        self.asked.append(f"list {request.query['labelSelector']}")
        begin = int(request.query.get("continue", "0"))
        items = list(self.pods.values())
        more = {"continue": str(begin + self.page)} if begin + self.page < len(items) else {}
        found = {"items": items[begin : begin + self.page], "metadata": more}
        return web.json_response(found if self.status == 200 else {}, status=self.status)

    async def patch(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        assert request.headers["content-type"] == "application/merge-patch+json"
        self.asked.append(f"patch {name}")
        if name not in self.pods:
            return web.json_response({}, status=404)
        annotations = self.pods[name]["metadata"]["annotations"]
        for key, value in json.loads(await request.text())["metadata"]["annotations"].items():
            if value is None:
                annotations.pop(key, None)
            else:
                annotations[key] = value
        return web.json_response(self.pods[name])

    def costs(self) -> dict[str, str]:
        return {
            name: each["metadata"]["annotations"][COST]
            for name, each in self.pods.items()
            if COST in each["metadata"]["annotations"]
        }


@asynccontextmanager
async def cluster(*pods: dict[str, Any]) -> AsyncIterator[ClusterApi]:
    found = ClusterApi(*pods)
    app = web.Application()
    app.router.add_get("/api/v1/namespaces/llm/pods", found.list)
    app.router.add_patch("/api/v1/namespaces/llm/pods/{name}", found.patch)
    async with listening(app) as address:
        found.url = f"http://{address}"
        yield found

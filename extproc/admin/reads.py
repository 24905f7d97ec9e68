"""The API's answers: what reading may see. Nothing here changes anything."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from aiohttp import web

from extproc.admin.answers import array, encoded, error_answer, json_answer, mapping, streamed, whole
from extproc.admin.slices import sliced
from extproc.admin.sources import Order, Sources
from extproc.admin.views import (
    TenantRows,
    decisions_after,
    endpoint_view,
    pools_of,
    state_of,
    strategies_view,
)
from extproc.core.decisions import NOTED_MAX
from extproc.core.endpoint import Endpoint
from extproc.observe.decisions import SHOWN_MAX
from extproc.observe.tenants import TENANTS_MAX

#: A page of a list: by default, and at the most.
PAGE, PAGE_MAX = 100, 1_000


async def ordered(order: Order, body: object) -> bytes:
    """An operator's command's answer. ValueError is the caller's mistake."""
    answer = order(msgspec.json.encode(body))
    return await answer if inspect.isawaitable(answer) else answer


class Reads:
    """Handlers of one service."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._rows = TenantRows(sources.scheduler, sources.stats)

    async def status(self, request: web.Request) -> web.StreamResponse:
        """All that `steersman status --json` shows."""
        return await streamed(request, self._status())

    async def _status(self) -> AsyncIterator[bytes]:
        sources = self._sources
        now_ns = sources.clock()
        yield msgspec.json.encode(sources.brief())[:-1]
        yield b',"tenants":'
        async for part in mapping(self._lines(now_ns)):
            yield part
        yield b',"endpoints":'
        async for part in array(self._endpoints(list(sources.scheduler.fleet.endpoints), now_ns)):
            yield part
        yield b',"decisions":'
        recent, _ = decisions_after(sources, 0, limit=NOTED_MAX)
        placed = [each for each in recent if each["kind"] == "placed"]
        yield msgspec.json.encode(placed[: -SHOWN_MAX - 1 : -1])
        yield b',"use":{"tenants":'
        known = sources.tenants()
        async for part in mapping(self._uses(list(known.values())[:TENANTS_MAX], now_ns)):
            yield part
        yield b',"left_out":%d}}' % max(0, len(known) - TENANTS_MAX)

    async def fleet(self, request: web.Request) -> web.StreamResponse:
        """Endpoints by page, of one pool or in one state when asked."""
        pool, state = request.query.get("pool"), request.query.get("state")
        offset = whole(request, "offset", default=0, low=0, high=10_000_000)
        limit = whole(request, "limit", default=PAGE, low=1, high=PAGE_MAX)
        return await streamed(request, self._fleet(pool, state, offset, limit))

    async def _fleet(
        self, pool: str | None, state: str | None, offset: int, limit: int
    ) -> AsyncIterator[bytes]:
        scheduler, now_ns = self._sources.scheduler, self._sources.clock()
        found = [
            endpoint
            async for endpoint in sliced(list(scheduler.fleet.endpoints))
            if (pool is None or endpoint.pool == pool)
            and (state is None or state_of(endpoint, now_ns=now_ns) == state)
        ]
        yield b'{"total":%d,"offset":%d,"pools":' % (len(found), offset)
        yield msgspec.json.encode(pools_of(scheduler.fleet)) + b',"endpoints":'
        async for part in array(self._endpoints(found[offset : offset + limit], now_ns)):
            yield part
        yield b"}"

    async def endpoint(self, request: web.Request) -> web.StreamResponse:
        """One endpoint."""
        address = request.match_info["address"]
        for endpoint in self._sources.scheduler.fleet.endpoints:
            if endpoint.address == address:
                now_ns = self._sources.clock()
                return json_answer(endpoint_view(endpoint, self._sources.stats, now_ns=now_ns))
        return error_answer(404, "no_endpoint", f"no endpoint {address[:80]!r} in the fleet")

    async def tenants(self, request: web.Request) -> web.StreamResponse:
        """Tenants by page, in the configuration's order; those whose name contains `q` when asked."""
        offset = whole(request, "offset", default=0, low=0, high=10_000_000)
        limit = whole(request, "limit", default=PAGE, low=1, high=PAGE_MAX)
        return await streamed(request, self._tenants(request.query.get("q", ""), offset, limit))

    async def _tenants(self, part_of_name: str, offset: int, limit: int) -> AsyncIterator[bytes]:
        now_ns = self._sources.clock()
        found = [each for each in self._sources.tenants().values() if part_of_name in each.name]
        yield b'{"total":%d,"offset":%d,"tenants":' % (len(found), offset)

        async def rows() -> AsyncIterator[dict[str, Any]]:
            async for tenant in sliced(found[offset : offset + limit]):
                yield self._rows.row(tenant, now_ns=now_ns)

        async for part in array(rows()):
            yield part
        yield b"}"

    async def tenant(self, request: web.Request) -> web.StreamResponse:
        """One tenant: figures since the start, and all its limits."""
        name = request.match_info["name"]
        tenant = self._sources.tenants().get(name)
        if tenant is None:
            return error_answer(404, "no_tenant", f"no tenant {name[:63]!r} here")
        now_ns = self._sources.clock()
        line = self._sources.stats.tenants.get(name)
        figures = line.figures(now_ns=now_ns) if line is not None else {}
        return json_answer({"name": name, **self._rows.use(tenant, now_ns=now_ns), **figures})

    async def decisions(self, request: web.Request) -> web.StreamResponse:
        """The last decisions, the newest first."""
        limit = whole(request, "limit", default=PAGE, low=1, high=NOTED_MAX)
        found, _ = decisions_after(self._sources, 0, limit=limit)
        return json_answer(
            {"count": self._sources.scheduler.dispatcher.decisions.count, "decisions": found[::-1]}
        )

    async def explain(self, request: web.Request) -> web.StreamResponse:
        """Why a request went where it went."""
        try:
            return encoded(await ordered(self._sources.orders["Explain"], {"id": request.match_info["id"]}))
        except ValueError as error:
            return error_answer(404, "no_decision", str(error))

    async def experiments(self, _: web.Request) -> web.StreamResponse:
        """All experiments with their figures."""
        return encoded(await ordered(self._sources.orders["Experiment"], {}))

    async def strategies(self, _: web.Request) -> web.StreamResponse:
        """Every strategy, its parameters, and who uses it."""
        return json_answer({"strategies": strategies_view(self._sources.scheduler.fleet)})

    async def history(self, _: web.Request) -> web.StreamResponse:
        """The last minutes, a point a second."""
        return json_answer({"points": list(self._sources.live_series.points)})

    async def alerts(self, _: web.Request) -> web.StreamResponse:
        """What is wrong, by the rules."""
        return json_answer(await self._sources.alerts())

    async def scaling(self, request: web.Request) -> web.StreamResponse:
        """Pools that scale, their plans of late, and what binds each pool."""
        points = whole(request, "points", default=PAGE, low=1, high=PAGE_MAX)
        return encoded(await self._sources.scaling(points))

    async def report(self, request: web.Request) -> web.StreamResponse:
        """What the analytics say of a span."""
        return json_answer(await self._sources.report(dict(request.query)))

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        """For Prometheus."""
        body, kind = await self._sources.exposition(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": kind})

    async def _lines(self, now_ns: int) -> AsyncIterator[tuple[str, Any]]:
        async for name, line in sliced(list(self._sources.stats.tenants.items())):
            yield name, line.figures(now_ns=now_ns)

    async def _endpoints(self, endpoints: list[Endpoint], now_ns: int) -> AsyncIterator[dict[str, Any]]:
        async for endpoint in sliced(endpoints):
            yield endpoint_view(endpoint, self._sources.stats, now_ns=now_ns)

    async def _uses(self, tenants: list[Any], now_ns: int) -> AsyncIterator[tuple[str, Any]]:
        async for tenant in sliced(tenants):
            yield tenant.name, self._rows.use(tenant, now_ns=now_ns)

"""Answers `steersman explain`: why a request went where it went, or where one would go.

Owns the command's message and how a given request is read: as the service reads it from Envoy. Nothing here
changes anything, and no quota is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
from msgspec.structs import replace

from extproc.core.decisions import DECISIONS_KEPT_MAX
from extproc.core.outcome import Reject
from extproc.core.reading import parse
from extproc.core.routes import NO_ROUTES, Routes, RouteWork, find_route
from extproc.core.scheduler import Scheduler
from extproc.core.tenant import Tenant

#: What an unknown id's message repeats of it.
ID_SHOWN_MAX = 80


class Explanations:
    """Answers for one scheduler."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        tenants: Callable[[], Mapping[str, Tenant]],
        clock: Callable[[], int],
        extra: Callable[[], Routes] = lambda: NO_ROUTES,
    ) -> None:
        """`extra` are the routes that are served beside the usual ones."""
        self.scheduler = scheduler
        self._tenants, self._clock, self._extra = tenants, clock, extra

    def explain(self, body: bytes) -> bytes:
        """`{"id": …}`, or `{"tenant", "path", "body", "model"}`; answers `core.explain.Explanation.plain`.

        `body` is the request's own, as text; `model` counts where it names none, as the x-model header does.
        `tenant` may be left out where there is only one. ValueError says what is wrong.
        """
        order = msgspec.json.decode(body, type=_ExplainOrder)
        now_ns = self._clock()
        if order.id:
            found = self.scheduler.explained(order.id, now_ns=now_ns)
            if found is None:
                raise ValueError(
                    f"no request {order.id[:ID_SHOWN_MAX]!r} waits here or is among the last "
                    f"{DECISIONS_KEPT_MAX} decisions of this service"
                )
            return msgspec.json.encode(found.plain())
        tenant = self._tenant(order.tenant)
        method = "POST" if order.body else "GET"
        route = find_route(method, order.path, self._extra())
        if route is None or route.work is RouteWork.HERE:
            raise ValueError(f"nothing is decided for {method} {order.path[:ID_SHOWN_MAX]}")
        request = parse(route, order.body.encode())
        if isinstance(request, Reject):
            raise ValueError(f"the request would get {request.status}: {request.message}")
        if request.model is None and order.model:
            request = replace(request, model=order.model)
        return msgspec.json.encode(self.scheduler.explain(request, tenant, now_ns=now_ns).plain())

    def _tenant(self, name: str | None) -> Tenant:
        tenants = self._tenants()
        if name is None and len(tenants) == 1:
            return next(iter(tenants.values()))
        if name is None:
            raise ValueError(f"whose request? There are {len(tenants)} tenants; name one with --tenant")
        if name not in tenants:
            raise ValueError(f"no tenant {name[:63]!r} here")
        return tenants[name]


class _ExplainOrder(msgspec.Struct):
    id: str = ""
    tenant: str | None = None
    path: str = "/v1/chat/completions"
    body: str = ""
    model: str | None = None

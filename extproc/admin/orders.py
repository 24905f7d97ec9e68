"""The API's orders: what only writing may do. Each is noted for the audit log, with whose token it was.

Owns the orders' bodies. What an order does is the service's.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import msgspec
from aiohttp import web

from extproc.admin.answers import body_of, encoded, error_answer, json_answer
from extproc.admin.guard import Access
from extproc.admin.reads import ordered
from extproc.admin.sources import Sources
from extproc.config.types import NAME_PATTERN

#: Who asks: the server sets it before each request.
ACCESS: ContextVar[Access] = ContextVar("access")
#: The orders of operators' commands: those that only look, and those that change something.
LOOKING = ("Tenant", "Shadow", "Explain", "Experiment", "Report", "Alerts", "Scaling", "Cache")
CHANGING = ("Drain", "ClearFaults", "Credit", "PurgeCache")
#: What of an order is noted.
NOTED = ("address", "draining", "tenant", "model", "pool", "key", "older_s", "all")
#: A reason for the history, in characters.
WHY_MAX = 500


class Orders:
    """Handlers of one service."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    async def drain(self, request: web.Request) -> web.StreamResponse:
        """No new requests to an endpoint; those that run end."""
        return await self._fleet(request, "drain", "Drain", draining=True)

    async def undrain(self, request: web.Request) -> web.StreamResponse:
        """It takes requests again."""
        return await self._fleet(request, "undrain", "Drain", draining=False)

    async def clear_faults(self, request: web.Request) -> web.StreamResponse:
        """Its GPU was seen to: faults that stay until somebody says so end."""
        return await self._fleet(request, "clear_faults", "ClearFaults")

    async def _fleet(
        self, request: web.Request, what: str, order: str, **facts: object
    ) -> web.StreamResponse:
        await body_of(request, dict[str, Any])
        address = request.match_info["address"]
        answer = msgspec.json.decode(
            await ordered(self._sources.orders[order], {"address": address, **facts})
        )
        if not answer["found"]:
            return error_answer(404, "no_endpoint", f"no endpoint {address[:80]!r} in the fleet")
        self._note(request, what, address=address)
        return json_answer({"address": address, **facts, **answer})

    async def order(self, request: web.Request) -> web.StreamResponse:
        """An order as the operators' socket takes it, for `--address https://…`."""
        name = request.path.rpartition("/")[2]
        body = await body_of(request, dict[str, Any])
        answer = await ordered(self._sources.orders[name], body)
        if name in CHANGING:
            facts = {key: body[key] for key in NOTED if key in body}
            self._note(request, name.lower(), **facts)
        return encoded(answer)

    async def start_experiment(self, request: web.Request) -> web.StreamResponse:
        """Write an experiment into the configuration, which the service then takes."""
        order = await body_of(request, _Start)
        name = request.match_info["name"]
        if not NAME_PATTERN.fullmatch(name):
            return error_answer(400, "bad_request", f"{name[:63]!r} is no name for an experiment")
        done = await self._sources.start_experiment(name, order.experiment, _why(order.why))
        self._note(request, "start_experiment", experiment=name, why=order.why)
        return json_answer(done, status=202)

    async def stop_experiment(self, request: web.Request) -> web.StreamResponse:
        """Take it out again; `keep` makes an arm's strategy the pools' own."""
        order = await body_of(request, _Stop)
        name = request.match_info["name"]
        done = await self._sources.stop_experiment(name, {"keep": order.keep}, _why(order.why))
        self._note(request, "stop_experiment", experiment=name, why=order.why)
        return json_answer(done, status=202)

    def _note(self, request: web.Request, what: str, **facts: object) -> None:
        self._sources.note(
            "admin_order", order=what, token=ACCESS.get().name, source=request.remote or "", **facts
        )


def _why(why: str) -> str:
    """The history's line, with whose token it was."""
    name = ACCESS.get().name
    return f"{why} (admin port, token {name})" if name else f"{why} (admin port)"


class _Start(msgspec.Struct, forbid_unknown_fields=True):
    experiment: dict[str, Any]
    why: str

    def __post_init__(self) -> None:
        _checked(self.why)


class _Stop(msgspec.Struct, forbid_unknown_fields=True):
    why: str
    keep: str | None = None

    def __post_init__(self) -> None:
        _checked(self.why)


def _checked(why: str) -> None:
    if not why.strip() or len(why) > WHY_MAX:
        raise ValueError(f"say why, in 1 to {WHY_MAX} characters; it is kept in the history")

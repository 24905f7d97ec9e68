"""The admin port's HTTP server: routes, who may use each, and the live events.

Owns the listener and the order of checks: the port's name, the token, the scope, room. Every route stands in
`ROUTES` with its scope, and none is served that does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from extproc.addresses import split
from extproc.admin.answers import (
    BODY_BYTES_MAX,
    SECURITY_HEADERS,
    BadRequestError,
    denied,
    error_answer,
    json_answer,
)
from extproc.admin.files import Files
from extproc.admin.guard import READ, WRITE, AccessGuard, Denied
from extproc.admin.hub import Hub
from extproc.admin.openapi import document
from extproc.admin.orders import ACCESS, CHANGING, LOOKING, Orders
from extproc.admin.reads import Reads
from extproc.admin.sources import RefusedError, Sources
from extproc.config.admin import Admin
from extproc.core.attempts import network_of

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: Connections at once; further ones are closed unread.
CONNECTIONS_MAX = 1_024
#: How long one may have nothing to say, between requests or in one's head.
IDLE_S = 30.0
#: A comment is sent on a stream that has had nothing to say for this long, so that proxies keep it.
BEAT_S = 10.0
#: How long one event may take to be written before its page is let go.
WRITE_S_MAX = 10.0
#: How long requests may take to end at a stop.
STOP_S = 1.0
#: A page that comes back tries after this long.
RETRY_MS = 1_000
OPEN, METRICS = "open", "metrics"


@dataclass(frozen=True, slots=True)
class AdminRoute:
    """One route: method, path, the handler's name, and the scope that it needs (OPEN: none at all)."""

    method: str
    path: str
    name: str
    scope: str


ROUTES = (
    AdminRoute("GET", "/healthz", "healthz", OPEN),
    AdminRoute("GET", "/readyz", "readyz", OPEN),
    AdminRoute("GET", "/metrics", "metrics", METRICS),
    AdminRoute("GET", "/openapi.json", "openapi", OPEN),
    AdminRoute("GET", "/api/v1/session", "session", OPEN),
    AdminRoute("GET", "/api/v1/status", "status", READ),
    AdminRoute("GET", "/api/v1/fleet", "fleet", READ),
    AdminRoute("GET", "/api/v1/fleet/{address}", "endpoint", READ),
    AdminRoute("POST", "/api/v1/fleet/{address}/drain", "drain", WRITE),
    AdminRoute("POST", "/api/v1/fleet/{address}/undrain", "undrain", WRITE),
    AdminRoute("POST", "/api/v1/fleet/{address}/clear-faults", "clear_faults", WRITE),
    AdminRoute("GET", "/api/v1/tenants", "tenants", READ),
    AdminRoute("GET", "/api/v1/tenants/{name}", "tenant", READ),
    AdminRoute("GET", "/api/v1/decisions", "decisions", READ),
    AdminRoute("GET", "/api/v1/explain/{id}", "explain", READ),
    AdminRoute("GET", "/api/v1/experiments", "experiments", READ),
    AdminRoute("POST", "/api/v1/experiments/{name}/start", "start_experiment", WRITE),
    AdminRoute("POST", "/api/v1/experiments/{name}/stop", "stop_experiment", WRITE),
    *(AdminRoute("POST", f"/api/v1/orders/{name}", f"order_{name}", READ) for name in LOOKING),
    *(AdminRoute("POST", f"/api/v1/orders/{name}", f"order_{name}", WRITE) for name in CHANGING),
    AdminRoute("GET", "/api/v1/strategies", "strategies", READ),
    AdminRoute("GET", "/api/v1/history", "history", READ),
    AdminRoute("GET", "/api/v1/alerts", "alerts", READ),
    AdminRoute("GET", "/api/v1/scaling", "scaling", READ),
    AdminRoute("GET", "/api/v1/report", "report", READ),
    AdminRoute("GET", "/api/v1/events", "events", READ),
)


class AdminServer:
    """One listener. `failed` hears of exceptions, with where they came from."""

    def __init__(
        self,
        settings: Admin,
        sources: Sources,
        *,
        failed: Callable[[Exception, str], None],
    ) -> None:
        self.settings = settings
        self.guard = AccessGuard(settings)
        self.hub = Hub(sources, failed=failed)
        self._sources, self._failed = sources, failed
        self._reads, self._orders, self._files = Reads(sources), Orders(sources), Files()
        self._busy = 0
        self._following = 0
        #: Those that each client has: a token, or an address.
        self._followed: Counter[str] = Counter()
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None

    async def start(self) -> str:
        """Listen; returns the URL. Raises OSError where it cannot (ssl.SSLError is one)."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.on_response_prepare.append(_secured)
        for route in ROUTES:
            app.router.add_route(route.method, route.path, self._guarded(route))
        app.router.add_get("/", self._plain(self._files.page))
        app.router.add_get("/static/{path:.+}", self._plain(self._files.static))
        app.router.add_route("*", "/{rest:.*}", self._plain(_nowhere))
        host, port = split(self.settings.listen)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_S, keepalive_timeout=IDLE_S)
        await self._runner.setup()
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._connection, host, port, ssl=_tls(self.settings)
            )
        except BaseException:
            await self._runner.cleanup()
            raise
        self.hub.start()
        return f"{'https' if self.settings.tls else 'http'}://{self.settings.listen}/"

    async def stop(self) -> None:
        """Let the pages go, and the port."""
        await self.hub.stop()
        if self._listener is not None:
            self._listener.close()
        if self._runner is not None:
            await self._runner.cleanup()

    def _connection(self) -> asyncio.BaseProtocol:
        assert self._runner is not None
        server = self._runner.server
        assert server is not None
        return _Refused() if len(server.connections) >= CONNECTIONS_MAX else server()

    def apply(self, settings: Admin) -> None:
        """Other tokens, names and bounds hold; the address and TLS stay as they are."""
        self.settings = settings
        self.guard.apply(settings)

    @property
    def pages(self) -> int:
        """Pages that follow."""
        return self._following

    def _guarded(self, route: AdminRoute) -> Handler:
        handler = self._handler(route)

        async def serve(request: web.Request) -> web.StreamResponse:
            refusal = self._refused(request, route)
            if refusal is not None:
                return denied(refusal)
            if route.name == "events":
                return await handler(request)
            if self._busy >= self.settings.requests_concurrent_max:
                return error_answer(503, "busy", "too many requests at once", retry_after_s=1)
            self._busy += 1
            try:
                return await self._answered(request, handler)
            finally:
                self._busy -= 1

        return serve

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except RefusedError as error:
            code = "not_available" if error.status == 404 else "refused"
            return error_answer(error.status, code, str(error), problems=error.problems)
        except (BadRequestError, ValueError) as error:
            return error_answer(400, "bad_request", str(error))
        except web.HTTPRequestEntityTooLarge:
            return error_answer(413, "too_large", f"a body has at most {BODY_BYTES_MAX} bytes")
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 (said and counted; the caller gets no inside of it)
            self._failed(error, f"admin {request.path}")
            return error_answer(500, "failed", "this is a fault of the service; its log says more")

    def _refused(self, request: web.Request, route: AdminRoute) -> Denied | None:
        refusal = self.guard.addressed(request.headers, changing=route.method != "GET")
        if refusal is not None:
            return refusal
        admitted = self.guard.admit(
            request.headers.get("Authorization", ""),
            request.remote or "",
            now_ns=self._sources.clock(),
        )
        if isinstance(admitted, Denied):
            if admitted.status == 401:
                self._sources.note("admin_denied", source=request.remote or "", path=request.path[:200])
            # Whether a token is right is what the session is asked for: it says so, and probes need none.
            return admitted if route.scope != OPEN or route.name == "session" else None
        ACCESS.set(admitted)
        if route.scope == OPEN or (route.scope == METRICS and self.settings.open_metrics):
            return None
        return self.guard.may(admitted, READ if route.scope == METRICS else route.scope)

    def _plain(self, handler: Handler) -> Handler:
        """Files, which hold no figures: anybody who reaches the port by its name may have them."""

        async def serve(request: web.Request) -> web.StreamResponse:
            refusal = self.guard.addressed(request.headers, changing=False)
            if refusal is not None and not (refusal.code == "cross_site" and _navigates(request)):
                return denied(refusal)
            return await handler(request)

        return serve

    def _handler(self, route: AdminRoute) -> Handler:
        if route.name.startswith("order_"):
            return self._orders.order
        for owner in (self._reads, self._orders, self):
            found: Handler | None = getattr(owner, route.name, None)
            if found is not None:
                return found
        raise AssertionError(f"nobody answers {route.path}")

    async def healthz(self, _: web.Request) -> web.StreamResponse:
        """The process answers."""
        return json_answer({"ok": True})

    async def readyz(self, _: web.Request) -> web.StreamResponse:
        """It takes decisions, and has somewhere to send them."""
        fleet = self._sources.scheduler.fleet
        why = [] if self._sources.serving() else ["draining"]
        if not any(endpoint.ready and not endpoint.draining for endpoint in fleet.endpoints):
            why.append("no endpoint is ready")
        return json_answer({"ready": not why, "why": why}, status=503 if why else 200)

    async def session(self, _: web.Request) -> web.StreamResponse:
        """What the caller may."""
        access = ACCESS.get()
        return json_answer(
            {
                "token": access.name,
                "scopes": sorted(access.scopes),
                "auth": self.settings.guard,
                "instance": self._sources.scheduler.instance if access.scopes else "",
                "version": self._sources.version,
            }
        )

    async def openapi(self, _: web.Request) -> web.StreamResponse:
        """The API's description."""
        return json_answer(document(self._sources.version))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Live events until the page leaves, or does not keep up."""
        if self._following >= self.settings.events_clients_max:
            return error_answer(503, "busy", "too many pages follow", retry_after_s=5)
        # Places are few: whoever takes many must leave some to others.
        name = ACCESS.get().name
        client = f"token {name}" if name else network_of(request.remote or "")
        if self._followed[client] >= self.settings.events_per_client_max:
            return error_answer(429, "busy", "too many pages of this client follow", retry_after_s=5)
        self._following += 1
        self._followed[client] += 1
        try:
            return await self._follow(request)
        finally:
            self._following -= 1
            self._followed[client] -= 1
            if not self._followed[client]:
                del self._followed[client]

    async def _follow(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "X-Accel-Buffering": "no",
            }
        )
        client = await self.hub.join(request.headers.get("Last-Event-ID", ""))
        try:
            await answer.prepare(request)
            await answer.write(f"retry: {RETRY_MS}\n\n".encode())
            while not client.gone.is_set():
                frame = await _next(client.queue, client.gone)
                async with asyncio.timeout(WRITE_S_MAX):
                    await answer.write(frame)
        except (ConnectionError, TimeoutError):
            # A page that was closed, or that does not read: nothing is owed to it.
            if request.transport is not None:
                request.transport.abort()
        finally:
            self.hub.leave(client)
        return answer


class _Refused(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It ends unread."""
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


async def _next(queue: asyncio.Queue[bytes], gone: asyncio.Event) -> bytes:
    """The next event, or a comment when there was none for a while or the page is let go."""
    waiting = asyncio.ensure_future(queue.get())
    ending = asyncio.ensure_future(gone.wait())
    try:
        await asyncio.wait((waiting, ending), timeout=BEAT_S, return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else b": still here\n\n"
    finally:
        for task in (waiting, ending):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(waiting, ending, return_exceptions=True)


def _tls(settings: Admin) -> ssl.SSLContext | None:
    if settings.tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(settings.tls.certificate, settings.tls.key)
    return context


def _navigates(request: web.Request) -> bool:
    """Whether somebody followed a link here: the page holds no figures, and cannot be framed."""
    return request.path == "/" and request.headers.get("Sec-Fetch-Mode") == "navigate"


async def _nowhere(request: web.Request) -> web.StreamResponse:
    known = {route.path for route in ROUTES}
    if request.path in known:
        return error_answer(405, "method", f"{request.method} is not for {request.path}")
    return error_answer(404, "no_route", f"nothing is at {request.path[:200]!r}; see /openapi.json")


async def _secured(_: web.BaseRequest, answer: web.StreamResponse) -> None:
    answer.headers.update(SECURITY_HEADERS)
    answer.headers.setdefault("Cache-Control", "no-store")
    answer.headers.pop("Server", None)

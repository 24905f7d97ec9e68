"""The port over HTTP: scopes, bounds, what browsers are told, files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extproc.admin import server as admin_server
from extproc.admin.answers import BODY_BYTES_MAX
from extproc.admin.server import METRICS, OPEN, ROUTES, AdminRoute
from extproc.config.load import loads
from extproc.service.app import App
from extproc.wire.server import BindError

READER, WRITER = "reader-token-0123456789", "writer-token-0123456789"
OPEN_GATEWAY = """
gateway: {auth: none}
pools: [{name: p, models: [m], endpoints: [{address: '10.0.0.1:80'}]}]
"""
Stand = Callable[..., None]


def path_of(route: AdminRoute) -> str:
    path = route.path.replace("{address}", "10.0.0.1:80").replace("{name}", "acme").replace("{id}", "nobody")
    return path.removeprefix("/")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_each_route_asks_for_its_scope(stand: Stand, tokens: str, route: AdminRoute) -> None:
    """Without a token 401; a reader's is not enough for an order; probes are open."""

    async def body(port: Any) -> None:
        body = {} if route.method == "POST" else None
        status, _ = await port.ask(route.method, path_of(route), body=body)
        if route.scope == OPEN:
            assert status == 200
            return
        assert status == 401
        status, _ = await port.ask(route.method, path_of(route), "wrong", body=body)
        assert status == 401
        if route.scope not in ("read", METRICS):
            status, found = await port.ask(route.method, path_of(route), READER, body=body)
            assert (status, found["error"]["code"]) == (403, "scope")

    stand(body, tokens)


def test_reading_is_free_on_loopback_and_orders_are_not(stand: Stand) -> None:
    """What holds where the section says nothing."""

    async def body(port: Any) -> None:
        assert (await port.get("api/v1/fleet"))[0] == 200
        assert (await port.get("metrics"))[0] == 200
        status, found = await port.ask("POST", "api/v1/fleet/10.0.0.1:80/drain", body={})
        assert (status, found["error"]["code"]) == (401, "token_needed")
        assert (await port.get("api/v1/session"))[1]["scopes"] == ["read"]

    stand(body)


def test_open_metrics_open_nothing_else(stand: Stand, tokens: str) -> None:
    """A scraper needs no token then; the API does."""

    async def body(port: Any) -> None:
        assert (await port.get("metrics"))[0] == 200
        assert (await port.get("api/v1/status"))[0] == 401

    stand(body, tokens + ", open_metrics: true")


def test_a_strangers_page_gets_nothing(stand: Stand) -> None:
    """Rebinding, cross-site reads and orders are refused; following a link to the page is not."""

    async def body(port: Any) -> None:
        assert (await port.get("api/v1/status", Host="evil.example"))[0] == 421
        assert (await port.get("", Host="evil.example"))[0] == 421
        assert (await port.get("api/v1/events", Sec_Fetch_Site="cross-site"))[0] == 403
        assert (await port.get("static/js/main.js", Sec_Fetch_Site="cross-site"))[0] == 403
        assert (await port.get("", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate"))[0] == 200
        drain = "api/v1/fleet/10.0.0.1:80/drain"
        assert (await port.ask("POST", drain, body={}, Origin="http://evil.example"))[0] == 403
        status, found = await port.ask("POST", drain, Content_Type="text/plain")
        assert (status, found["error"]["code"]) == (400, "bad_request")  # what a form could send
        assert not port.app.scheduler.fleet.endpoints[0].draining
        assert (await port.ask("POST", drain, body={}))[0] == 200
        assert port.app.scheduler.fleet.endpoints[0].draining

    stand(body, ", auth: none")


def test_every_answer_tells_browsers_to_hold_back(stand: Stand) -> None:
    """A strict policy, no framing, no sniffing, no referrer, no CORS; figures are not stored."""

    async def body(port: Any) -> None:
        for path in ("", "static/js/main.js", "api/v1/status", "nowhere", "healthz", "static/../secret"):
            async with port.session.get(port.url + path) as answer:
                headers = answer.headers
                assert "script-src 'self';" in headers["Content-Security-Policy"]
                assert "default-src 'none'" in headers["Content-Security-Policy"]
                assert headers["X-Content-Type-Options"] == "nosniff"
                assert headers["X-Frame-Options"] == "DENY"
                assert headers["Referrer-Policy"] == "no-referrer"
                assert "Access-Control-Allow-Origin" not in headers
                assert "Server" not in headers
                if path.startswith("api"):
                    assert headers["Cache-Control"] == "no-store"

    stand(body)


def test_files_are_of_a_list(stand: Stand) -> None:
    """The page, its parts, the charts' library; packed, tagged; nothing beside them."""

    async def body(port: Any) -> None:
        async with port.session.get(port.url) as answer:
            assert answer.content_type == "text/html"
            assert answer.headers["Content-Encoding"] == "gzip"
            tag = answer.headers["ETag"]
        assert (await port.get("", If_None_Match=tag))[0] == 304
        status, text = await port.get("static/vendor/plotly.min.js")
        assert status == 200
        assert "plotly.js v" in text[:200]
        for path in (
            "static/index.txt",
            "static/%2e%2e/server.py",
            "static//etc/passwd",
            "static/js",
            "static/",
        ):
            assert (await port.get(path))[0] == 404, path

    stand(body)


def test_the_page_asks_nobody_else() -> None:
    """No file of ours names another host to load from, and none has a script or a style inside."""
    static = Path(__file__).parents[2] / "extproc" / "admin" / "static"
    for file in static.rglob("*"):
        if file.suffix in (".html", ".css", ".js"):
            text = file.read_text(encoding="utf-8")
            assert "http://" not in text
            assert "https://" not in text
            assert "innerHTML" not in text
            assert "insertAdjacentHTML" not in text
            assert " style=" not in text
            assert "<style" not in text
            assert not any(f" on{event}=" in text for event in ("click", "load", "error", "input"))


def test_bounds_are_answered(stand: Stand) -> None:
    """A body too large, too many at once, a query out of range, a route that is none."""

    async def body(port: Any) -> None:
        drain = "api/v1/fleet/10.0.0.1:80/drain"
        status, found = await port.ask("POST", drain, body={"x": "y" * BODY_BYTES_MAX})
        assert (status, found["error"]["code"]) == (413, "too_large")
        for query in ("limit=0", "limit=1001", "limit=x", "offset=-1", "limit=²"):
            assert (await port.get(f"api/v1/fleet?{query}"))[0] == 400, query
        assert (await port.get("api/v2"))[1]["error"]["code"] == "no_route"
        assert (await port.ask("DELETE", "api/v1/fleet"))[0] == 405
        port.app.administering.server.settings = port.app.config.admin.model_copy(
            update={"requests_concurrent_max": 0}
        )
        assert (await port.get("api/v1/fleet"))[0] == 503

    stand(body, ", auth: none")


def test_what_is_not_there_is_404(stand: Stand) -> None:
    """Endpoints, tenants, decisions: said, not guessed; a hostile name comes back as text."""

    async def body(port: Any) -> None:
        hostile = "%3Cscript%3Ealert(1)%3C%2Fscript%3E"
        for path in ("fleet", "tenants", "explain"):
            status, found = await port.get(f"api/v1/{path}/{hostile}")
            assert status == 404
            assert found["error"]["message"]

    stand(body)


def test_readiness_is_more_than_life(stand: Stand) -> None:
    """All endpoints draining: alive, and not ready."""

    async def body(port: Any) -> None:
        assert (await port.get("readyz"))[0] == 200
        for endpoint in port.app.scheduler.fleet.endpoints:
            endpoint.draining = True
        assert await port.get("readyz") == (503, {"ready": False, "why": ["no endpoint is ready"]})
        assert (await port.get("healthz"))[0] == 200

    stand(body)


def test_a_taken_port_names_the_setting() -> None:
    """The service does not start, and says what to change."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        app = App(loads(f"{OPEN_GATEWAY}admin: {{listen: '127.0.0.1:{port}'}}"))
        with pytest.raises(BindError, match=r"admin\.listen"):
            asyncio.run(app.administering.start())


def test_without_the_section_there_is_no_port() -> None:
    """And nobody listens to requests for it."""
    app = App(loads(OPEN_GATEWAY))
    asyncio.run(app.administering.start())
    assert app.administering.server is None
    assert app.administering.observers == ()
    assert app.view.whole()["admin"] == {"url": None}


def test_tls(stand: Stand, tmp_path: Path) -> None:
    """With a certificate it speaks TLS alone; one that cannot be used is named."""
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", str(key), "-out", str(certificate), "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    trusting = ssl.create_default_context(cafile=str(certificate))

    async def body(port: Any) -> None:
        assert port.url.startswith("https://")
        async with port.session.get(port.url + "healthz", ssl=trusting) as answer:
            assert json.loads(await answer.text()) == {"ok": True}

    stand(body, f", tls: {{certificate: '{certificate}', key: '{key}'}}")
    with pytest.raises(BindError, match=r"admin\.tls"):
        stand(body, f", tls: {{certificate: '{key}', key: '{key}'}}")


def test_connections_are_bounded_and_silent_ones_end(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line, half a head or nothing: further connections are closed unread, these when their time is
    over, and then the next is served."""
    monkeypatch.setattr(admin_server, "CONNECTIONS_MAX", 10)
    monkeypatch.setattr(admin_server, "IDLE_S", 1.0)
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"

    async def ended(reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(65_536):
                pass

    async def body(port: Any) -> None:
        host, _, number = port.url.removeprefix("http://").rstrip("/").rpartition(":")
        opened = [await asyncio.open_connection(host, int(number)) for _ in range(30)]
        waits = [asyncio.create_task(ended(reader)) for reader, _ in opened]
        for at, (_, writer) in enumerate(opened):
            writer.write((b"", b"GET /he", head)[at % 3])
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*waits)
        assert (await port.get("healthz"))[0] == 200
        for _, writer in opened:
            writer.close()

    stand(body)

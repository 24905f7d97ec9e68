"""The API's description, OpenAPI 3.1: every route with its answers' schemas.

Owns the words; the schemas stand in `schemas`. A test holds it against the routes and against real answers.
"""

from __future__ import annotations

from typing import Any

from extproc.admin.orders import CHANGING
from extproc.admin.schemas import SCHEMAS

ABOUT = """What the page at / shows, and what operators order through it.

Reading needs scope `read`, orders scope `write`, by `Authorization: Bearer TOKEN`; on loopback reading may
need none (`admin.auth`). A request for a host name that the port does not go by gets 421, one of another
site's page 403. Times are unix seconds, spans milliseconds where the name ends in `_ms`."""

_ERRORS = {
    "400": "The request cannot be read.",
    "401": "No token, or a wrong one.",
    "403": "The token's scope is less than this needs, or another site's page asked.",
    "404": "There is none, or the part behind it is not switched on.",
    "409": "Not as things are.",
    "413": "The body is too large.",
    "421": "The port does not go by this name.",
    "422": "The configuration that would come of it has mistakes; `problems` lists them.",
    "429": "Too many wrong tokens from this address, or too many live events of one client.",
    "503": "Too many requests at once.",
}
_READ, _WRITE = [{"token": ["read"]}, {}], [{"token": ["write"]}]


def document(version: str) -> dict[str, Any]:
    """The whole description."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Steersman's admin API",
            "version": version,
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        # Wherever the page is served: a proxy may give it a path of its own.
        "servers": [{"url": "."}],
        "security": _READ,
        "tags": [
            {"name": "looking", "description": "Scope read."},
            {"name": "orders", "description": "Scope write. Each is in the audit log."},
            {"name": "probes", "description": "Open."},
        ],
        "paths": _paths(),
        "components": {
            "schemas": SCHEMAS,
            "responses": {
                f"E{status}": {"description": text, "content": _json("Error")}
                for status, text in _ERRORS.items()
            },
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of `admin.tokens`. Its scope is 'read' or 'write'.",
                }
            },
        },
    }


def _paths() -> dict[str, Any]:
    address = _path("address", "An endpoint, ip:port.")
    page = [
        _query("offset", "How many to leave out first.", 0),
        _query("limit", "How many at the most.", 100),
    ]
    return {
        "/healthz": _get("healthz", "The process answers.", "Health", tag="probes", errors=("421",)),
        "/readyz": {
            "get": {
                **_get("readyz", "It takes decisions.", "Ready", tag="probes", errors=("421",))["get"],
                "responses": {
                    "200": {"description": "Ready.", "content": _json("Ready")},
                    "421": _error("421"),
                    "503": {"description": "Not ready; `why` says it.", "content": _json("Ready")},
                },
            }
        },
        "/metrics": _other("metrics", "Figures for Prometheus (docs/metrics.md).", "text/plain"),
        "/openapi.json": _get("openapi", "This description.", "Any", tag="probes", errors=("421",)),
        "/api/v1/session": _get("session", "What the caller may.", "Session", errors=("401", "429")),
        "/api/v1/status": _get("status", "All that `steersman status --json` shows.", "Status"),
        "/api/v1/fleet": _get(
            "fleet",
            "Endpoints by page.",
            "Fleet",
            parameters=[
                *page,
                _query("pool", "Only this pool's.", None),
                _query("state", "Only those in this state.", None),
            ],
            errors=("400",),
        ),
        "/api/v1/fleet/{address}": _get(
            "endpoint", "One endpoint.", "Endpoint", parameters=[address], errors=("404",)
        ),
        **{
            f"/api/v1/fleet/{{address}}/{what}": _post(name, text, "Ordered", "Nothing", parameters=[address])
            for what, name, text in (
                ("drain", "drain", "No new requests to it; those that run end."),
                ("undrain", "undrain", "It takes requests again."),
                ("clear-faults", "clear_faults", "Its GPU was seen to: faults that stay until then end."),
            )
        },
        "/api/v1/tenants": _get(
            "tenants",
            "Tenants by page, in the configuration's order.",
            "Tenants",
            parameters=[*page, _query("q", "Only those whose name contains this.", None)],
            errors=("400",),
        ),
        "/api/v1/tenants/{name}": _get(
            "tenant",
            "One tenant, with all its limits.",
            "Tenant",
            parameters=[_path("name", "A tenant.")],
            errors=("404",),
        ),
        "/api/v1/decisions": _get(
            "decisions",
            "The last decisions, newest first.",
            "Decisions",
            parameters=[_query("limit", "How many, 500 at the most.", 100)],
            errors=("400",),
        ),
        "/api/v1/explain/{id}": _get(
            "explain",
            "Why a request went where it went: every endpoint's score and terms.",
            "Explanation",
            parameters=[_path("id", "The reservation's id, or the gateway's x-request-id.")],
            errors=("404",),
        ),
        "/api/v1/experiments": _get("experiments", "Experiments with their figures.", "Experiments"),
        "/api/v1/experiments/{name}/start": _post(
            "start_experiment",
            "Write an experiment into the configuration; taken within 2 s.",
            "Written",
            "Start",
            parameters=[_path("name", "Its name.")],
            status="202",
            errors=("409", "422"),
        ),
        "/api/v1/experiments/{name}/stop": _post(
            "stop_experiment",
            "Take it out of the configuration again.",
            "Written",
            "Stop",
            parameters=[_path("name", "Its name.")],
            status="202",
            errors=("409", "422"),
        ),
        **{
            f"/api/v1/orders/{name}": _post(
                f"order_{name}",
                f"{text} As `steersman --address` sends it; scope {'write' if name in CHANGING else 'read'}.",
                "Any",
                "Any",
                parameters=[],
                security=_WRITE if name in CHANGING else None,
            )
            for name, text in (
                ("Tenant", "One tenant's use."),
                ("Shadow", "What another quota would have done."),
                ("Explain", "Why a request went, or would go, where it goes."),
                ("Experiment", "Experiments with their figures."),
                ("Report", "What the analytics say of a span."),
                ("Alerts", "What is wrong, by the rules."),
                ("Scaling", "Replicas wanted and had, and why."),
                ("Cache", "What the response cache holds, or what it knows of a request."),
                ("PurgeCache", "Forget answers of the response cache."),
                ("Drain", "An endpoint's drain, or its end."),
                ("ClearFaults", "An endpoint's GPU was seen to."),
                ("Credit", "Forgive what a tenant used."),
            )
        },
        "/api/v1/strategies": _get("strategies", "Every strategy and its parameters.", "Strategies"),
        "/api/v1/history": _get("history", "The last 15 minutes, a point a second.", "History"),
        "/api/v1/alerts": _get("alerts", "What is wrong, by the rules.", "Alerts", errors=("404",)),
        "/api/v1/scaling": _get(
            "scaling",
            "Pools that scale: replicas wanted and had, the forecast, why, and what binds each pool.",
            "Scaling",
            parameters=[_query("points", "Points of each pool's past, 1,000 at the most.", 100)],
            errors=("400",),
        ),
        "/api/v1/report": _get(
            "report",
            "What the analytics say of a span; the query goes to them (docs/analytics.md).",
            "Any",
            errors=("400", "404"),
        ),
        "/api/v1/events": _other(
            "events",
            "Server-sent events: `snapshot` first, then `figures` (what has changed), `decisions`, `alerts`, "
            "`experiments`, `scaling` and `cache`. `Last-Event-ID` resumes.",
            "text/event-stream",
        ),
    }


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _error(status: str) -> dict[str, Any]:
    return {"$ref": f"#/components/responses/E{status}"}


def _get(
    name: str,
    text: str,
    schema: str,
    *,
    tag: str = "looking",
    parameters: list[Any] | None = None,
    errors: tuple[str, ...] = (),
) -> dict[str, Any]:
    every = () if tag == "probes" else ("401", "403", "421", "429", "503")
    return {
        "get": {
            "operationId": name,
            "summary": text,
            "tags": [tag],
            **({"security": [{}]} if tag == "probes" or name == "session" else {}),
            **({"parameters": parameters} if parameters else {}),
            "responses": {
                "200": {"description": text, "content": _json(schema)},
                **{status: _error(status) for status in sorted({*every, *errors})},
            },
        }
    }


def _post(
    name: str,
    text: str,
    schema: str,
    body: str,
    *,
    parameters: list[Any],
    status: str = "200",
    errors: tuple[str, ...] = (),
    security: list[Any] | None = _WRITE,
) -> dict[str, Any]:
    known = {"400", "401", "403", "404", "413", "421", "429", "503", *errors}
    return {
        "post": {
            "operationId": name,
            "summary": text,
            "tags": ["orders"],
            **({"security": security} if security is not None else {}),
            "parameters": parameters,
            "requestBody": {"required": True, "content": _json(body)},
            "responses": {
                status: {"description": text, "content": _json(schema)},
                **{each: _error(each) for each in sorted(known)},
            },
        }
    }


def _other(name: str, text: str, kind: str) -> dict[str, Any]:
    found = _get(name, text, "Any", errors=("404",))
    found["get"]["responses"]["200"]["content"] = {kind: {"schema": {"type": "string"}}}
    return found


def _path(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "description": text, "schema": {"type": "string"}}


def _query(name: str, text: str, default: int | None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if default is not None:
        schema = {"type": "integer", "minimum": 0, "default": default}
    return {"name": name, "in": "query", "description": text, "schema": schema}

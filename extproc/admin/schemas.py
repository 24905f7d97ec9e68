"""The shapes of the API's answers and orders, as JSON schemas (2020-12).

Owns what callers may rely on: what is required stays. Answers may hold more than is named here.
"""

from __future__ import annotations

from typing import Any, Final

from extproc.core.cached import EVENTS, GUESSED, USAGE

TEXT: Final[dict[str, Any]] = {"type": "string"}
FLAG: Final[dict[str, Any]] = {"type": "boolean"}
COUNT: Final[dict[str, Any]] = {"type": "integer", "minimum": 0}
NUMBER: Final[dict[str, Any]] = {"type": "number"}
#: None where nobody has said, or nothing was seen.
MAYBE: Final[dict[str, Any]] = {"type": ["number", "null"]}
MAYBE_TEXT: Final[dict[str, Any]] = {"type": ["string", "null"]}
SHARE: Final[dict[str, Any]] = {"type": "number", "minimum": 0, "maximum": 1}
STATES: Final = ("ready", "degraded", "suspect", "stale", "pending", "draining", "down")


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _map(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": of}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


_FIGURES: Final[dict[str, Any]] = {
    **dict.fromkeys(
        (
            *("decided", "ok", "refused", "failed", "client_gone", "rejected", "expired"),
            *("prompt_tokens", "output_tokens"),
        ),
        COUNT,
    ),
    "tokens_per_s": NUMBER,
    "ttft_p50_ms": MAYBE,
    "ttft_p99_ms": MAYBE,
}
_USE: Final[dict[str, Any]] = {
    "class": TEXT,
    "weight": NUMBER,
    "in_flight": COUNT,
    "held": COUNT,
    "limits": _list(_ref("Limit")),
}

SCHEMAS: Final[dict[str, Any]] = {
    "Any": {"type": "object"},
    "Nothing": {"type": "object", "description": "An empty object: the order stands in the path."},
    "Error": _object(
        {"error": _object({"code": TEXT, "message": TEXT}, problems=_list(TEXT))},
    ),
    "Health": _object({"ok": FLAG}),
    "Ready": _object({"ready": FLAG, "why": _list(TEXT)}),
    "Session": _object(
        {
            "token": TEXT,
            "scopes": _list({"enum": ["read", "write"]}),
            "auth": {"enum": ["token", "write", "none"]},
            "instance": TEXT,
            "version": TEXT,
        }
    ),
    "Status": _object(
        {
            "instance": TEXT,
            "uptime_s": NUMBER,
            "in_flight": COUNT,
            "held": COUNT,
            "counts": _map(COUNT),
            "pools": _map({"type": "object"}),
            "tenants": _map(_ref("Figures")),
            "endpoints": _list(_ref("Endpoint")),
            "decisions": _list(_ref("Decision")),
            "use": _object({"tenants": _map(_ref("Use")), "left_out": COUNT}),
        }
    ),
    "Figures": _object(_FIGURES),
    "Use": _object(_USE),
    "Limit": _object(
        {
            "scope": TEXT,
            "limit": TEXT,
            "allowed": NUMBER,
            "used": NUMBER,
            "borrowed": NUMBER,
            "throttled": COUNT,
        }
    ),
    "Pool": _object(
        {"name": TEXT, "models": _list(TEXT), "strategy": TEXT, "endpoints": COUNT, "ready": COUNT}
    ),
    "Fleet": _object(
        {
            "total": COUNT,
            "offset": COUNT,
            "pools": _list(_ref("Pool")),
            "endpoints": _list(_ref("Endpoint")),
        }
    ),
    "Endpoint": _object(
        {
            "address": TEXT,
            "pool": TEXT,
            "zone": TEXT,
            "condition": {"enum": list(STATES)},
            "ready": FLAG,
            "draining": FLAG,
            "announced": FLAG,
            "suspect": FLAG,
            "stale": FLAG,
            "health": SHARE,
            "causes": _map(_object({"kind": TEXT, "factor": NUMBER, "detail": TEXT})),
            "in_flight": COUNT,
            "in_flight_tokens": COUNT,
            "max_concurrent": COUNT,
            "node": MAYBE_TEXT,
            "age_ms": MAYBE,
            "waiting": MAYBE,
            "running": MAYBE,
            "kv_used_tokens": MAYBE,
            "kv_capacity_tokens": MAYBE,
            "cache_source": {"enum": [GUESSED, USAGE, EVENTS]},
            "cache_tokens": MAYBE,
            "cache_corrections": _map(COUNT),
            "prefix_hit_ratio": MAYBE,
            "kv_events": {"type": ["object", "null"]},
            "adapters": {"type": ["array", "null"]},
            "adapter_loads": MAYBE,
            "gpus": _list({"type": "object"}),
            **_FIGURES,
        }
    ),
    "Tenants": _object({"total": COUNT, "offset": COUNT, "tenants": _list(_ref("TenantRow"))}),
    "TenantRow": _object({"name": TEXT, **_USE, **_FIGURES}),
    "Tenant": _object({"name": TEXT, **_USE, "scopes_left_out": COUNT}, **_FIGURES),
    "Decisions": _object({"count": COUNT, "decisions": _list(_ref("Decision"))}),
    "Decision": _object(
        {
            "number": COUNT,
            "at": NUMBER,
            "kind": {"enum": ["placed", "refused", "left", "cached"]},
            "id": TEXT,
            "tenant": TEXT,
            "class": TEXT,
            "place": TEXT,
            "model": TEXT,
            "pool": TEXT,
            "reason": TEXT,
        },
        endpoint=TEXT,
        spares=_list(TEXT),
        strategy=TEXT,
        arm=TEXT,
        degraded=TEXT,
        input_tokens=COUNT,
        cached_tokens=COUNT,
        output_tokens=COUNT,
        held_ms=NUMBER,
        ttft_ms=NUMBER,
        status=COUNT,
        code=TEXT,
    ),
    "Explanation": _object(
        {
            "id": TEXT,
            "tenant": TEXT,
            "outcome": TEXT,
            "reason": TEXT,
            "endpoints": _list(_ref("ExplainedEndpoint")),
            "now": {"oneOf": [_ref("ExplainedNow"), {"type": "null"}]},
        }
    ),
    "ExplainedNow": _object({"outcome": TEXT, "endpoints": _list(_ref("ExplainedEndpoint"))}),
    "ExplainedEndpoint": _object(
        {
            "address": TEXT,
            "verdict": TEXT,
            "why": _list(TEXT),
            "score": MAYBE,
            "terms": _map(MAYBE),
            "forecast": _map(MAYBE),
        }
    ),
    "Experiments": _object({"experiments": _list(_ref("Experiment")), "past": _list(TEXT)}),
    "Experiment": _object(
        {
            "name": TEXT,
            "pools": _list(TEXT),
            "split": TEXT,
            "state": TEXT,
            "arms": _list(_object({"name": TEXT, "strategy": TEXT, "share": NUMBER, "requests": COUNT})),
            "verdict": _list(TEXT),
        }
    ),
    "Start": _object(
        {
            "experiment": {
                "type": "object",
                "description": "What stands under experiments.NAME in the configuration.",
            },
            "why": {"type": "string", "minLength": 1, "maxLength": 500, "description": "For the history."},
        }
    ),
    "Stop": _object(
        {"why": {"type": "string", "minLength": 1, "maxLength": 500, "description": "For the history."}},
        keep={"type": ["string", "null"], "description": "An arm whose strategy becomes the pools' own."},
    ),
    "Written": _object({"version": COUNT, "file": TEXT}),
    "Ordered": _object({"address": TEXT, "found": FLAG}, draining=FLAG, cleared=_list(TEXT)),
    "Strategies": _object(
        {
            "strategies": _list(
                _object(
                    {
                        "name": TEXT,
                        "summary": TEXT,
                        "own": FLAG,
                        "pools": _list(TEXT),
                        "parameters": _map(_object({"type": TEXT, "default": {}})),
                    }
                )
            )
        }
    ),
    "Scaling": _object(
        {
            "pools": _list(_ref("ScalePool")),
            "pools_left_out": COUNT,
            "advice": _list(_object({"pool": TEXT, "bound": TEXT, "why": TEXT})),
        }
    ),
    "ScalePool": _object(
        {
            **dict.fromkeys(("pool", "why", "bound", "kind"), TEXT),
            **dict.fromkeys(("wanted", "had", "ready", "loading", "draining", "held"), COUNT),
            **dict.fromkeys(("at", "horizon_s", "cost_per_hour"), NUMBER),
            "leaving": _list(TEXT),
            "forecast": _object(
                {**dict.fromkeys(("ahead_s", "low", "median", "high"), NUMBER), "method": TEXT}
            ),
            "points": _list(_ref("ScalePoint")),
        }
    ),
    "ScalePoint": _object(
        {
            **dict.fromkeys(("at", "requests_per_s", "low", "median", "high", "cost_per_hour"), NUMBER),
            **dict.fromkeys(("wanted", "ready", "loading", "draining", "held"), COUNT),
            "bound": TEXT,
        }
    ),
    "History": _object({"points": _list(_ref("Point"))}),
    "Point": _object(
        {
            "at": NUMBER,
            **dict.fromkeys(
                (
                    *("placed", "refused", "ok", "errors", "client_gone", "output_tokens"),
                    *("in_flight", "held"),
                ),
                COUNT,
            ),
            **dict.fromkeys(("ttft_p50_ms", "ttft_p99_ms", "decision_p50_ms", "decision_p99_ms"), MAYBE),
        }
    ),
    "Alerts": _object({"firing": _list({"type": "object"}), "recent": _list({"type": "object"})}),
}

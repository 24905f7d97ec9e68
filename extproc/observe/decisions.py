"""A decision as people and their tools see it: plain values."""

from __future__ import annotations

from typing import Any

from extproc.core.decisions import Decisions, Noted
from extproc.core.outcome import Reservation

#: Placements in a status.
SHOWN_MAX = 32


def last_placed(decisions: Decisions) -> list[dict[str, Any]]:
    """The last placements for a status, the newest first."""
    return [
        {
            "id": kept.routed.reservation.id,
            "tenant": kept.routed.reservation.tenant,
            "pool": kept.routed.reservation.pool,
            "endpoint": kept.routed.reservation.address,
            "input_tokens": kept.routed.reservation.input_tokens,
            "output_tokens": kept.routed.reservation.output_tokens,
            "reason": kept.routed.reason.text(),
        }
        for kept in decisions.placed_last(SHOWN_MAX)
    ]


def plain(noted: Noted, *, unix_s: float) -> dict[str, Any]:
    """One of those that were noted; `unix_s` is when."""
    about: dict[str, Any] = {
        "number": noted.number,
        "at": round(unix_s, 3),
        "kind": noted.kind,
        "id": noted.id,
        "tenant": noted.tenant,
        "class": noted.service_class,
        "place": noted.place,
        "model": noted.model,
        "pool": noted.pool,
    }
    if noted.reject is not None:
        reject = noted.reject
        return about | {"status": reject.status, "code": reject.code, "reason": reject.message}
    if noted.kind == "left":
        return about | {"reason": "the client left before it was placed"}
    if noted.kind == "cached":
        return about | {"reason": "answered from the cache; no replica was asked"}
    if noted.kept is None:
        return about | {"reason": "no longer remembered"}
    routed = noted.kept.routed
    r: Reservation = routed.reservation
    return about | {
        "endpoint": r.address,
        "spares": list(routed.addresses[1:]),
        "strategy": routed.reason.strategy,
        "arm": r.arm,
        "degraded": routed.reason.degraded,
        "input_tokens": r.input_tokens,
        "cached_tokens": r.cached_tokens,
        "output_tokens": r.output_tokens,
        "held_ms": round(r.held_ms, 1),
        "ttft_ms": round(r.ttft_ms, 1),
        "reason": routed.reason.text(),
    }

"""The file's `routes` as rows of core/routes.py, and what of them Envoy's filters know."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from extproc.config.routes import RouteConfig
from extproc.core import contract
from extproc.core.misrouted import dialect_of
from extproc.core.request import Dialect, RouteKind
from extproc.core.routes import (
    OPENAI_COUNTS,
    OPENAI_END,
    PREFILL_COUNTS,
    BodyKind,
    Counts,
    FieldPath,
    OwnReading,
    Route,
    RouteWork,
    Streams,
)

_WORKS: Final = {
    "generation": RouteWork.GENERATES,
    "embedding": RouteWork.PREFILLS,
    "none": RouteWork.FREE,
}


def own_routes(routes: Iterable[RouteConfig]) -> tuple[Route, ...]:
    """The file's routes as rows of the table."""
    return tuple(map(_row, routes))


def own_in_envoy(routes: Iterable[RouteConfig]) -> list[tuple[object, ...]]:
    """What of the file's routes Envoy's filters know: their forms, the places of their usage, and their
    dialect where it is not what their path says."""
    found: list[tuple[object, ...]] = []
    for route in routes:
        dialect = "" if Dialect(route.dialect) is dialect_of(route.path) else route.dialect
        about = (route.body == "form", dialect, route.usage.input, route.usage.output)
        if about != (False, "", None, None):
            found.append((route.path, *about))
    return found


def _row(route: RouteConfig) -> Route:
    named = route.model
    return Route(
        route.method,
        route.path,
        RouteKind.OTHER_FREE if route.work == "none" else RouteKind.OTHER,
        Dialect(route.dialect),
        BodyKind(route.body),
        Streams(route.streams),
        _WORKS[route.work],
        () if route.work == "none" else _counts(route),
        OPENAI_END if route.streams != "never" else (),
        OwnReading(
            model_field=_parts(named.field),
            model_header=named.header or "",
            model_part=named.form or "",
            model=named.fixed or "",
            inputs=tuple(map(_parts, route.input)),
            stream=_parts(route.stream_field),
            limit=_parts(route.output_limit),
        ),
    )


def _parts(field: str | None) -> FieldPath:
    return tuple(field.split(".")) if field else ()


def _counts(route: RouteConfig) -> Counts:
    places = (
        (route.usage.input, contract.OWN_INPUT_KEY),
        (route.usage.output, contract.OWN_OUTPUT_KEY),
    )
    own = tuple((_parts(place), key) for place, key in places if place is not None)
    return (*own, *(OPENAI_COUNTS if route.work == "generation" else PREFILL_COUNTS))

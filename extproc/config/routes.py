"""`routes`: paths that are served beside the gateway's own, and how a request is read there.

Owns the section, and which paths nobody may give away. The rows that are made of it are own_routes.py's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from extproc.config.section import Section
from extproc.config.types import HeaderName, ModelName
from extproc.core import contract
from extproc.core.own_paths import MANAGES, PARTS_MAX, is_pattern

#: Routes of the file, and parts of a field's path.
ROUTES_MAX: Final = 64
FIELD_PARTS_MAX: Final = 8
INPUTS_MAX: Final = 16
#: Gives a path's beginning away to calls of the service and of Envoy.
RESERVED_BEGINNINGS: Final = ("/steersman.", "/envoy.", "/grpc.", "/sim/")
#: Its first part is written out; the others may be a name in braces, the last one `*`.
_PATH: Final = re.compile(
    r"/[A-Za-z0-9._~-]{1,64}(?:/(?:[A-Za-z0-9._~-]{1,64}|\{[A-Za-z_][A-Za-z0-9_]{0,63}\})){0,7}(?:/\*)?"
)
_PART: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: Headers that say something else already; what begins so is ours, Envoy's or a proxy's.
_TAKEN_HEADERS: Final = frozenset({"x-api-key", "x-request-id", contract.MODEL_HEADER})
_TAKEN_BEGINNINGS: Final = (contract.OUR_PREFIX, "x-envoy-", "x-forwarded-", "x-gateway-", "x-ratelimit-")


def _path(value: str) -> str:
    if value == "/":
        raise ValueError("'/' is TGI's own route, and everybody's: write a longer path")
    parts = value[1:].split("/")
    if not _PATH.fullmatch(value) or len(parts) > PARTS_MAX or any(part in (".", "..") for part in parts):
        raise ValueError(
            f"{value!r} is no path here; write one such as /v1/classify: up to 8 parts of letters, digits, "
            "'.', '_', '~' and '-', without a query and without a slash at the end; after the first "
            "a part may be a name in braces, and the last one '*'"
        )
    if value.startswith(RESERVED_BEGINNINGS):
        raise ValueError(f"{value!r} is the gateway's own, or its engines' control; write another path")
    if any(part in MANAGES for part in (parts if is_pattern(value) else parts[-1:])):
        raise ValueError(
            f"{value!r} manages an engine, for all its tenants: call the engine itself, not the gateway"
        )
    # Who writes no route imports nothing of the table, and nothing that decides.
    from extproc.core.routes import EXTRA_ROUTES, ROUTES, of_item

    if value in ROUTES or of_item(value):
        raise ValueError(f"{value!r} is served already, as docs/api.md says; remove this route")
    if value in EXTRA_ROUTES:
        raise ValueError(f"{value!r} is served by gateway.extra_routes: [{value}]; name it there")
    return value


def _field_path(value: str) -> str:
    parts = value.split(".")
    if len(parts) > FIELD_PARTS_MAX or not all(_PART.fullmatch(part) for part in parts):
        raise ValueError(
            f"{value!r} is no field; write its name, or those of the objects around it first with dots "
            f"between ({FIELD_PARTS_MAX} names at most), such as parameters.model"
        )
    return value


def _model_header(value: str) -> str:
    if value in _TAKEN_HEADERS or value.startswith(_TAKEN_BEGINNINGS):
        also = " (x-model counts on every route, unasked)" if value == contract.MODEL_HEADER else ""
        raise ValueError(f"{value!r} says something else already{also}; write another header")
    return value


FieldName = Annotated[str, AfterValidator(_field_path)]


class RouteModel(Section):
    """Where a request names its model; one of the four. Where it names none the header x-model counts, then
    the tenant's default_model, then gateway.default_model."""

    field: FieldName | None = None
    """A field of its JSON body, such as model or parameters.model."""
    header: Annotated[HeaderName, AfterValidator(_model_header)] | None = None
    """A header of its own, such as x-task-model, which goes on to the replica."""
    form: Annotated[str, Field(pattern=_PART.pattern)] | None = None
    """A field of its form (body: form) that stands before the file."""
    fixed: ModelName | None = None
    """The same model for every request, and so its pool."""


class RouteUsage(Section):
    """Where an answer says what it cost; name places in which no engine repeats what its client sent."""

    input: FieldName | None = None
    """The field with the prompt's tokens, such as meta.input_tokens."""
    output: FieldName | None = None
    """The field with the output's tokens."""


class RouteConfig(Section):
    """A path that is served beside the gateway's own. It is asked for a key, placed, counted and bounded as
    any other; its requests go on as they came."""

    path: Annotated[str, AfterValidator(_path)] = Field(max_length=256)
    """The whole path, such as /v1/classify; none that is served already. A name in braces stands for one part
    (/v1/things/{id}), * at the end for one or more."""
    method: Literal["POST", "GET", "PUT", "PATCH", "DELETE"] = "POST"
    """The method. What answers GET answers HEAD."""
    body: Literal["json", "form", "none"] = "json"
    """What is sent: JSON, multipart/form-data (of which the service sees what stands before the file, up to
    64 KiB), or nothing."""
    model: RouteModel = RouteModel(field="model")
    """Where the model is named; the field model when left out."""
    work: Literal["generation", "embedding", "none"]
    """'generation' reads a prompt and writes tokens, 'embedding' reads alone, 'none' takes no place on a
    replica and is charged as a request without tokens."""
    input: list[FieldName] = Field(default=[], max_length=INPUTS_MAX)
    """Fields that are worked on: texts, token ids, objects with a text, lists of those. They are what is
    planned and charged where the answer says no usage, and one of them must be there. The body's size when
    left out; a form counts a token for 320 bytes."""
    output_limit: FieldName | None = None
    """The field that bounds a generation's tokens; none when left out."""
    streams: Literal["never", "asked", "always"] = "never"
    """Whether answers are server-sent events: 'asked' by a field of the body."""
    stream_field: FieldName = "stream"
    """The field that asks for a stream."""
    dialect: Literal["openai", "tgi", "anthropic"] = "openai"
    """Whose error bodies its clients read."""
    usage: RouteUsage = RouteUsage()
    """Where answers say their usage; besides usage.prompt_tokens and usage.completion_tokens, which always
    count."""


def form_paths(routes: Iterable[RouteConfig]) -> list[str]:
    """Of the file's, the paths whose bodies are forms."""
    return list(dict.fromkeys(route.path for route in routes if route.body == "form"))

"""Bodies of the file's own routes: where their model, their input and what they ask for stand is said there.

Owns the looking up of a field by its path. What is not there, or is of another kind than it should be, is as
good as absent: what a body must hold is its engine's to say.
"""

from __future__ import annotations

import msgspec

from extproc.core.body_fields import ABSENT, TEXT, given, limit_of, peek
from extproc.core.body_forms import form_fields
from extproc.core.body_inputs import inputs_of, size_of
from extproc.core.errors import Error
from extproc.core.hints import flag
from extproc.core.outcome import Reject
from extproc.core.prompts import SEQUENCES_MAX, Prompts
from extproc.core.request import Request, bounded
from extproc.core.routes import BodyKind, FieldPath, Route, RouteWork, Streams

_object = msgspec.json.Decoder(dict[str, msgspec.Raw])

Fields = dict[str, msgspec.Raw]


def read_own(route: Route, body: bytes) -> Request | Reject:
    """What is asked for, by the places that the route's row names.

    Raises msgspec's errors on a body that is no JSON object, where it should be one.
    """
    own = route.own
    assert own is not None, route
    plain = Request(kind=route.kind, dialect=route.dialect, model=own.model or None, max_new_tokens=0)
    if route.body is BodyKind.NONE:
        return _asking(plain, route, streams=False, limit=None)
    if route.body is BodyKind.FORM:
        form = form_fields(body)
        if isinstance(form, Reject):
            return form
        model = form.get(own.model_part, b"").decode("utf-8", "replace").strip() if own.model_part else ""
        word = form.get(own.stream[-1], b"").strip().lower()
        request = msgspec.structs.replace(plain, model=model or plain.model)
        return _asking(request, route, streams=flag(b'"%b"' % word), limit=None)
    fields = _object.decode(body)
    model = own.model
    if own.model_field:
        raw = at(fields, own.model_field)
        named = peek(TEXT, raw)
        if given(raw) and named is None:
            return Error.UNFIT.reject(f"'{'.'.join(own.model_field)}' is no text")
        model = named or ""
    found = [at(fields, path) for path in own.inputs]
    inputs = [each for raw in found if given(raw) and (each := inputs_of(raw)) is not None]
    if own.inputs and not inputs:
        return Error.UNFIT.reject(f"'{'.'.join(own.inputs[0])}' is missing")
    if not inputs:
        inputs = [Prompts(bytes_beside=len(body))]
    generates = route.work is RouteWork.GENERATES
    texts = tuple(text for each in inputs for text in each.texts) if generates else ()
    ids = inputs[0].tokens if len(inputs) == 1 else None
    request = msgspec.structs.replace(
        plain,
        model=model or None,
        sequences=max(1, min(max(each.count for each in inputs), SEQUENCES_MAX)),
        prompt_bytes=sum(map(size_of, inputs)),
        prompt_tokens=ids,
        images=sum(each.images for each in inputs),
        # What generates may find its beginning cached.
        segments=texts,
    )
    return _asking(
        request,
        route,
        streams=flag(at(fields, own.stream)),
        limit=limit_of(at(fields, own.limit)) if own.limit else None,
    )


def at(fields: Fields, path: FieldPath) -> msgspec.Raw:
    """A field of an object, by its path; ABSENT where there is none."""
    raw = fields.get(path[0], ABSENT)
    for name in path[1:]:
        inside = peek(_object, raw)
        raw = ABSENT if inside is None else inside.get(name, ABSENT)
    return raw


def _asking(request: Request, route: Route, *, streams: bool, limit: int | None) -> Request:
    generates = route.work is RouteWork.GENERATES
    return msgspec.structs.replace(
        request,
        stream=route.streams is Streams.ALWAYS or (route.streams is Streams.ASKED and streams),
        max_new_tokens=bounded(limit) if generates else 0,
    )

"""What is said to a request by its headers alone: who asks, for what, and whether its body may come.

Owns the order of the looks: the cheapest and the nearest to who asks come first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import unquote

import msgspec

from extproc.core.cachekeys import CacheDirective
from extproc.core.contract import CACHE_HEADER, EXPLAIN_HEADER, MODEL_HEADER, SITE_HEADER
from extproc.core.errors import Error, no_model
from extproc.core.families import members
from extproc.core.misrouted import advice, dialect_of, methods_of
from extproc.core.outcome import LocalAnswer, Reject
from extproc.core.remote.identity import AskTaken
from extproc.core.request import Dialect, RouteKind
from extproc.core.routes import BodyKind, Route, RouteWork, Streams, find_route, item_of
from extproc.core.tenant import ANONYMOUS, Identity, Tenant
from extproc.observe.tracing.request_trace import StreamTrace
from extproc.wire import codec
from extproc.wire.processor import Processor

#: A Content-Length of more digits is larger than any bound.
LENGTH_DIGITS_MAX: Final = 18
#: The value of the header with which a client asks for the reason.
EXPLAIN_REASON: Final = "reason"
#: The strictest first.
_DIRECTIVES: Final = (CacheDirective.OFF, CacheDirective.REFRESH, CacheDirective.USE)


def directive_of(value: str) -> CacheDirective | None:
    """What a client asks of the cache; the strictest of several, None where it says nothing that we know."""
    if not value:
        return None
    said = {each.strip() for each in value.lower().split(",")}
    return next((each for each in _DIRECTIVES if each.value in said), None)


@dataclass(slots=True)
class Asked:
    """What is known of a request by its headers, as far as they were looked at."""

    dialect: Dialect = Dialect.OPENAI
    route: Route | None = None
    tenant: Tenant = ANONYMOUS
    #: The API key's id, where one proved the tenant.
    key: str = ""
    #: The address that it came from.
    source: str = ""
    #: What counts where its body names no model.
    model: str | None = None
    request_id: str = ""
    #: The response that its path names, and whether it is to come as a stream.
    item: str = ""
    streams: bool = False
    #: What a form says that its size is, of which its head alone comes here.
    length: int = 0
    #: All of its body came here.
    whole: bool = True
    #: What it asks of the cache; None where it says nothing that we know.
    cache: CacheDirective | None = None
    #: The site that sent it on, and how many gateways have.
    site: str = ""
    hops: int = 0
    #: Its token, of which other services are asked first.
    taken: AskTaken | None = None
    #: The client is told the reason.
    explain: bool = False
    #: Declared as something else, a body that was read as JSON goes on as JSON.
    as_json: bool = False


class Whose(Protocol):
    """Whose request it is, by what was proven and by what a trusted gateway says."""

    def __call__(self, proven: Tenant, values: dict[str, str], /) -> Tenant: ...


def screen(
    processor: Processor, headers: codec.Headers, asked: Asked, *, trace: StreamTrace, whose: Whose
) -> LocalAnswer | Reject | None:
    """Everything that can be said before the body comes, None lets it come; fills in what was `asked`."""
    values = headers.values
    method, path = values.get(":method", ""), values.get(":path", "")
    route, bare = find_route(method, path, processor.extra_routes), path.partition("?")[0]
    asked.route = route
    asked.dialect = route.dialect if route is not None else dialect_of(bare, processor.extra_routes)
    trace.headers(route.kind if route is not None else None, values)
    if headers.repeated:
        return Error.INVALID_REQUEST.reject(f"the header '{headers.repeated}' was sent twice; send it once")
    if route is not None and route.kind is RouteKind.HEALTH:
        return _health(processor)
    word = values.get(SITE_HEADER, "")
    if route is not None and route.kind is RouteKind.SITE and (sites := processor.sites) is not None:
        return sites.answer(word)
    identity = processor.identify(headers.evidence, site=word, alone=headers.alone)
    if isinstance(identity, Reject):
        return identity
    asked.tenant = tenant = _placed(processor, whose(identity.tenant, values), identity, headers)
    trace.identified(tenant)
    asked.key = identity.key.id if identity.key is not None else ""
    asked.source = headers.evidence.source
    asked.site, asked.hops, asked.taken = identity.site, identity.hops, identity.taken
    if wait_s := processor.refused_too_much(tenant.name, asked.source):
        return Error.TOO_MANY_REFUSED.reject(retry_after_s=wait_s)
    if route is None or route.kind is RouteKind.SITE:
        scheme, host = values.get(":scheme", ""), values.get(":authority", "")
        extra = processor.extra_routes
        what = advice(method, bare, scheme=scheme, host=host, extra=extra)
        if methods := methods_of(bare, extra):
            return Error.METHOD_NOT_ALLOWED.reject(what, headers=(("allow", ", ".join(methods)),))
        return Error.NOT_FOUND.reject(what)
    if route.work is RouteWork.HERE:
        one = route.kind is RouteKind.MODEL
        return _model(processor, tenant, route, path) if one else _models(processor, tenant)
    if route.kind is RouteKind.RESPONSE:
        asked.item = item_of(route, path)
        asked.streams = route.streams is Streams.QUERY and "stream=true" in path.partition("?")[2]
    where = route.own.model_header if route.own is not None else ""
    asked.model, asked.request_id = values.get(where or MODEL_HEADER), values.get("x-request-id", "")
    asked.explain = tenant.explain and values.get(EXPLAIN_HEADER, "").strip().lower() == EXPLAIN_REASON
    if processor.cache is not None:
        asked.cache = directive_of(values.get(CACHE_HEADER, ""))
    if processor.deciding > processor.decisions_concurrent_max:
        processor.scheduler.counts["bound.decisions_concurrent_max"] += 1
        return Error.OVERLOADED.reject("the gateway decides as many requests as it may")
    encoding = values.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        return Error.UNSUPPORTED_ENCODING.reject(encoding=encoding[:32])
    # curl and urllib say "form" where they are told nothing, and engines refuse that: TGI with 415, vLLM
    # with 400. A page in a browser says its origin; it may send a form's type to anywhere unasked, but
    # not JSON's, and we are not who lifts that.
    asked.as_json = (
        route.body is BodyKind.JSON
        and "origin" not in values
        and not codec.declares_json(values.get("content-type", ""))
    )
    if route.body is BodyKind.FORM:
        # Its file does not come here: what it is worth is known by its size alone.
        asked.length = declared(values.get("content-length", ""), -1)
        if asked.length < 0:
            return Error.LENGTH_REQUIRED.reject(bytes=processor.upload_bytes_max)
        if asked.length > processor.upload_bytes_max:
            return Error.BODY_TOO_LARGE.reject(bytes=processor.upload_bytes_max)
    elif declared(values.get("content-length", ""), -1) > processor.body_bytes_max:
        return Error.BODY_TOO_LARGE.reject(bytes=processor.body_bytes_max)
    return None


def _placed(processor: Processor, tenant: Tenant, identity: Identity, headers: codec.Headers) -> Tenant:
    """The tenant as it is served where its client is; another site has said where, of what it sends on."""
    places = processor.places
    if identity.site:
        place = places.by_name.get(identity.place)
    else:
        place = places.of(headers.values, headers.evidence.source)
    if place is None:
        return tenant
    if not headers.alone:
        processor.scheduler.counts[f"place.{place.name}"] += 1
    return places.served(tenant, place)


#: A model in the fields of both clients' libraries. When it was made is not known: both take the epoch then.
_OPENAI_MODEL: Final = {"object": "model", "created": 0, "owned_by": "steersman"}
_ANTHROPIC_MODEL: Final = {"type": "model", "created_at": "1970-01-01T00:00:00Z"}


def declared(length: str, otherwise: int) -> int:
    """What a Content-Length says, as far as numbers go here; what is no number says `otherwise`."""
    if not (length.isascii() and length.isdigit()):
        return otherwise
    digits = length.lstrip("0") or "0"
    # By the number of digits first: Python refuses to read an integer of 4,301.
    return int(digits) if len(digits) <= LENGTH_DIGITS_MAX else 10**LENGTH_DIGITS_MAX


def _health(processor: Processor) -> LocalAnswer | Reject:
    # Nobody is asked for a key here: whether it serves, and nothing else.
    # A pool at zero serves as well: whoever asks of it starts it.
    if any(pool.ready or pool.cold.possible for pool in processor.scheduler.fleet.pools.values()):
        return LocalAnswer(status=200, body=b'{"status":"ok"}')
    return Error.NO_READY_ENDPOINT.reject()


def _model(processor: Processor, tenant: Tenant, route: Route, path: str) -> LocalAnswer | Reject:
    """One of those that are listed: its name may hold slashes, written out or not."""
    name = unquote(item_of(route, path))
    found = next((each for each in _listed(processor, tenant) if each["id"] == name), None)
    return no_model(name) if found is None else LocalAnswer(status=200, body=msgspec.json.encode(found))


def _models(processor: Processor, tenant: Tenant) -> LocalAnswer:
    listed = _listed(processor, tenant)
    # Anthropic's client pages by these, and has all of them in one.
    page: dict[str, object] = {"has_more": False, "first_id": None, "last_id": None}
    if listed:
        page |= {"first_id": listed[0]["id"], "last_id": listed[-1]["id"]}
    return LocalAnswer(status=200, body=msgspec.json.encode({"object": "list", "data": listed, **page}))


def _listed(processor: Processor, tenant: Tenant) -> list[dict[str, object]]:
    scheduler = processor.scheduler
    names = [name for name in scheduler.fleet.models_for(tenant.name) if tenant.may(name)]
    families = scheduler.settings.families
    names += [name for name, family in families.items() if members(family, tenant, scheduler.fleet)]
    return [{"id": name, **_OPENAI_MODEL, **_ANTHROPIC_MODEL, "display_name": name} for name in names]

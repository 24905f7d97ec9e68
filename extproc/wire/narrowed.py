"""What a request is beyond its body, and what its body becomes: functions over what the exchange knows.

Owns a form's size, who holds a response, what is left of a request without its text, and the body that goes
on in place of the client's.
"""

from __future__ import annotations

from msgspec.structs import replace

from extproc.core.body_forms import sound_tokens
from extproc.core.errors import Error, as_engine_says
from extproc.core.families import members
from extproc.core.outcome import Reject, Reservation
from extproc.core.reading import bare
from extproc.core.request import Dialect, Request, UsageAsked, without_text
from extproc.wire import usage
from extproc.wire.processor import Processor
from extproc.wire.rename import renamed
from extproc.wire.screen import Asked


def of_form(processor: Processor, asked: Asked, request: Request) -> Request | Reject:
    """A form's request, by the size that its sender declared; nobody can write another name into it."""
    if asks_family(processor, asked, request.model):
        return no_family("a form")
    # Where its head alone is here, and Envoy keeps no more, there is no other try (control/routes.py).
    once = not asked.whole and asked.length > processor.upload_kept_bytes_max
    return replace(request, prompt_tokens=sound_tokens(asked.length), once=once)


def asks_family(processor: Processor, asked: Asked, model: str | None) -> bool:
    """Whether a name is a family's. One of which the tenant may have no model is to it as a name of nothing:
    no refusal of ours may tell them apart."""
    scheduler = processor.scheduler
    family = scheduler.settings.families.get(model or "")
    return family is not None and bool(members(family, asked.tenant, scheduler.fleet))


def no_family(what: str) -> Reject:
    """What to say where nobody can write another model's name into a request."""
    return Error.UNFIT.reject(f"{what} cannot ask for a model family: name one of its models")


def to_holder(processor: Processor, asked: Asked, request: Request) -> Request | Reject:
    """The same for the one replica that holds the response that it is about."""
    held = processor.responses.of(asked.tenant.name, asked.item or request.follows or "")
    if isinstance(held, Reject):
        return held
    only, model = frozenset({held.address}), request.model or asked.model or held.model
    return replace(request, only=only, model=model, stream=request.stream or asked.streams)


def in_its_words(processor: Processor, asked: Asked, refused: Reject, body: bytes) -> Reject:
    """A refusal of a body as the engine that would serve it has it."""
    if refused.status != Error.UNFIT.status or asked.dialect is Dialect.TGI or asked.route is None:
        return refused
    model = bare(asked.route, body).model or asked.model
    return as_engine_says(refused, asked.dialect, processor.engine_for(model, asked.tenant))


def other_name(processor: Processor, asked: Asked, reservation: Reservation) -> bool:
    """Whether what serves a request knows its model by another name than its client wrote."""
    if (reservation.spilled_from or reservation.then) and asked.dialect is Dialect.OPENAI:
        return True
    pool = processor.scheduler.fleet.pools.get(reservation.pool)
    return pool is not None and pool.told_as(reservation.model) != reservation.model


def written_anew(
    processor: Processor,
    asked: Asked,
    reservation: Reservation,
    body: bytes,
    said: UsageAsked,
    *,
    anew: bool,
) -> tuple[str, bytes | None]:
    """What usage is asked for in the client's name, and the body in place of its own, None where it stays.

    `anew`: with another model's name in it. Engines refuse names that they do not know: a family's is none of
    theirs.
    """
    pool = processor.scheduler.fleet.pools.get(reservation.pool)
    name = reservation.model if pool is None else pool.told_as(reservation.model)
    new = renamed(body, name) if anew else None
    if pool is None or asked.route is None:
        return "", new
    return usage.onward(body, new, pool, asked.route.kind, said)


def bare_of_text(request: Request) -> Request:
    """A request without what it says: prefixes, families' scores and sessions do without."""
    return replace(without_text(request), prefix=(), tools=0, user=None)

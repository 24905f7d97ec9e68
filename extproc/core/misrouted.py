"""What to say to a request that no route takes: which base address, method or path its client meant.

Owns the one table of the paths that clients add to a base address, and so the dialect in which each client
reads an error. Only a path's last parts are looked at, so that a long one costs no more than a short one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from extproc.core.request import Dialect, RouteKind
from extproc.core.routes import NO_ROUTES, ROUTES, Routes, of_item, open_routes

#: The base addresses, after `http://HOST`, that each dialect's clients are given.
BASES: Final = {Dialect.OPENAI: "/v1", Dialect.TGI: "", Dialect.ANTHROPIC: ""}
#: What clients add to their base address, and whose clients do. Those of them that are no routes here are
#: listed too: a client that looks for `/embeddings` has the wrong base address as much as one for a chat.
ADDED: Final[dict[str, Dialect]] = {
    "chat/completions": Dialect.OPENAI,
    "completions": Dialect.OPENAI,
    "models": Dialect.OPENAI,
    "embeddings": Dialect.OPENAI,
    "rerank": Dialect.OPENAI,
    "score": Dialect.OPENAI,
    "responses": Dialect.OPENAI,
    "audio/transcriptions": Dialect.OPENAI,
    "audio/translations": Dialect.OPENAI,
    "audio/speech": Dialect.OPENAI,
    "generate": Dialect.TGI,
    "generate_stream": Dialect.TGI,
    "tokenize": Dialect.TGI,
    "chat_tokenize": Dialect.TGI,
    "info": Dialect.TGI,
    "health": Dialect.TGI,
    "v1/messages": Dialect.ANTHROPIC,
    "v1/messages/count_tokens": Dialect.ANTHROPIC,
    # Not served, and asked for by the same clients.
    "v1/messages/batches": Dialect.ANTHROPIC,
}
#: What engines serve besides, and the route here that does the same.
INSTEAD: Final = {
    "/completion": "/v1/completions",
    "/detokenize": "",
    "/api/chat": "/v1/chat/completions",
    "/api/generate": "/v1/completions",
}
#: Names in one expression: Envoy takes none whose program is larger than 100 (its re2).
NAMES_EACH: Final = 4
#: `models/NAME` has one part after it.
NAMED: Final = "models"


def _ends_with(dialect: Dialect, *more: str) -> tuple[str, ...]:
    names = [*(re.escape(name) for name in ADDED if ADDED[name] is dialect), *more]
    few = [names[at : at + NAMES_EACH] for at in range(0, len(names), NAMES_EACH)]
    return tuple(f"/({'|'.join(each)})/*$" for each in few)


#: The same as `dialect_of` for whoever has regular expressions alone (Envoy): Anthropic's are the paths that
#: one of ANTHROPIC_ENDS finds; of the others OpenAI's are those that one of OPENAI_ENDS finds, and those that
#: OPENAI_BEGINS finds and none of TGI_ENDS.
OPENAI_ENDS: Final = _ends_with(Dialect.OPENAI, f"{NAMED}/+[^/]+")
OPENAI_BEGINS: Final = "^/v1/+[^/]"
TGI_ENDS: Final = _ends_with(Dialect.TGI)
ANTHROPIC_ENDS: Final = _ends_with(Dialect.ANTHROPIC)
#: The last parts of a path that are looked at, and how much of it is said again.
PARTS_MAX: Final = 3
PATH_SAID_MAX: Final = 200
_HOST: Final = re.compile(r"[A-Za-z0-9._:\[\]-]{1,253}")


@dataclass(frozen=True, slots=True)
class Meant:
    """The path that a client's library added, whose library, and what stood before it as a base."""

    added: str
    dialect: Dialect
    base: str


def dialect_of(path: str, extra: Routes = NO_ROUTES) -> Dialect:
    """In whose dialect an error about this path (without its query) is read.

    `extra` are the routes that are served beside the usual ones.
    """
    if found := extra.get(path) or open_routes(path, extra):
        return found[0].dialect
    meant = _meant(_tidy(path))
    if meant is not None:
        return meant.dialect
    return Dialect.OPENAI if path.startswith("/v1/") and _tidy(path) != "/v1" else Dialect.TGI


def methods_of(path: str, extra: Routes = NO_ROUTES) -> tuple[str, ...]:
    """What may be asked at a path, query taken off; empty where nothing is served."""
    routes = ROUTES.get(path) or extra.get(path) or of_item(path) or open_routes(path, extra)
    return tuple(dict.fromkeys(route.method for route in routes if route.kind is not RouteKind.SITE))


def advice(method: str, path: str, *, scheme: str = "http", host: str = "", extra: Routes = NO_ROUTES) -> str:
    """`no route GET /models: use the base address …`; `path` without its query, `host` the client's."""
    if not _HOST.fullmatch(host):
        host = "HOST"
    root = f"{scheme if scheme in ('http', 'https') else 'http'}://{host}"
    said = path if len(path) <= PATH_SAID_MAX else path[:PATH_SAID_MAX] + "…"
    what = _advice(path, root, extra)
    return f"no route {method[:16]} {said}" + (f": {what}" if what else "")


def _advice(path: str, root: str, extra: Routes) -> str:
    if methods := methods_of(path, extra):
        return "it takes " + " or ".join(methods)
    tidy = _tidy(path)
    if tidy == "/v1":
        return (
            f"this is the base address of OpenAI's clients, which add /chat/completions to it; "
            f"for TGI's clients use the base address {root}"
        )
    if tidy in ROUTES or of_item(tidy):
        return f"write {tidy}"
    if tidy in INSTEAD:
        other = INSTEAD[tidy]
        return f"not served here; {other} is" if other else "not served here"
    meant = _meant(tidy)
    if meant is None or meant.base == BASES[meant.dialect]:
        return ""
    right = BASES[meant.dialect]
    right_path = f"{right}/{meant.added}"
    served = right_path in ROUTES or of_item(right_path)
    return f"use the base address {root}{right}" + (
        "" if served else f" (/{meant.added} is not served there)"
    )


def _tidy(path: str) -> str:
    """Without doubled slashes and slashes at the end, of a path's end alone where it is long."""
    parts = [part for part in path[-4 * PATH_SAID_MAX :].split("/") if part]
    return "/" + "/".join(parts)


def _meant(tidy: str) -> Meant | None:
    parts = tidy[1:].split("/")
    for count in range(min(PARTS_MAX, len(parts)), 0, -1):
        added, base = "/".join(parts[-count:]), "".join(f"/{part}" for part in parts[:-count])
        if added in ADDED:
            return Meant(added, ADDED[added], base)
        if count == 2 and parts[-2] == NAMED:
            return Meant(added, ADDED[NAMED], base)
    return None

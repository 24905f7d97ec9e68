"""The routes, one row each: what a path asks for, and what the gateway makes of it.

Owns which paths are served, in whose dialect, what kind of body they take, whether they stream, what work
they are, and where their answers say what they cost (the counts and the ends that Envoy's filters look for
are made from it: control/filters.py). How a body is read is reading.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

from extproc.core import contract
from extproc.core.own_paths import is_pattern, matches, precedence, same
from extproc.core.request import Dialect, RouteKind

#: What stands in a row's path for one part of it: a response's id, or a model's name.
ITEM: Final = "/{id}"


class BodyKind(Enum):
    """What a client sends."""

    JSON = "json"
    FORM = "form"  # multipart/form-data, of which the head alone is read
    NONE = "none"


class RouteWork(Enum):
    """What a request of the route costs a replica."""

    GENERATES = "generates"  # a prompt, and tokens after it
    PREFILLS = "prefills"  # a prompt alone: it has no output tokens
    FREE = "free"  # nothing worth counting, and no permit
    HERE = "here"  # the gateway answers


class Streams(Enum):
    """Whether an answer may be a stream."""

    NEVER = "never"
    ASKED = "asked"  # by the body's `stream`
    ALWAYS = "always"
    QUERY = "query"  # by `?stream=true`


#: Where an answer says what it cost: fields from its outermost object inwards, and what they are called in
#: metadata (contract.py). In a stream the outermost that is named here may stand inside another object.
Counts = tuple[tuple[tuple[str, ...], str], ...]
OPENAI_COUNTS: Final[Counts] = (
    (("usage", "prompt_tokens"), contract.PROMPT_TOKENS_KEY),
    (("usage", "completion_tokens"), contract.COMPLETION_TOKENS_KEY),
    # vLLM, SGLang and llama.cpp since 2026; llama.cpp before that. Its `tokens_cached` is what is cached when
    # all is over, the answer included, and says nothing of a hit.
    (("usage", "prompt_tokens_details", "cached_tokens"), contract.CACHED_TOKENS_KEY),
    (("timings", "cache_n"), contract.CACHED_TOKENS_KEY),
)
TGI_COUNTS: Final[Counts] = (
    (("details", "input_length"), contract.PROMPT_TOKENS_KEY),
    (("details", "generated_tokens"), contract.GENERATED_TOKENS_KEY),
)
#: Some rerankers say no other number than the sum, which is the prompts' where nothing is generated.
PREFILL_COUNTS: Final[Counts] = (
    (("usage", "prompt_tokens"), contract.PROMPT_TOKENS_KEY),
    (("usage", "total_tokens"), contract.TOTAL_TOKENS_KEY),
)
RESPONSES_COUNTS: Final[Counts] = (
    (("usage", "input_tokens"), contract.PROMPT_TOKENS_KEY),
    (("usage", "output_tokens"), contract.COMPLETION_TOKENS_KEY),
    (("usage", "input_tokens_details", "cached_tokens"), contract.CACHED_TOKENS_KEY),
)
#: Anthropic's `input_tokens` are those that no cache held: the prompt is the sum of the three.
MESSAGES_COUNTS: Final[Counts] = (
    (("usage", "input_tokens"), contract.PROMPT_TOKENS_KEY),
    (("usage", "output_tokens"), contract.COMPLETION_TOKENS_KEY),
    (("usage", "cache_read_input_tokens"), contract.CACHE_READ_TOKENS_KEY),
    (("usage", "cache_creation_input_tokens"), contract.CACHE_WRITTEN_TOKENS_KEY),
)
#: How streams say that they have ended: a word in place of an event's data, or the names of the last events.
OPENAI_END: Final = ("[DONE]",)
RESPONSES_END: Final = ("response.completed", "response.incomplete", "response.failed")
MESSAGES_END: Final = ("message_stop",)


#: A field of a body, from its outermost object inwards.
FieldPath = tuple[str, ...]
#: Where a body names its model and whether it streams, where nothing else is said.
MODEL_FIELD: Final[FieldPath] = ("model",)
STREAM_FIELD: Final[FieldPath] = ("stream",)


@dataclass(frozen=True, slots=True)
class OwnReading:
    """How a request is read on a route of the file's own.

    Of `model_field`, `model_header`, `model_part` (a form's) and `model` (the same for every request) one is
    set. `inputs` are the fields that are worked on, the whole body where there are none; `limit` is the field
    that bounds the output.
    """

    model_field: FieldPath = ()
    model_header: str = ""
    model_part: str = ""
    model: str = ""
    inputs: tuple[FieldPath, ...] = ()
    stream: FieldPath = STREAM_FIELD
    limit: FieldPath = ()

    @property
    def renames(self) -> bool:
        """Whether a body can go on with another model's name in it."""
        return self.model_field == MODEL_FIELD


@dataclass(frozen=True, slots=True)
class Route:
    """A path the gateway serves."""

    method: str
    path: str
    kind: RouteKind
    dialect: Dialect
    body: BodyKind = BodyKind.JSON
    streams: Streams = Streams.NEVER
    work: RouteWork = RouteWork.GENERATES
    counts: Counts = ()
    ends: tuple[str, ...] = ()
    #: Of the file's routes alone.
    own: OwnReading | None = None

    @property
    def named(self) -> str:
        """As people write it: `POST /v1/embeddings`."""
        return f"{self.method} {self.path}"


_O, _T, _A = Dialect.OPENAI, Dialect.TGI, Dialect.ANTHROPIC
_JSON, _FORM, _NONE = BodyKind.JSON, BodyKind.FORM, BodyKind.NONE
_ASKED, _NEVER, _ALWAYS = Streams.ASKED, Streams.NEVER, Streams.ALWAYS
_GENERATES, _PREFILLS, _FREE, _HERE = RouteWork
_OPENAI = (OPENAI_COUNTS, OPENAI_END)
_HEARS = (RouteWork.GENERATES, RESPONSES_COUNTS, OPENAI_END)
_RESPONSES, _MESSAGES = (RESPONSES_COUNTS, RESPONSES_END), (MESSAGES_COUNTS, MESSAGES_END)

# fmt: off
ROWS: Final = (
    Route("POST", "/v1/chat/completions", RouteKind.CHAT, _O, _JSON, _ASKED, _GENERATES, *_OPENAI),
    Route("POST", "/v1/completions", RouteKind.COMPLETION, _O, _JSON, _ASKED, _GENERATES, *_OPENAI),
    Route("POST", "/v1/embeddings", RouteKind.EMBEDDINGS, _O, _JSON, _NEVER, _PREFILLS, PREFILL_COUNTS),
    Route("POST", "/v1/rerank", RouteKind.RERANK, _O, _JSON, _NEVER, _PREFILLS, PREFILL_COUNTS),
    Route("POST", "/rerank", RouteKind.RERANK, _O, _JSON, _NEVER, _PREFILLS, PREFILL_COUNTS),
    Route("POST", "/v1/score", RouteKind.SCORE, _O, _JSON, _NEVER, _PREFILLS, PREFILL_COUNTS),
    Route("POST", "/v1/responses", RouteKind.RESPONSES, _O, _JSON, _ASKED, _GENERATES, *_RESPONSES),
    Route("GET", "/v1/responses/{id}", RouteKind.RESPONSE, _O, _NONE, Streams.QUERY, _FREE),
    Route("DELETE", "/v1/responses/{id}", RouteKind.RESPONSE, _O, _NONE, _NEVER, _FREE),
    Route("POST", "/v1/responses/{id}/cancel", RouteKind.RESPONSE, _O, _NONE, _NEVER, _FREE),
    Route("GET", "/v1/responses/{id}/input_items", RouteKind.RESPONSE, _O, _NONE, _NEVER, _FREE),
    Route("POST", "/v1/messages", RouteKind.MESSAGES, _A, _JSON, _ASKED, _GENERATES, *_MESSAGES),
    Route("POST", "/v1/messages/count_tokens", RouteKind.COUNT_TOKENS, _A, _JSON, _NEVER, _FREE),
    Route("POST", "/v1/audio/transcriptions", RouteKind.TRANSCRIPTION, _O, _FORM, _ASKED, *_HEARS),
    Route("POST", "/v1/audio/translations", RouteKind.TRANSCRIPTION, _O, _FORM, _ASKED, *_HEARS),
    Route("POST", "/v1/audio/speech", RouteKind.SPEECH, _O, _JSON, _NEVER, _PREFILLS),
    Route("GET", "/v1/models", RouteKind.MODELS, _O, _NONE, _NEVER, _HERE),
    Route("GET", "/v1/models/{id}", RouteKind.MODEL, _O, _NONE, _NEVER, _HERE),
    Route("POST", "/generate", RouteKind.GENERATE, _T, _JSON, _NEVER, _GENERATES, TGI_COUNTS),
    Route("POST", "/generate_stream", RouteKind.GENERATE_STREAM, _T, _JSON, _ALWAYS, _GENERATES, TGI_COUNTS),
    Route("POST", "/", RouteKind.COMPAT, _T, _JSON, _ASKED, _GENERATES, TGI_COUNTS),
    Route("GET", "/", RouteKind.HEALTH, _T, _NONE, _NEVER, _HERE),
    Route("POST", "/tokenize", RouteKind.TOKENIZE, _T, _JSON, _NEVER, _FREE),
    Route("POST", "/chat_tokenize", RouteKind.TOKENIZE, _T, _JSON, _NEVER, _FREE),
    Route("GET", "/info", RouteKind.INFO, _T, _NONE, _NEVER, _FREE),
    Route("GET", "/health", RouteKind.HEALTH, _T, _NONE, _NEVER, _HERE),
    Route("GET", contract.SITE_PATH, RouteKind.SITE, _O, _NONE, _NEVER, _HERE),
)
#: Served where `gateway.extra_routes` names them.
EXTRA_ROWS: Final = (
    Route("GET", "/ping", RouteKind.HEALTH, _T, _NONE, _NEVER, _HERE),
    Route("GET", "/metrics", RouteKind.METRICS, _T, _NONE, _NEVER, _FREE),
    Route("POST", "/invocations", RouteKind.INVOCATIONS, _T, _JSON, _ASKED, _GENERATES, TGI_COUNTS),
    Route("POST", "/vertex", RouteKind.VERTEX, _T, _JSON, _NEVER, _GENERATES, TGI_COUNTS),
)
# fmt: on

Routes = Mapping[str, tuple[Route, ...]]


#: No path.
PATTERNS: Final = "*"


def by_path(rows: Iterable[Route]) -> Routes:
    """The rows by their path; those that stand for several paths together, in their order, as PATTERNS."""
    found: dict[str, tuple[Route, ...]] = {}
    for row in rows:
        path = PATTERNS if is_pattern(row.path) and row.own is not None else row.path
        found[path] = (*found.get(path, ()), row)
    if PATTERNS in found:
        found[PATTERNS] = tuple(sorted(found[PATTERNS], key=lambda row: precedence(row.path)))
    return MappingProxyType(found)


ROUTES: Final = by_path(row for row in ROWS if ITEM not in row.path)
EXTRA_ROUTES: Final = by_path(EXTRA_ROWS)
NO_ROUTES: Final[Routes] = by_path(())
#: The routes of one of several, by what stands before its name.
_OF_ITEMS: Final = tuple((row.path.partition(ITEM)[0] + "/", row) for row in ROWS if ITEM in row.path)
#: Kinds that an engine answers without a permit, and without work worth counting.
FREE_KINDS: Final = frozenset(
    {RouteKind.OTHER_FREE, *(row.kind for row in (*ROWS, *EXTRA_ROWS) if row.work is RouteWork.FREE)}
)
#: The paths whose bodies are forms: of them Envoy shows their heads alone.
FORM_PATHS: Final = tuple(row.path for row in ROWS if row.body is BodyKind.FORM)
#: Kinds that go where a response is held.
HELD_KINDS: Final = frozenset({RouteKind.RESPONSES, RouteKind.RESPONSE})
#: Kinds of which nothing is known, not even the model, where reading failed.
UNKNOWN_UNREAD: Final = HELD_KINDS | {RouteKind.OTHER, RouteKind.OTHER_FREE}


def find_route(method: str, path: str, extra: Routes = NO_ROUTES) -> Route | None:
    """The route of a method and path (query ignored); what to say without one is in misrouted.py.

    `extra` are the routes that are served beside the usual ones. What answers GET answers HEAD.
    """
    bare = path.partition("?")[0]
    wanted = "GET" if method == "HEAD" else method
    for route in ROUTES.get(bare) or extra.get(bare, ()):
        if route.method == wanted:
            return route
    items = of_item(bare) if bare.startswith("/v1/") else []
    # What the gateway serves itself no pattern takes from it, by whatever method.
    if not items and PATTERNS in extra and bare not in ROUTES and bare not in extra:
        items = open_routes(bare, extra)
    return next((row for row in items if row.method == wanted), None)


def open_routes(bare: str, extra: Routes) -> list[Route]:
    """Of the file's routes that stand for several paths, those of the first pattern that matches this one."""
    found = [row for row in extra.get(PATTERNS, ()) if matches(row.path, bare)]
    return [row for row in found if same(row.path, found[0].path)]


def of_item(bare: str) -> list[Route]:
    """The routes of a path that names one of several; without its query."""
    found = []
    for before, row in _OF_ITEMS:
        if bare.startswith(before):
            after = row.path.partition(ITEM)[2]
            name = bare[len(before) :]
            if not name.endswith(after):
                continue
            item = name.removesuffix(after)
            # A model's name may have slashes in it, a response's id has none.
            if item and (row.kind is RouteKind.MODEL or "/" not in item):
                found.append(row)
    return found


def item_of(route: Route, path: str) -> str:
    """The part of a path (its query ignored) that a row leaves open; "" where it leaves none."""
    before, item, after = route.path.partition(ITEM)
    return path.partition("?")[0][len(before) + 1 :].removesuffix(after) if item else ""


def ends() -> tuple[str, ...]:
    """The names of the events that are the last of any route's stream."""
    named = (each for row in (*ROWS, *EXTRA_ROWS) for each in row.ends if each not in OPENAI_END)
    return tuple(dict.fromkeys(named))


def counts(own: Iterable[Route] = ()) -> Counts:
    """Where any route's answers say what they cost, each once; `own` are the file's routes."""
    return tuple(dict.fromkeys(each for row in (*ROWS, *EXTRA_ROWS, *own) for each in row.counts))

"""The words of the response cache: whose answers, by which rule, under which key."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from hashlib import sha256
from typing import Final

import msgspec

from extproc.core.request import RouteKind

#: A change of how keys are made makes every older answer unknown.
KEY_VERSION: Final = 2
#: The routes whose answers are cached.
CACHED_KINDS: Final = frozenset(
    {
        RouteKind.CHAT,
        RouteKind.COMPLETION,
        RouteKind.GENERATE,
        RouteKind.GENERATE_STREAM,
        RouteKind.COMPAT,
    }
)


class CacheDirective(Enum):
    """What a client asks for in `x-steersman-cache`."""

    USE = "use"
    REFRESH = "refresh"  # ask an engine, and keep the new answer
    OFF = "off"  # neither read nor kept


class CacheCharge(Enum):
    """What a hit costs its tenant."""

    REQUEST = "request"
    NOTHING = "nothing"
    TOKENS = "tokens"  # as if an engine had made the answer, less its time


class SemanticRule(msgspec.Struct, frozen=True, kw_only=True):
    """How a tenant is given answers to questions that ask the same in other words.

    `wrong_max`: the share of given answers that may be another question's; `confidence` how sure that must
    be. `check_share`: of answers that could be given so many are asked for and compared. `history`: messages
    before the question. `similarity_min` of two questions, `answers_alike` of two answers: cosines.
    """

    wrong_max: float = 0.005
    confidence: float = 0.95
    check_share: float = 0.05
    history: int = 0
    similarity_min: float = 0.75
    answers_alike: float = 0.9
    chars_max: int = 1_000


class SemanticAsk(msgspec.Struct, kw_only=True):
    """A question of a tenant with the semantic cache, the entry that its answer is checked against, and what
    came of it."""

    text: str
    frame: bytes
    rule: SemanticRule
    entry: int = 0
    similarity: float = 0.0
    would: bool = False
    outcome: str = ""


class CacheRule(msgspec.Struct, frozen=True, kw_only=True):
    """How one tenant's requests to one pool are cached.

    `scope` is whose answers they are: nobody outside of it ever gets one. `asks`: only where the client asks
    for it. `revision` is the model's, as the file says; `served` what the engine says of it.
    """

    scope: str
    asks: bool = False
    sampled: bool = False
    tools: bool = False
    charge: CacheCharge = CacheCharge.REQUEST
    ttl_ns: int = 3_600_000_000_000
    bytes_max: int = 64 * 1024 * 1024
    revision: str = ""
    served: str = ""
    #: Where engines are told to find the adapters that they load, by name: other weights are there.
    adapters: Mapping[str, str] = {}
    #: A hit's usage says that its prompt tokens were cached.
    marks: bool = False
    #: Whether an equal request that comes while the first is answered waits for that answer.
    joins: bool = True
    #: None where only equal requests get its answers.
    semantic: SemanticRule | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens of an answer, as its engine counted them; 0 where it did not say."""

    input_tokens: int = 0
    output_tokens: int = 0


class WantedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A request that no answer is known for: what its answer will be kept under, and must be like."""

    scope: str
    key: bytes
    model: str
    pool: str
    kind: RouteKind
    stream: bool
    #: The client asked for usage or details: an answer without is not whole.
    counts: bool
    ttl_ns: int
    bytes_max: int
    charge: CacheCharge = CacheCharge.REQUEST
    #: Tool calls may stand in it.
    tools: bool = False
    #: A hit's usage says that its prompt tokens were cached.
    marks: bool = False
    #: It may wait for the answer of an equal one.
    joins: bool = False
    #: The rule that held when it was looked up; None where that is not asked again.
    rule: CacheRule | None = None
    #: What it asks in words, where questions that ask the same may have its answer.
    asked: SemanticAsk | None = None

    @property
    def question(self) -> tuple[str, bytes]:
        """What equal requests have in common: scope and key."""
        return self.scope, self.key


class AskAnswer(msgspec.Struct, frozen=True, gc=False):
    """The store of answers has to be asked, which takes a round trip; `tenant` is who asks."""

    wanted: WantedAnswer
    tenant: str


class CachedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer from the cache: the body as its client would have had it, and how old it is."""

    body: bytes
    stream: bool
    age_s: int
    usage: Usage
    charge: CacheCharge
    #: How likely it is the answer, where it was another question's; None where the request was equal.
    likely: float | None = None
    #: What it took of a replica's time when it was made.
    gpu_ms: float = 0.0


def digest(
    *,
    scope: str,
    model: str,
    pool: str,
    revision: str,
    kind: RouteKind,
    stream: bool,
    body: bytes,
    served: str = "",
) -> bytes:
    """The key of a request: SHA-256 over everything that its answer follows from.

    `body` is canonical. The parts are JSON texts in a list, so that no two lists of parts are one text.
    """
    head = msgspec.json.encode([KEY_VERSION, scope, model, pool, revision, served, kind.value, stream])
    key = sha256(head + b"\n")
    key.update(body)
    return key.digest()

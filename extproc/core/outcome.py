"""What a decision can be, and what comes back at a request's end.

Owns the value types that cross the seams: `Route` and `Reject` go out of `decide`, `Outcome` comes
in to `settle`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

import msgspec

from extproc.core.cachekeys.values import CachedAnswer
from extproc.core.load import Plan

#: What late binding adds to the score of an endpoint that does not take the request now.
LATER_MS = 1_000_000.0
#: How many scores a reason's text names; the reason itself holds them all.
REASON_SCORES_SHOWN = 3


#: The code of a 429 for want of quota.
QUOTA_EXCEEDED = "quota_exceeded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """An answer without an upstream: status, machine-readable code, message, seconds to wait."""

    status: int
    code: str
    message: str
    retry_after_s: int | None = None
    #: Further response headers: the rate limits' figures.
    headers: tuple[tuple[str, str], ...] = ()


class Named(Protocol):
    """Whatever has an address: an endpoint, as a reason sees it."""

    @property
    def address(self) -> str: ...


class Reason(NamedTuple):
    """Why these endpoints, in this order.

    `candidates[i]` scored `scores[i]`, lower is better, in the strategy's own unit; `best` are the
    indexes of the chosen, in order. `removed` counts the pool's endpoints that were no candidates,
    by cause; `degraded` says what was missing when the choice was made with less than it should. `defers`:
    scores from LATER_MS on are of endpoints that come after all others; without it a million is a score like
    any other.
    """

    strategy: str
    candidates: Sequence[Named]
    scores: Sequence[float]
    best: Sequence[int]
    removed: Mapping[str, int]
    degraded: str = ""
    defers: bool = False

    def text(self) -> str:
        """One line for people: strategy, the best few scores, what was left out and why."""
        parts = [f"{self.strategy}:"]
        shown = self.best[:REASON_SCORES_SHOWN]
        first = self.scores[shown[0]] if shown else 0.0
        for i in shown:
            later = self.defers and first < LATER_MS <= self.scores[i]
            parts.append(f"{self.candidates[i].address}={'later' if later else f'{self.scores[i]:.6g}'}")
        if len(self.candidates) > len(shown):
            parts.append(f"of {len(self.candidates)}")
        parts += [f"-{count} {cause}" for cause, count in self.removed.items() if count]
        if self.degraded:
            parts.append(f"degraded: {self.degraded}")
        return " ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRow:
    """One endpoint. `verdict` is "chosen #1" to "#3", candidate, suspect, waits or removed.

    `why` are reasons in words. `score` is the strategy's, lower is better, None where it gave none; `terms`
    are what it is made of, `forecast` what the request would meet there, whatever the strategy.
    """

    address: str
    verdict: str
    why: tuple[str, ...] = ()
    score: float | None = None
    terms: Mapping[str, float] = field(default_factory=dict)
    forecast: Mapping[str, float] = field(default_factory=dict)

    def plain(self) -> dict[str, object]:
        """As plain values; JSON has no infinity."""
        return {
            "address": self.address,
            "verdict": self.verdict,
            "why": list(self.why),
            "score": _finite(self.score),
            "terms": {name: _finite(value) for name, value in self.terms.items()},
            "forecast": {name: _finite(value) for name, value in self.forecast.items()},
        }


class Told(Protocol):
    """Whatever tells how a decision came about; `len` counts the values that it holds on to."""

    def rows(self) -> Sequence[EndpointRow]: ...

    def __len__(self) -> int: ...


class Reservation(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Work that a decision puts on an endpoint until the request ends.

    `input_tokens` and `output_tokens` are predictions over all sequences; `permits` is how many of
    the engine's request permits are taken.

    Its fields in their order are the ticket (wire/ticket.py). New ones go at the end, with defaults: tickets
    of the previous version are still in flight when this one starts.
    """

    id: str
    tenant: str
    model: str
    pool: str
    address: str
    input_tokens: int
    output_tokens: int
    permits: int
    prompt_bytes: int
    stream: bool
    key: str = ""
    service_class: str = "standard"
    #: One sequence's limit; None where the client set none.
    max_new_tokens: int | None = None
    #: Prompt tokens that the endpoint was believed to hold.
    cached_tokens: int = 0
    #: Predicted from dispatch: the first token, and each further one.
    ttft_ms: float = 0.0
    tpot_ms: float = 0.0
    #: Whose choice it was; the arm of an experiment, "" outside of any.
    strategy: str = ""
    arm: str = ""
    #: How long it was held before.
    held_ms: float = 0.0
    #: The tenant or session that was drawn for the arm; 0 where requests are.
    unit: int = 0
    #: What was called, as `request.Kind` has it; "" where that is not known.
    route: str = ""
    #: The pool that should have served it, where another does.
    spilled_from: str = ""
    #: The site that sent it on, where one did, which keeps its tenant's quota; and through how many gateways
    #: it came.
    site: str = ""
    hops: int = 0
    #: Where its client is; "" where nothing says.
    place: str = ""
    #: The pool that is tried where its own has failed; "" where none is.
    then: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalAnswer:
    """An answer that the service itself knows: the model list, the gateway's health, what was cached.

    `by` is what it is called in Envoy's response code details.
    """

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    by: str = "answered"


class Routed(msgspec.Struct, frozen=True, kw_only=True):
    """Go to `cluster`, trying `addresses` in order and nothing else; `reservation` is what it costs."""

    cluster: str
    addresses: tuple[str, ...]
    reservation: Reservation
    reason: Reason
    #: What it expects of the endpoint.
    plan: Plan | None = None
    #: How it came about, as it was seen then.
    trace: Told | None = None
    #: For the client: the rate limits' figures.
    headers: tuple[tuple[str, str], ...] = ()
    #: What its model is called in the pool that is tried second; "" where its name stays.
    second_model: str = ""

    @property
    def retries(self) -> int:
        """How many further endpoints may be tried."""
        return len(self.addresses) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Wait here: a replica will be free. Whoever decided says later what became of it, by the id.

    `until_ns` is when it is shed at the latest.
    """

    id: str
    until_ns: int


class CacheHit(msgspec.Struct, frozen=True, kw_only=True):
    """It is answered from the cache: no endpoint hears of it. `id` is what it is called in explanations."""

    id: str
    answer: CachedAnswer
    #: For the client: the rate limits' figures.
    headers: tuple[tuple[str, str], ...] = ()


class End(Enum):
    """How a request ended, from most to least successful. What an engine says inside a 200 counts as well."""

    OK = "ok"
    REFUSED = "refused"  # 4xx of the engine: its answer, not a fault
    ERROR = "error"  # 5xx, resets, timeouts
    CLIENT_GONE = "client_gone"


class Counted(Enum):
    """Who counted an answer's tokens."""

    ENGINE = "engine"
    ESTIMATED = "estimated"  # we, by events and bytes


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One access-log record, as the books need it. Times in nanoseconds, None where not seen.

    `final` is false for the heartbeat of a request that still runs. `served_by` is the endpoint of
    the last attempt, empty when none was reached. `refused`: the engine said inside a 200 that it was
    overloaded. `events` are a stream's that held a token, None where nobody counted them.
    Counts are the engine's, over all sequences, until `meter.metered` has judged and completed them.
    """

    reservation: Reservation
    final: bool
    status: int = 0
    end: End = End.OK
    served_by: str = ""
    attempts: int = 0
    duration_ns: int = 0
    ttft_ns: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    refused: bool = False
    #: The engine said an error of its own, be it inside a 200.
    error_said: bool = False
    #: The engine did not take the key that Envoy showed it, if it showed one.
    key_refused: bool = False
    events: int | None = None
    request_bytes: int = 0
    response_bytes: int = 0
    #: Whose count `output_tokens` is.
    counted: Counted = Counted.ENGINE
    #: The engine's count cannot be: more than was asked for.
    impossible: bool = False
    #: When Envoy took it, in unix time; 0 where not said. And what of its trace rode with it.
    start_unix_ns: int = 0
    trace: str = ""
    #: Prompt tokens that the engine says it found cached; None where it does not say.
    cached_tokens: int | None = None
    #: What its engine calls an answer that it keeps; "" for most, which are not kept.
    response_id: str = ""
    #: What a provider said of its rate limits (spill/limits.py); "" where nothing.
    provider: str = ""
    #: It failed in the pool that it was sent to, and was tried in its own: the status there, "lost" or "late"
    #: (contract.FAILED_THERE_KEY); "" where not.
    failed_there: str = ""
    #: It failed in its own pool, and was tried in `reservation.then`: likewise (contract.FAILED_HOME_KEY).
    failed_home: str = ""

    @property
    def served_in(self) -> str:
        """The pool that answered, or was tried last."""
        if self.failed_there:
            return self.reservation.spilled_from
        return self.reservation.then if self.failed_home else self.reservation.pool


def _finite(value: float | None) -> float | None:
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return None
    return float(f"{value:.6g}")

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from extproc.core.decide import ENDPOINTS_NAMED
from extproc.core.endpoint import SUSPECT_FIRST_NS
from extproc.core.fleet import Endpoint, Fleet, PoolSpec
from extproc.core.ledger import Ledger
from extproc.core.outcome import Reject, Routed
from extproc.core.request import IMAGE_TOKENS, Dialect, Request, RouteKind
from extproc.core.strategies import STRATEGIES
from extproc.core.tenant import ANONYMOUS, Tenant
from tests.stand.changed import replace
from tests.stand.schedulers import decided, make_reservation

S = 1_000_000_000
CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=400, max_new_tokens=50)


def fleet_of(*permits: int, strategy: str = "least_work", engine: str = "tgi") -> Fleet:
    """One pool `p` of model `m`, with an endpoint for each number of permits."""
    endpoints = tuple((f"10.0.0.{i}:80", "", most) for i, most in enumerate(permits))
    return Fleet(
        [PoolSpec(name="p", models=("m", "alias"), strategy=strategy, endpoints=endpoints, engine=engine)]
    )


def ask(fleet: Fleet, request: Request = CHAT, tenant: Tenant = ANONYMOUS, **changes: Any) -> Routed | Reject:
    books = changes.pop("books", Ledger(ttl_ns=60 * S, remembered_max=10))
    facts: dict[str, Any] = {
        "id": "i-1",
        "default_model": "m",
        "reservations_max": 10,
        "now_ns": 100 * S,
        "rng": Random(1),
    }
    return decided(request, tenant, fleet, books, **{**facts, **changes})


def routed(*args: Any, **changes: Any) -> Routed:
    decision = ask(*args, **changes)
    assert isinstance(decision, Routed), decision
    return decision


def rejected(*args: Any, **changes: Any) -> Reject:
    decision = ask(*args, **changes)
    assert isinstance(decision, Reject), decision
    return decision


def test_a_route() -> None:
    """Cluster, three ordered endpoints, a reservation of what is predicted, and the scores."""
    fleet = fleet_of(8, 8, 8, 8)
    for endpoint, tokens in zip(fleet.endpoints, (40, 10, 30, 20), strict=True):
        endpoint.tokens = tokens
    decision = routed(fleet)
    assert decision.cluster == "pool.p/standard"
    assert decision.addresses == ("10.0.0.1:80", "10.0.0.3:80", "10.0.0.2:80")
    assert decision.reservation == make_reservation(
        tenant="anonymous",
        output_tokens=50,
        stream=False,
        max_new_tokens=50,
        ttft_ms=decision.reservation.ttft_ms,
        tpot_ms=decision.reservation.tpot_ms,
        strategy="least_work",
        route="chat",
    )
    # Of an idle A100 with an 8B model, the prior: 8 + 100·.07 ms of prefill, then 12 ms a token.
    assert decision.reservation.ttft_ms == pytest.approx(14.8, abs=0.5)
    assert decision.reservation.tpot_ms == pytest.approx(11.9, abs=0.5)
    assert list(decision.reason.scores) == [190, 160, 180, 170]  # what waits, and its own 150
    assert decision.reason.text() == "least_work: 10.0.0.1:80=160 10.0.0.3:80=170 10.0.0.2:80=180 of 4"


def test_deciding_changes_nothing() -> None:
    """The same question twice has the same answer: the caller enters the reservation."""
    fleet = fleet_of(8, 8, strategy="round_robin")
    assert routed(fleet).addresses == routed(fleet).addresses


@pytest.mark.parametrize(
    ("asked", "tenants", "model"),
    [("alias", "m", "alias"), (None, "alias", "alias"), (None, None, "m")],
)
def test_the_model_of_a_request(asked: str | None, tenants: str | None, model: str) -> None:
    """The request's, else the tenant's, else the gateway's."""
    tenant = Tenant(name="t", default_model=tenants)
    decision = routed(fleet_of(8), replace(CHAT, model=asked), tenant)
    assert (decision.reservation.model, decision.reservation.tenant) == (model, "t")


def test_an_unknown_model() -> None:
    """404, naming no more of the name than fits a line."""
    answer = rejected(fleet_of(8), replace(CHAT, model="x" * 100_000))
    assert (answer.status, answer.code) == (404, "model_not_found")
    assert answer.message == f"no model {'x' * 128!r} here; GET /v1/models lists what there is"


def test_a_model_not_allowed() -> None:
    """A model that is served, but not to this tenant, is as if it were nowhere; its alias is another name."""
    tenant = Tenant(name="t", models=frozenset({"alias"}))
    answer = rejected(fleet_of(8), replace(CHAT, model="m"), tenant)
    nowhere = rejected(fleet_of(8), replace(CHAT, model="x"), tenant)
    assert (answer.status, answer.code) == (404, "model_not_found")
    assert replace(answer, message=answer.message.replace("'m'", "'x'")) == nowhere
    assert routed(fleet_of(8), replace(CHAT, model="alias"), tenant).reservation.model == "alias"
    assert rejected(fleet_of(8), replace(CHAT, model="m"), Tenant(name="t", models=frozenset())).status == 404
    unnamed = rejected(fleet_of(8), replace(CHAT, model=None), tenant, default_model="m")
    assert "'m'" not in unnamed.message


def test_full() -> None:
    """429 with a wait when no endpoint has the permits left."""
    fleet = fleet_of(4, 2)
    fleet.endpoints[0].permits, fleet.endpoints[1].permits = 3, 2
    assert routed(fleet).addresses == ("10.0.0.0:80",)
    answer = rejected(fleet, replace(CHAT, sequences=2))
    assert (answer.status, answer.code, answer.retry_after_s) == (429, "overloaded", 1)


def test_more_sequences_than_any_endpoint_takes() -> None:
    """What TGI can never take is the client's mistake, in TGI's own status, and no matter of waiting."""
    answer = rejected(fleet_of(4, 2), replace(CHAT, sequences=5))
    assert (answer.status, answer.message) == (
        422,
        "5 sequences are asked for; a replica takes at most 4 at once",
    )


@pytest.mark.parametrize("engine", ["vllm", "sglang", "llamacpp"])
def test_a_batch_larger_than_any_endpoint(engine: str) -> None:
    """Engines that queue what is above their slots are given it, the largest replica to itself."""
    fleet = fleet_of(4, 2, engine=engine)
    decision = routed(fleet, replace(CHAT, sequences=5))
    assert decision.addresses == ("10.0.0.0:80",)
    # All of them are in the books: what it may be charged goes by them.
    assert decision.reservation.permits == 5
    fleet.endpoints[0].permits = 1
    answer = rejected(fleet, replace(CHAT, sequences=5))
    assert (answer.status, answer.code) == (429, "overloaded")
    fleet.endpoints[0].ready = False
    assert routed(fleet, replace(CHAT, sequences=5)).addresses == ("10.0.0.1:80",)


def test_none_ready() -> None:
    """503 with a wait, which is another thing than full."""
    fleet = fleet_of(4)
    fleet.endpoints[0].ready = False
    answer = rejected(fleet)
    assert (answer.status, answer.code, answer.retry_after_s) == (503, "no_ready_endpoint", 5)


def test_the_books_are_bounded() -> None:
    """429 when the ledger follows as many requests as it may."""
    books = Ledger(ttl_ns=60 * S, remembered_max=10)
    fleet = fleet_of(8)
    books.enter(routed(fleet).reservation, fleet.endpoints[0], now_ns=0)
    assert rejected(fleet, books=books, reservations_max=1).status == 429
    assert routed(fleet, books=books, reservations_max=2)


@pytest.mark.parametrize("kind", [RouteKind.TOKENIZE, RouteKind.INFO])
def test_free_kinds(kind: RouteKind) -> None:
    """What an engine answers without a permit takes none, and goes to a full endpoint too."""
    fleet = fleet_of(4)
    fleet.endpoints[0].permits = 6  # the limit was lowered meanwhile
    reservation = routed(fleet, replace(CHAT, kind=kind)).reservation
    assert (reservation.permits, reservation.input_tokens, reservation.output_tokens) == (0, 0, 0)


def test_prediction() -> None:
    """Token ids count themselves, images a fixed number, outputs once for each sequence."""
    fleet = fleet_of(8)
    ids = routed(fleet, replace(CHAT, prompt_tokens=7, prompt_bytes=0, sequences=3)).reservation
    assert (ids.input_tokens, ids.output_tokens, ids.permits) == (7, 150, 3)
    image = routed(fleet, replace(CHAT, images=2, max_new_tokens=None)).reservation
    assert (image.input_tokens, image.output_tokens) == (100 + 2 * IMAGE_TOKENS, 256)
    assert image.prompt_bytes == 0, "text beside images teaches nothing about bytes per token"


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_suspects_come_last_and_are_not_excluded(strategy: str) -> None:
    """An endpoint that failed lately is behind all others, whatever the scores."""
    fleet = fleet_of(8, 8, 8, strategy=strategy)
    trusted = fleet.endpoints[1]
    trusted.tokens = trusted.requests = trusted.picked = 7
    for endpoint in fleet.endpoints[0], fleet.endpoints[2]:
        endpoint.failed(100 * S)
    decision = routed(fleet)
    assert decision.addresses[0] == trusted.address
    assert len(decision.addresses) == 3
    assert decision.reason.text().endswith("-2 suspect")
    trusted.ready = False
    assert set(routed(fleet).addresses) == {"10.0.0.0:80", "10.0.0.2:80"}


def test_every_considered_candidate_has_its_score() -> None:
    """A reason's scores are its candidates', with suspects left out where they were not needed."""
    fleet = fleet_of(*[8] * 5)
    fleet.endpoints[0].failed(100 * S)
    for _ in range(2):
        reason = routed(fleet).reason
        assert len(reason.scores) == len(reason.candidates)
        fleet.endpoints[1].failed(100 * S)
        fleet.endpoints[2].failed(100 * S)
    assert [reason.candidates[i].address for i in reason.best[:2]] == ["10.0.0.3:80", "10.0.0.4:80"]


def test_removed_are_counted_by_cause() -> None:
    """The reason says how many were left out and why."""
    fleet = fleet_of(*[4] * 5)
    fleet.endpoints[0].ready = False
    fleet.endpoints[1].permits = fleet.endpoints[2].permits = 4
    decision = routed(fleet)
    assert decision.reason.removed == {"not ready": 1, "full": 2}
    assert decision.reason.text() == "least_work: 10.0.0.3:80=150 10.0.0.4:80=150 -1 not ready -2 full"


def test_degraded() -> None:
    """A degraded choice is by least in flight and says so."""
    fleet = fleet_of(8, 8, strategy="random")
    fleet.endpoints[0].requests = 3
    decision = routed(fleet, degraded="internal error")
    assert decision.addresses[0] == "10.0.0.1:80"
    assert decision.reason.text() == ("least_request: 10.0.0.1:80=1 10.0.0.0:80=4 degraded: internal error")


def test_no_more_than_three_are_named() -> None:
    """Retries beyond two further endpoints are not worth naming."""
    assert len(routed(fleet_of(*[8] * 9)).addresses) == ENDPOINTS_NAMED == 3


def test_failures_in_a_burst_count_once() -> None:
    """A replica that dies under ten streams has failed once; failing again later doubles its pause."""
    endpoint = Endpoint(address="10.0.0.1:80", pool="p")
    for _ in range(10):
        endpoint.failed(100 * S)
    assert endpoint.suspect_until_ns == 100 * S + SUSPECT_FIRST_NS
    endpoint.failed(101 * S)
    assert endpoint.suspect_until_ns == 101 * S + 2 * SUSPECT_FIRST_NS
    for k in range(40):
        endpoint.failed((1_000 + 100 * k) * S)
    assert endpoint.suspect_until_ns == (1_000 + 3_900 + 30) * S
    endpoint.succeeded()
    assert (endpoint.failures, endpoint.suspect_until_ns) == (0, 0)


def test_nothing_is_predicted_to_cost_nothing() -> None:
    """It would pass a quota that is spent: an answer has a token for each sequence, and a prompt has one."""
    fleet = fleet_of(8)
    for _ in range(200):
        fleet.pools["p"].lengths.saw("t", "m", None, 0)
    tenant = Tenant(name="t")
    empty = replace(CHAT, prompt_bytes=0, max_new_tokens=None, segments=(), sequences=3)
    reservation = routed(fleet, empty, tenant).reservation
    assert (reservation.input_tokens, reservation.output_tokens) == (1, 3)
    assert routed(fleet, replace(empty, max_new_tokens=0), tenant).reservation.output_tokens == 0
    free = routed(fleet, replace(empty, kind=RouteKind.TOKENIZE), tenant).reservation
    assert (free.input_tokens, free.output_tokens) == (0, 0)

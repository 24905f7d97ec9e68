"""Laws of families: features and scores in bounds, the choice within floor and permission."""

from __future__ import annotations

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.families import (
    NAMES,
    Family,
    FamilyChoice,
    Weights,
    features,
    members,
    pick,
    thresholds_for,
)
from extproc.core.families.choice import LOAD, UNAVAILABLE
from extproc.core.fleet import Fleet
from extproc.core.outcome import Reject
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.tenant import Tenant
from extproc.wire.rename import renamed
from tests.stand.schedulers import make_pool

MODELS = ("a", "b", "c", "d")

requests = st.builds(
    Request,
    kind=st.just(RouteKind.CHAT),
    dialect=st.just(Dialect.OPENAI),
    segments=st.lists(st.text(max_size=3_000), max_size=3).map(tuple),
    prompt_bytes=st.integers(0, 10**9),
    max_new_tokens=st.none() | st.integers(0, 10**9),
    messages=st.integers(0, 10**6),
    tools=st.integers(0, 10**6),
    json_output=st.booleans(),
    sequences=st.integers(1, 4),
)
weights = st.builds(
    Weights,
    st.floats(-1e3, 1e3),
    st.lists(st.floats(-1e3, 1e3), min_size=len(NAMES), max_size=len(NAMES)).map(tuple),
)


@given(requests, weights)
def test_features_and_scores_are_in_bounds(request: Request, given_weights: Weights) -> None:
    """Whatever is asked and however it is weighed; the same request has the same score."""
    found = features(request)
    assert len(found) == len(NAMES)
    assert all(0.0 <= each <= 1.0 for each in found)
    score = given_weights.score(found)
    assert 0.0 < score <= 1.0
    assert given_weights.score(features(request)) == score


@given(st.text(max_size=2_000), st.integers(0, 5_000))
def test_what_stands_in_the_middle_of_a_long_message_costs_nothing(text: str, more: int) -> None:
    """Two messages of one length with the same ends have the same features: only so much is looked at."""
    head, tail = "a" * 1_024, "z" * 512

    def request_of(middle: str) -> Request:
        message = head + middle + tail
        return Request(
            kind=RouteKind.CHAT, dialect=Dialect.OPENAI, segments=(message,), prompt_bytes=len(message)
        )

    middle = text + "x" * more
    assert features(request_of(middle)) == features(request_of("y" * len(middle)))


@given(
    request=requests,
    given_weights=weights,
    allowed=st.none() | st.frozensets(st.sampled_from(MODELS)),
    floor=st.none() | st.sampled_from(MODELS) | st.integers(1, 6),
    served=st.frozensets(st.sampled_from(MODELS), min_size=1),
    taken=st.fixed_dictionaries({model: st.integers(0, 4) for model in MODELS}),
    lost=st.frozensets(st.sampled_from(MODELS)),
    waiting=st.fixed_dictionaries({model: st.integers(0, 2) for model in MODELS}),
    wait_ms=st.none() | st.floats(0.0, 1e4),
)
def test_the_choice(
    request: Request,
    given_weights: Weights,
    allowed: frozenset[str] | None,
    floor: str | int | None,
    served: frozenset[str],
    taken: dict[str, int],
    lost: frozenset[str],
    waiting: dict[str, int],
    wait_ms: float | None,
) -> None:
    """Always served, allowed and at or above the floor; unshifted exactly when it is the wished model; a
    shift for load goes down."""
    fleet = Fleet(
        make_pool(f"10.0.0.{i}:1", name=model, models=(model,), strategy="random")
        for i, model in enumerate(sorted(served))
    )
    for model in served:
        (endpoint,) = fleet.pools[model].endpoints
        endpoint.permits, endpoint.ready = taken[model], model not in lost
    family = Family(
        name="f", models=MODELS, thresholds=thresholds_for(4), weights=given_weights, wait_ms=wait_ms
    )
    tenant = Tenant(name="t", models=allowed, quality_floor=floor)
    may = [MODELS[i] for i in members(family, tenant, fleet)]
    choice = pick(request, tenant, fleet, family, waiting=lambda pool: waiting[pool])
    if not may:
        assert isinstance(choice, Reject)
        return
    assert isinstance(choice, FamilyChoice)
    assert {choice.model, choice.wished} <= set(may)
    assert (choice.model == choice.wished) == (choice.shifted == "")
    if choice.shifted == LOAD:
        assert wait_ms is not None
        assert MODELS.index(choice.model) < MODELS.index(choice.wished)
        assert choice.wished not in lost
    if choice.shifted:
        assert choice.model not in lost
    if choice.shifted == UNAVAILABLE:
        assert choice.wished in lost


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), values, max_size=6), st.text(), st.sampled_from((None, 1)))
def test_a_renamed_body_is_the_same_but_for_its_model(
    body: dict[str, object], model: str, indent: int | None
) -> None:
    """Every other field stays, numbers to the last digit."""
    raw = json.dumps(body, indent=indent).encode()
    written = renamed(raw, model)
    assert json.loads(written) == {**body, "model": model}
    before, after = (msgspec.json.decode(each, type=dict[str, msgspec.Raw]) for each in (raw, written))
    assert {name: bytes(value) for name, value in before.items() if name != "model"} == {
        name: bytes(value) for name, value in after.items() if name != "model"
    }

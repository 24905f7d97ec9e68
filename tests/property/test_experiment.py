from __future__ import annotations

import math
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from extproc.core.decide import RoutingRequest, resolve
from extproc.core.experiment import Arm, Experiment, Experiments, shares_of
from extproc.core.experiment.sequence import Mean
from extproc.core.fleet import Fleet
from extproc.core.ledger import Ledger
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.tenant import ANONYMOUS
from tests.stand.changed import replace
from tests.stand.schedulers import make_pool

CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=400, max_new_tokens=50)
FLEET = Fleet([make_pool("10.0.0.1:80", strategy="least_request")])

weights = st.lists(st.floats(0.05, 1.0), min_size=2, max_size=6)
names = st.text("abcdefghij-", min_size=1, max_size=12)


def case_of(number: int, tenant: str = "t") -> RoutingRequest:
    found = resolve(
        CHAT,
        replace(ANONYMOUS, name=tenant),
        FLEET,
        Ledger(ttl_ns=1, remembered_max=1),
        id=f"i-{number}",
        default_model="m",
        reservations_max=10,
    )
    assert isinstance(found, RoutingRequest)
    return found


def experiments_of(name: str, parts: list[float], split: str) -> Experiments:
    whole = sum(parts)
    arms = tuple(
        Arm(name=f"a{i}", strategy="least_request", share=part / whole) for i, part in enumerate(parts)
    )
    found = Experiments(rng=Random(1))
    found.apply([Experiment(name=name, pools=("p",), arms=arms, split=split)], now_ns=0)  # type: ignore[arg-type]  # drawn from the three
    return found


@given(names, weights, st.sampled_from(["request", "session", "tenant"]), st.integers(0, 10**6))
def test_every_request_has_one_arm_and_always_the_same(
    name: str, parts: list[float], split: str, number: int
) -> None:
    """On two services that know nothing of each other, and after a restart."""
    routing = case_of(number, tenant=f"t{number}")
    drawn = {experiments_of(name, parts, split).assign(routing, CHAT).arm for _ in range(2)}
    [arm] = drawn
    assert arm.partition("/")[0] == name
    assert arm.partition("/")[2] in {f"a{i}" for i in range(len(parts))}


@given(names, weights)
def test_shares_are_kept(name: str, parts: list[float]) -> None:
    """Each arm gets its share of 1,500 requests, within five standard deviations."""
    experiments, count = experiments_of(name, parts, "request"), 1_500
    bare = case_of(0)
    seen = [experiments.assign(replace(bare, id=f"i-{i}"), CHAT).arm for i in range(count)]
    for i, part in enumerate(parts):
        share = part / sum(parts)
        got = seen.count(f"{name}/a{i}")
        assert abs(got - share * count) <= 5 * math.sqrt(count * share * (1 - share)) + 1


@given(st.sampled_from(["one", "two", "x"]), weights)
def test_experiments_are_drawn_apart(name: str, parts: list[float]) -> None:
    """Who is in the first arm of one is no more likely in the first arm of another."""
    one, two = experiments_of(name, [1, 1], "tenant"), experiments_of(f"{name}-", [1, 1], "tenant")
    bare, count = case_of(0), 400
    same = 0
    for i in range(count):
        routing = replace(bare, tenant=replace(ANONYMOUS, name=f"t{i}"))
        same += (
            one.assign(routing, CHAT).arm.partition("/")[2] == two.assign(routing, CHAT).arm.partition("/")[2]
        )
    assert abs(same - count / 2) <= 5 * math.sqrt(count / 4)


@given(st.lists(st.floats(0.0, 1.0), max_size=300), st.floats(1e-6, 0.5))
def test_an_interval_holds_its_mean(values: list[float], alpha: float) -> None:
    """It lies in [0, 1] around the mean, and more confidence never narrows it."""
    mean = Mean()
    for value in values:
        mean.add(value)
    interval, wider = mean.interval(alpha), mean.interval(alpha / 10)
    assert 0.0 <= interval.low <= interval.mean + 1e-12
    assert interval.mean - 1e-12 <= interval.high <= 1.0
    assert wider.low <= interval.low
    assert wider.high >= interval.high


@given(st.dictionaries(names, st.none() | st.floats(0.01, 0.15), min_size=2, max_size=6))
def test_shares_sum_to_one(given_shares: dict[str, float | None]) -> None:
    """Whenever an arm leaves its share open, and each is above 0."""
    if None not in given_shares.values():
        given_shares = {**given_shares, "rest": None}
    shares = shares_of(given_shares)
    assert math.isclose(sum(shares.values()), 1.0)
    assert all(share > 0 for share in shares.values())

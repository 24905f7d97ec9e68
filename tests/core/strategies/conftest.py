"""Fleets in which what a strategy reads is set by hand, and a scheduler that places by one strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import pytest

from extproc.core.endpoint import Endpoint
from extproc.core.outcome import Routed
from extproc.core.predict.prior import Prior
from extproc.core.predict.speed import Speed, SpeedModel
from extproc.core.predict.timing import Timing
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.tenant import ANONYMOUS
from tests.stand.fleets import one_at_a_time
from tests.stand.schedulers import make_pool, make_scheduler

CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=400, max_new_tokens=50)

#: Round numbers: a step 10 + B ms, a prefill 5 + u/10 ms, whatever the context.
ROUND = Timing(10.0, 1.0, 0.0, 5.0, 0.1, 0.0)


def _fleet(count: int, *, timing: Timing = ROUND) -> list[Endpoint]:
    """Idle endpoints of one model, 100,000 KV tokens each."""
    model = SpeedModel(Prior(timing, 100_000, True))
    endpoints = []
    for i in range(count):
        endpoint = Endpoint(address=f"10.0.0.{i}:80", pool="p")
        endpoint.speed = Speed(model)
        one_at_a_time(endpoint)
        endpoints.append(endpoint)
    return endpoints


@pytest.fixture
def fleet() -> Callable[..., list[Endpoint]]:
    """Makes idle endpoints, whose step takes 10 + B ms and whose prefill takes 5 + u/10 ms."""
    return _fleet


class Counter:
    """A scheduler with one pool, and where it sends."""

    def __init__(self, count: int, strategy: str) -> None:
        spec = make_pool(*(f"10.0.0.{i}:80" for i in range(count)), permits=60_000, strategy=strategy)
        self.scheduler = make_scheduler(spec, rng=Random(7))

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """All of them."""
        return self.scheduler.fleet.endpoints

    def serves(self, requests: int, *, finish: bool = True) -> list[str]:
        """Where so many requests go, each ended at once unless they shall pile up."""
        chosen = []
        for _ in range(requests):
            decision = self.scheduler.admit(CHAT, ANONYMOUS, now_ns=0)
            assert isinstance(decision, Routed)
            chosen.append(decision.addresses[0])
            if finish:
                self.scheduler.cancel(decision.reservation.id, now_ns=0)
        return chosen


@pytest.fixture
def scheduler() -> Callable[[int, str], Counter]:
    """Makes a scheduler with so many endpoints, placing by the strategy of that name."""
    return Counter

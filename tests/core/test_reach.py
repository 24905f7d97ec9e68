"""What the service's own looks come to."""

from __future__ import annotations

import pytest

from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.outcome import Outcome
from extproc.core.reach import Look
from extproc.core.reports import ReplicaReport, ReportedState
from tests.stand.schedulers import make_reservation

ONE, TWO = "10.0.0.1:80", "10.0.0.2:80"
S = 1_000_000_000


def fleet() -> Fleet:
    return Fleet(
        [
            PoolSpec(
                name="p",
                models=("m",),
                strategy="steer",
                endpoints=((ONE, "", 8), (TWO, "", 8)),
            )
        ]
    )


def served(one: Fleet, address: str, *, at_s: int) -> None:
    reservation = make_reservation(address=address, stream=False)
    endpoint = one.endpoint("p", address)
    assert endpoint is not None
    outcome = Outcome(reservation=reservation, final=True, status=200, served_by=address)
    one.answered(endpoint, outcome, now_ns=at_s * S, failed=False)


def ready(one: Fleet) -> list[bool]:
    return [endpoint.ready for endpoint in one.endpoints]


def test_refused_is_death_and_an_answer_brings_back_slowly_with_a_cold_cache() -> None:
    """Nobody listens: no traffic at once. Who comes back is another process and starts with a little."""
    one = fleet()
    pool = one.pools["p"]
    pool.prefixes.insert(ONE, (1, 2, 3), capacity_blocks=9)
    one.looked(ONE, Look.REFUSED, now_ns=S)
    one.looked(TWO, Look.ANSWERED, now_ns=S)
    assert ready(one) == [False, True]
    assert pool.prefixes.blocks(ONE) == 3
    one.looked(ONE, Look.ANSWERED, now_ns=3 * S)
    one.step(now_ns=3 * S)
    assert ready(one) == [True, True]
    assert one.endpoints[0].health.value == pytest.approx(0.05)
    assert pool.prefixes.blocks(ONE) == 0
    one.step(now_ns=4 * S)
    assert one.endpoints[0].health.value == pytest.approx(0.25)


@pytest.mark.parametrize("found", [Look.SILENT, Look.UNWELL, Look.LOADING])
def test_three_looks_in_a_row_that_found_trouble_take_it_out(found: Look) -> None:
    """Two are doubt, and an answer between them begins anew."""
    one = fleet()
    looks = [Look.ANSWERED, found, found, Look.ANSWERED, found, found, found]
    seen = []
    for at, each in enumerate(looks, 1):
        one.looked(TWO, Look.ANSWERED, now_ns=at * S)
        one.looked(ONE, each, now_ns=at * S)
        seen.append(ready(one)[0])
    assert seen == [True] * 6 + [False]


def test_who_answers_requests_is_not_down_for_a_late_health_page() -> None:
    """A long step on a busy engine holds up its page as well as everything else."""
    one = fleet()
    one.looked(ONE, Look.ANSWERED, now_ns=S)
    for at in range(2, 9):
        one.looked(ONE, Look.SILENT, now_ns=at * S)
        served(one, ONE, at_s=at)
    assert ready(one) == [True, True]


def test_a_pool_that_we_may_not_reach_is_not_taken_down() -> None:
    """A network policy lets Envoy through alone: all are silent to us from the first look on."""
    one = fleet()
    for at in range(1, 20):
        for address in (ONE, TWO):
            one.looked(address, Look.SILENT, now_ns=at * S)
        one.step(now_ns=at * S)
    assert ready(one) == [True, True]


def test_silence_beside_neighbours_that_were_reached_is_the_replicas() -> None:
    """A machine that is off answers nobody, and was never reached by us either."""
    one = fleet()
    for at in range(1, 4):
        one.looked(ONE, Look.SILENT, now_ns=at * S)
        one.looked(TWO, Look.ANSWERED, now_ns=at * S)
    one.looked(ONE, Look.SILENT, now_ns=4 * S)
    assert ready(one) == [False, True]


def test_an_agents_word_goes_before_our_looks() -> None:
    """It is closer; when it has fallen silent, we look again."""
    one = fleet()
    one.looked(ONE, Look.REFUSED, now_ns=S)
    one.heard(ReplicaReport(address=ONE, pool="p", state=ReportedState.READY), now_ns=2 * S)
    one.looked(ONE, Look.REFUSED, now_ns=2 * S)
    one.step(now_ns=2 * S)
    assert "reach" not in one.endpoints[0].health.causes
    assert [address for address, _, _ in one.looks()] == [TWO]
    one.step(now_ns=9 * S)
    assert [address for address, _, _ in one.looks()] == [ONE, TWO]


def test_one_failed_request_is_over_within_seconds() -> None:
    """Health is whole again and no cause is left 15 s later, without any further request."""
    one = fleet()
    endpoint = one.endpoints[0]
    served(one, ONE, at_s=1)
    reservation = make_reservation(address=ONE, stream=False)
    outcome = Outcome(reservation=reservation, final=True, status=503, served_by=ONE)
    one.answered(endpoint, outcome, now_ns=S, failed=True)
    one.step(now_ns=S)
    assert endpoint.health.causes
    for quarter in range(8, 4 * 16):
        one.step(now_ns=quarter * S // 4)
    assert not endpoint.health.causes
    assert endpoint.health.value == 1.0

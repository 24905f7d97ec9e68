"""Whose fault an engine's own error is."""

from __future__ import annotations

import pytest

from extproc.core.blame import EACH_MAX, REPLICAS_MAX, WINDOW_NS, Blame, own_error
from extproc.core.feedback import Feedback
from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.outcome import End, Outcome
from tests.stand.schedulers import make_reservation

A, B = "10.0.0.1:80", "10.0.0.2:80"


def play(blame: Blame, *steps: tuple[str, str], at_ns: int = 0) -> list[bool]:
    held = []
    for tenant, address in steps:
        if tenant:
            held.append(blame.failed("p", address, tenant, now_ns=at_ns))
        else:
            blame.answered(address)
    return held


@pytest.mark.parametrize(
    ("steps", "held"),
    [
        # A tenant's own bad image, again and again among other tenants' good answers.
        ([("t", A), ("", A), ("t", A), ("", A), ("t", A), ("", A), ("t", A)], [False] * 4),
        # The same on every replica of the pool: it brings it along.
        ([("t", A), ("t", B), ("t", A), ("t", B), ("t", A), ("t", B), ("t", A)], [False] * 7),
        # A broken replica that nobody else asks.
        ([("t", A), ("t", A), ("t", A), ("t", A)], [False, False, True, True]),
        # Two tenants meet it there.
        ([("t", A), ("", A), ("u", A)], [False, True]),
        # One of them meets it everywhere and is no witness.
        ([("t", A), ("t", B), ("", A), ("", B), ("u", A)], [False, False, False]),
    ],
)
def test_who_is_blamed(steps: list[tuple[str, str]], held: list[bool]) -> None:
    """By who met it where, and whether good answers came between."""
    assert play(Blame(), *steps) == held


def test_what_is_old_is_no_witness() -> None:
    """Two tenants' errors an hour apart are two requests' errors."""
    blame = Blame()
    play(blame, ("t", A), ("", A))
    assert play(blame, ("u", A), at_ns=WINDOW_NS + 1) == [False]


def test_its_memory_is_bounded() -> None:
    """Replicas, tenants, and each one's list of the other."""
    blame = Blame()
    for i in range(REPLICAS_MAX + 10):
        blame.failed("p", f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}:80", f"t{i}", now_ns=i)
    assert (len(blame._at), len(blame._by), len(blame._row)) == (REPLICAS_MAX,) * 3
    for i in range(100):
        blame.failed("p", A, f"t{i}", now_ns=i)
    assert len(blame._at[A]) == EACH_MAX


@pytest.mark.parametrize(
    ("status", "end", "attempts", "said", "own"),
    [
        (500, End.ERROR, 1, False, True),
        (500, End.ERROR, 1, True, True),
        (503, End.ERROR, 1, True, False),
        (500, End.ERROR, 2, True, False),
        (0, End.ERROR, 1, False, False),
        (400, End.REFUSED, 1, False, False),
        (200, End.ERROR, 1, True, True),  # an error inside a stream
        (200, End.ERROR, 1, False, False),  # a stream that was cut
        (200, End.OK, 1, False, False),
    ],
)
def test_only_an_answer_of_the_engine_may_be_the_requests_fault(
    status: int, end: End, attempts: int, said: bool, own: bool
) -> None:
    """What Envoy answers for want of one, and resets, are the replica's."""
    reservation = make_reservation(address=A, stream=False)
    outcome = Outcome(
        reservation=reservation,
        final=True,
        status=status,
        end=end,
        served_by=A,
        attempts=attempts,
        error_said=said,
    )
    assert own_error(outcome) is own


def test_a_tenants_own_bad_requests_leave_the_replica_whole_for_everybody() -> None:
    """500s for one tenant's image between good answers: neither suspect nor degraded. A reset is both."""
    fleet = Fleet([PoolSpec(name="p", models=("m",), strategy="steer", endpoints=((A, "", 8), (B, "", 8)))])
    feedback, endpoint = Feedback(fleet), fleet.endpoints[0]

    def ended(tenant: str, status: int, end: End) -> None:
        reservation = make_reservation(tenant=tenant, address=A, stream=False)
        outcome = Outcome(
            reservation=reservation, final=True, status=status, end=end, served_by=A, attempts=1
        )
        feedback.judge(outcome, now_ns=1)

    for _ in range(20):
        ended("t", 500, End.ERROR)
        ended("u", 200, End.OK)
    fleet.step(now_ns=2)
    assert (endpoint.failures, endpoint.health.causes) == (0, {})
    ended("t", 503, End.ERROR)
    fleet.step(now_ns=3)
    assert (endpoint.failures, set(endpoint.health.causes)) == (1, {"errors"})

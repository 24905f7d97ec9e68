"""The worker process: what it simulates and fits, and what becomes of one that dies or is late."""

from __future__ import annotations

import asyncio
import sys
import time
from random import Random

import pytest

from extproc.core.predict.timing import Timing
from extproc.core.scaling.values import ReplicaKind, WorkSample
from extproc.core.slo import ClassSpec
from extproc.scaling.check import Checked, CheckJob, check, play
from extproc.scaling.worker import AGAIN_MAX_S, AGAIN_S, FITTED_MIN, FitJob, Fitted, Worker, fit

A100 = ReplicaKind(
    name="a100",
    timing=Timing(11.8, 0.029, 9.2e-5, 8.9, 0.0669, 1.7e-6),
    permits=128,
    kv_capacity_tokens=450_000,
)
#: Seconds for a child process on a busy machine.
DEADLINE_S = 240.0


def job(rate: float, *replicas: int, **more: float) -> CheckJob:
    rng = Random(1)
    samples = tuple(
        WorkSample("standard", 200 + rng.randrange(1_000), 0, 10 + rng.randrange(80)) for _ in range(100)
    )
    return CheckJob(
        samples=samples,
        kind=A100,
        classes=(ClassSpec(),),
        requests_per_s=rate,
        replicas=replicas,
        budget_s=more.get("budget_s", 1e9),
    )


def test_a_play_tells_few_replicas_from_enough() -> None:
    """At forty a second one A100 is far over its edge; at eight three are idle most of the time."""
    few, judged, _ = play(job(40.0, 1), 1, 1_200)
    enough, _, _ = play(job(8.0, 3), 3, 400)
    assert judged >= 600
    assert enough == 1.0
    assert few < 0.9


def test_what_would_say_nothing_new_is_not_played() -> None:
    """Where the number in the middle is enough, one more is too; where it is not, one fewer is not either."""
    found, speed = check(job(3.0, 1, 2, 3), requests_per_play_s=1e9)
    assert sorted(found.attained) == [1, 2]
    assert found.requests >= 150
    assert speed > 0.0


def test_what_there_is_no_time_for_is_left_out() -> None:
    """A machine too slow for the budget plays nothing, and says so."""
    found, speed = check(job(3.0, 1, 2, 3, budget_s=0.5), requests_per_play_s=10.0)
    assert (found.attained, found.requests) == ({}, 0)
    assert speed > 10.0


def test_a_trend_is_fitted_by_the_library() -> None:
    """A rate that climbs and falls back: parameters in their ranges, and who fitted them."""
    pytest.importorskip("statsmodels", reason="the extra forecast is not installed")
    rng = Random(2)
    rates = [20.0 + 10.0 * ((i // 40) % 2) + rng.gauss(0.0, 1.0) for i in range(200)]
    found = fit(FitJob(rates=rates))
    assert found.by == "statsmodels"
    assert 0.0 < found.level <= 1.0
    assert 0.0 <= found.trend <= 1.0
    assert 0.0 <= found.damped < 1.0


@pytest.mark.parametrize("rates", [[], [5.0] * (FITTED_MIN - 1), [0.0] * 500, [float("nan")] * 500])
def test_a_past_that_says_nothing_is_fitted_to_nothing(rates: list[float]) -> None:
    """Too little, a day of zeros, no numbers: no parameters."""
    assert fit(FitJob(rates=rates)) == Fitted()


def test_the_process_answers_and_goes_when_it_is_stopped() -> None:
    """A simulation and a fit come back from a process of its own, which is gone afterwards."""

    async def go() -> None:
        worker = Worker(clock=time.monotonic_ns)
        answer = await worker.ask(job(2.0, 1), timeout_s=DEADLINE_S)
        rates = [5.0 + i % 7 for i in range(FITTED_MIN)]
        fitted = await worker.ask(FitJob(rates=rates), timeout_s=DEADLINE_S)
        process = worker._process
        assert process is not None
        await worker.stop()
        assert isinstance(answer, Checked)
        assert isinstance(fitted, Fitted)
        assert set(answer.attained) == {1}
        assert process.returncode is not None

    asyncio.run(go())


@pytest.mark.parametrize(
    ("program", "timeout_s", "counted"),
    [
        ("import sys; sys.exit(3)", DEADLINE_S, "ended"),
        ("import sys; sys.stdin.buffer.read(4); sys.stdout.buffer.write(b'\\xff'*8)", DEADLINE_S, "ended"),
        ("import time; time.sleep(1000)", 0.2, "late"),
    ],
)
def test_a_worker_that_dies_lies_or_is_late_is_left_alone_for_a_while(
    program: str, timeout_s: float, counted: str
) -> None:
    """No answer, no exception, no process left over; and no other try at once."""

    async def go() -> None:
        now_ns = 0
        worker = Worker(clock=lambda: now_ns, command=(sys.executable, "-c", program))
        assert await worker.ask(FitJob(rates=[]), timeout_s=timeout_s) is None
        assert worker.counts[counted] == 1
        assert worker._process is None
        assert not worker.free
        assert await worker.ask(FitJob(rates=[]), timeout_s=timeout_s) is None
        assert worker.counts.total() == 1
        now_ns = 10_000_000_000
        assert worker.free

    asyncio.run(go())


#: One that answers three jobs and dies over the fourth.
MORTAL = """
import sys
from extproc.pipes import framed, read_frame
from extproc.scaling.worker import Fitted
for _ in range(3):
    read_frame(sys.stdin.buffer, most=1_000_000)
    sys.stdout.buffer.write(framed(Fitted()))
    sys.stdout.buffer.flush()
read_frame(sys.stdin.buffer, most=1_000_000)
sys.exit(1)
"""
#: One whose job takes more memory than it may have.
GREEDY = """
import sys
from extproc.pipes import framed, read_frame
from extproc.scaling import worker
worker.bounded()
read_frame(sys.stdin.buffer, most=1_000_000)
held = bytearray(worker.MEMORY_MAX)
sys.stdout.buffer.write(framed(worker.Fitted()))
"""


def test_a_worker_that_takes_too_much_memory_ends_and_nothing_else_does() -> None:
    """The job fails at the bound, the service hears no answer and goes on by the model."""

    async def go() -> None:
        worker = Worker(clock=lambda: 0, command=(sys.executable, "-c", GREEDY))
        assert await worker.ask(FitJob(rates=[]), timeout_s=DEADLINE_S) is None
        assert worker.counts == {"ended": 1}
        assert worker._process is None

    asyncio.run(go())


def test_a_worker_that_dies_again_and_again_is_started_again_each_time() -> None:
    """Five lives of three answers: each end costs one job and one pause, and no pause grows over the last."""

    async def go() -> None:
        now_ns = 0
        worker = Worker(clock=lambda: now_ns, command=(sys.executable, "-c", MORTAL))
        for life in range(1, 6):
            answers = [await worker.ask(FitJob(rates=[]), timeout_s=DEADLINE_S) for _ in range(4)]
            assert answers == [Fitted()] * 3 + [None]
            assert worker.counts == {"answered": 3 * life, "ended": life}
            assert not worker.free
            now_ns += round(AGAIN_S * 1e9)
            assert worker.free

    asyncio.run(go())


def test_one_that_never_answers_is_asked_less_and_less_often() -> None:
    """Ends without an answer between them: each pause is twice the last, up to an hour."""

    async def go() -> None:
        now_ns, pauses = 0, []
        worker = Worker(clock=lambda: now_ns, command=("/nowhere/worker",))
        for _ in range(12):
            assert await worker.ask(FitJob(rates=[]), timeout_s=DEADLINE_S) is None
            pauses.append((worker._again_ns - now_ns) / 1e9)
            now_ns = worker._again_ns
        assert pauses == [min(AGAIN_S * 2.0**n, AGAIN_MAX_S) for n in range(12)]

    asyncio.run(go())

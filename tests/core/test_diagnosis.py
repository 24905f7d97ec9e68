from __future__ import annotations

from typing import Any

import pytest

from extproc.core.diagnosis import (
    EVENTS_MAX,
    FRESH_NS,
    NEVER_SEEN_FACTOR,
    STALE_FACTOR,
    STALE_NS,
    STATE_BELIEVED_NS,
    Diagnosis,
    step_pool,
)
from extproc.core.endpoint import Endpoint
from extproc.core.health import RISE_FROM
from extproc.core.outcome import End, Outcome
from extproc.core.reports import GpuReport, ReplicaReport, ReportedState
from tests.stand.schedulers import make_reservation

S = 1_000_000_000
T0 = 1_000 * S
#: The agent's clock at its first report.
UNIX_MS = 1_700_000_000_000


class Pool:
    """A few diagnoses and a clock; `heard` is a report of the first of them."""

    def __init__(self, count: int = 1) -> None:
        self.diagnoses = [Diagnosis(Endpoint(address=f"1:{i}", pool="p")) for i in range(count)]
        self.now_ns = T0
        self.blind = False

    def heard(self, which: int = 0, **fields: Any) -> None:
        unix_ms = UNIX_MS + (self.now_ns - T0) // 1_000_000
        report = ReplicaReport(
            address=f"1:{which}", pool="p", **{"boot_id": 1, "sent_unix_ms": unix_ms, **fields}
        )
        self.diagnoses[which].heard(report, now_ns=self.now_ns)

    def passes(self, seconds: float = 0.25, *, reporting: bool = False, **fields: Any) -> None:
        """Time, in steps of a quarter second, with a report a step if wished."""
        for _ in range(max(1, round(seconds * 4))):
            self.now_ns += S // 4
            if reporting:
                self.heard(**fields)
            self.blind = step_pool(self.diagnoses, now_ns=self.now_ns)

    def causes(self, which: int = 0) -> dict[str, float]:
        causes = self.diagnoses[which].endpoint.health.causes
        return {name: cause.factor for name, cause in causes.items()}

    @property
    def endpoint(self) -> Endpoint:
        return self.diagnoses[0].endpoint


def answer(*, ttft_ms: int | None = 100, end: End = End.OK) -> Outcome:
    reservation = make_reservation(
        address="1:0", input_tokens=1, output_tokens=1, prompt_bytes=4, stream=True
    )
    return Outcome(
        reservation=reservation,
        final=True,
        end=end,
        ttft_ns=None if ttft_ms is None else ttft_ms * 1_000_000,
    )


@pytest.mark.parametrize(
    ("state", "factor"),
    [
        (ReportedState.READY, None),
        (ReportedState.DRAINING, None),
        (ReportedState.DEGRADED, 0.5),
        (ReportedState.LOADING, 0.0),
        (ReportedState.GONE, 0.0),
        (ReportedState.HUNG, 0.0),
        (ReportedState.WRONG_MODEL, 0.0),
    ],
)
def test_states_become_causes(state: ReportedState, factor: float | None) -> None:
    """What the agent sees silences, or only casts doubt."""
    pool = Pool()
    pool.heard(state=state)
    assert pool.causes() == ({} if factor is None else {"state": factor})
    assert pool.endpoint.draining == (state is ReportedState.DRAINING)


def test_a_drain_is_of_the_operator_or_the_agent() -> None:
    """Either drains; both must let go."""
    pool = Pool()
    pool.diagnoses[0].ordered_drain = True
    pool.heard(state=ReportedState.READY)
    assert pool.endpoint.draining
    pool.diagnoses[0].ordered_drain = False
    pool.heard(state=ReportedState.DRAINING)
    assert pool.endpoint.draining
    pool.heard(state=ReportedState.READY)
    assert not pool.endpoint.draining


def test_failed_probes_add_up_to_a_suspicion() -> None:
    """Each failure in a row takes a further part; a million are no overflow."""
    pool = Pool()
    pool.heard(probe_failures=1)
    assert pool.causes() == {"probe": pytest.approx(0.7)}
    pool.heard(probe_failures=2)
    assert pool.causes() == {"probe": pytest.approx(0.49)}
    pool.heard(probe_failures=1_000_000)
    pool.passes()
    assert pool.endpoint.health.value == 0.5
    pool.heard(probe_failures=0)
    assert pool.causes() == {}


def test_confidence_falls_with_age() -> None:
    """Whole while fresh, half when stale, gradually in between."""
    pool = Pool(2)
    for which in (0, 1):
        pool.heard(which)
    pool.now_ns = T0 + FRESH_NS
    step_pool(pool.diagnoses, now_ns=pool.now_ns)
    assert pool.causes() == {}
    pool.now_ns = T0 + (FRESH_NS + STALE_NS) // 2
    step_pool(pool.diagnoses, now_ns=pool.now_ns)
    assert pool.causes() == {"telemetry": pytest.approx((1 + STALE_FACTOR) / 2)}
    assert not pool.endpoint.stale
    pool.now_ns = T0 + STALE_NS + 1
    pool.heard(1)
    assert step_pool(pool.diagnoses, now_ns=pool.now_ns) is False
    assert pool.endpoint.stale
    assert not pool.diagnoses[1].endpoint.stale
    assert pool.causes() == {"telemetry": STALE_FACTOR}
    pool.heard()
    step_pool(pool.diagnoses, now_ns=pool.now_ns)
    assert pool.causes() == {}
    assert not pool.endpoint.stale


def test_all_stale_is_blind_and_never_seen_is_not() -> None:
    """A pool that never had telemetry needs none; one that lost all of it is blind until it returns."""
    pool = Pool(2)
    pool.passes()
    assert not pool.blind
    pool.heard(0)
    pool.passes()
    assert not pool.blind
    pool.passes(4)
    assert pool.blind
    pool.heard(1)
    pool.passes()
    assert not pool.blind


def test_never_seen_is_not_idle() -> None:
    """Beside neighbours that report, one that never did is in doubt; where none does, it is not."""
    pool = Pool(2)
    pool.passes()
    assert pool.causes() == {}
    pool.heard(1)
    pool.passes()
    assert pool.causes() == {"telemetry": NEVER_SEEN_FACTOR}
    pool.passes(4)
    assert pool.causes() == {}, "its neighbour knows no more than it now"


def test_foreign_load_goes_with_the_telemetry() -> None:
    """Stale figures hold nobody off: our own ledger carries on alone."""
    pool = Pool()
    for _ in range(3):
        pool.heard(running=100)
    assert pool.endpoint.foreign == 100
    pool.passes(2)
    assert pool.endpoint.foreign == 100
    pool.passes(2)
    assert pool.endpoint.foreign == 0


def test_a_stale_word_silences_no_longer_than_believed() -> None:
    """A replica that was hung when its agent was last heard is tried again, with doubt."""
    pool = Pool()
    pool.heard(state=ReportedState.HUNG)
    pool.passes(STATE_BELIEVED_NS / S - 1)
    assert not pool.endpoint.ready
    pool.passes(4)
    assert pool.endpoint.ready
    assert pool.causes() == {"telemetry": STALE_FACTOR, "state": STALE_FACTOR}


def test_loading_ends_with_a_slow_start() -> None:
    """Ready at once when it has loaded, with little at first."""
    pool = Pool()
    pool.heard(state=ReportedState.LOADING)
    pool.passes(1, reporting=True, state=ReportedState.LOADING)
    assert (pool.endpoint.ready, pool.endpoint.health.value) == (False, 0.0)
    pool.heard(state=ReportedState.READY)
    assert pool.endpoint.health.value == RISE_FROM
    pool.passes(2, reporting=True)
    assert 0.3 < pool.endpoint.weight < 0.6
    pool.passes(4, reporting=True)
    assert pool.endpoint.weight == 1.0


def test_errors_are_suspected_as_far_as_they_are_sure() -> None:
    """One failure is a hint, many are a case; a quiet half minute forgets."""
    pool = Pool()
    diagnosis = pool.diagnoses[0]
    diagnosis.answered(answer(end=End.ERROR), now_ns=pool.now_ns, failed=True)
    step_pool(pool.diagnoses, now_ns=pool.now_ns)
    assert pool.causes() == {"errors": pytest.approx(0.8)}  # 1 of 1, at 1 / (1 + 4) sure
    for _ in range(36):
        diagnosis.answered(answer(end=End.ERROR), now_ns=pool.now_ns, failed=True)
    diagnosis.age(now_ns=pool.now_ns, neighbours_report=False)
    assert pool.causes()["errors"] == pytest.approx(1 - 37 / 41)
    pool.passes(130)
    assert pool.causes() == {}
    assert pool.endpoint.weight == 1.0


def test_good_answers_outweigh_a_failure() -> None:
    """The rate counts, not the number."""
    pool = Pool()
    for i in range(100):
        pool.diagnoses[0].answered(answer(), now_ns=pool.now_ns, failed=i == 50)
    pool.passes()
    assert pool.causes()["errors"] > 0.98


def test_a_slow_one_is_suspected_beside_its_pool() -> None:
    """Three times the pool's pace is normal life; more is suspect in proportion, and alone nobody is slow."""
    pool = Pool(3)
    for diagnosis, ttft_ms in zip(pool.diagnoses, (600, 100, 100), strict=True):
        for _ in range(8):
            diagnosis.answered(answer(ttft_ms=ttft_ms), now_ns=pool.now_ns, failed=False)
    step_pool(pool.diagnoses, now_ns=pool.now_ns)
    assert pool.causes() == {"latency": pytest.approx(0.5)}  # 3 ÷ 6
    assert pool.causes(1) == {}
    pool.passes(30)
    assert pool.causes() == {}, "too few answers by now to say so"
    alone = Pool()
    for _ in range(8):
        alone.diagnoses[0].answered(answer(ttft_ms=60_000), now_ns=alone.now_ns, failed=False)
    alone.passes()
    assert alone.causes() == {}


def test_only_good_answers_teach_pace() -> None:
    """A failure's quick end says nothing about how fast tokens come."""
    diagnosis = Pool().diagnoses[0]
    for _ in range(8):
        diagnosis.answered(answer(ttft_ms=1, end=End.ERROR), now_ns=T0, failed=True)
    assert diagnosis.mean_ttft_ns is None


def xid(code: int, *, ago_s: float = 0.0, uuid: str = "GPU-1") -> tuple[GpuReport, ...]:
    return (GpuReport(uuid=uuid, xids=((code, UNIX_MS - int(ago_s * 1000)),)),)


def test_a_reset_row_drains_until_reset() -> None:
    """Neither time, nor a restart alone, nor a new agent alone ends it; all of it together does."""
    pool = Pool()
    gpus = xid(95)
    pool.heard(gpus=gpus)
    pool.passes(3600, reporting=True, gpus=gpus)
    assert pool.causes() == {"gpu xid 95": 0.0}
    pool.heard(gpus=gpus, state=ReportedState.LOADING)
    pool.heard(gpus=gpus)
    assert pool.causes() == {"gpu xid 95": 0.0}
    pool.heard(boot_id=2)
    assert pool.causes() == {}
    lone = Pool()
    lone.heard(gpus=gpus)
    lone.heard(boot_id=2)
    assert lone.causes() == {"gpu xid 95": 0.0}, "the agent alone restarted"


def test_a_restart_row_ends_with_the_process() -> None:
    """The agent repeats the event all its life; after the restart it is over, and a new one counts."""
    pool = Pool()
    gpus = xid(94)
    pool.heard(gpus=gpus)
    assert pool.causes() == {"gpu xid 94": 0.25}
    pool.heard(gpus=gpus, state=ReportedState.GONE)
    pool.heard(gpus=gpus, state=ReportedState.DEGRADED)
    assert "gpu xid 94" in pool.causes()
    pool.heard(gpus=gpus)
    pool.heard(gpus=gpus)
    assert pool.causes() == {}
    pool.heard(gpus=(GpuReport(uuid="GPU-1", xids=((94, UNIX_MS), (94, UNIX_MS + 1))),))
    assert pool.causes() == {"gpu xid 94": 0.25}


def test_a_time_row_ends_with_quiet() -> None:
    """Ten minutes without a recurrence; a recurrence begins them anew."""
    pool = Pool()
    gpus = xid(74)
    pool.passes(590, reporting=True, gpus=gpus)
    again = (GpuReport(uuid="GPU-1", xids=((74, UNIX_MS), (74, UNIX_MS + 590_000))),)
    pool.passes(590, reporting=True, gpus=again)
    assert pool.causes() == {"gpu xid 74": 0.25}
    pool.passes(20, reporting=True, gpus=again)
    assert pool.causes() == {}


@pytest.mark.parametrize(
    ("code", "ago_s", "causes"),
    [
        (74, 500, {"gpu xid 74": 0.25}),
        (74, 700, {}),
        (94, 600, {"gpu xid 94": 0.25}),
        (94, 7200, {}),  # ready two hours later: it restarted, or was not hit
        (95, 70_000_000, {"gpu xid 95": 0.0}),
    ],
)
def test_old_events_are_old_to_a_service_that_has_just_started(
    code: int, ago_s: float, causes: dict[str, float]
) -> None:
    """The agent tells of its whole life: a quiet while counts from the event, not from our hearing of it."""
    pool = Pool()
    pool.heard(gpus=xid(code, ago_s=ago_s))
    assert pool.causes() == causes


def test_states_of_a_card_clear_themselves() -> None:
    """A throttled or lost card counts while it shows."""
    pool = Pool()
    hot = GpuReport(uuid="GPU-1", throttle_reasons=0x40, sm_clock_mhz=990, sm_clock_max_mhz=1980)
    pool.heard(gpus=(hot,))
    assert pool.causes() == {"gpu throttle": 0.5}
    pool.heard(gpus=(GpuReport(uuid="GPU-1", lost=True),))
    assert pool.causes() == {"gpu lost": 0.0}
    pool.heard(gpus=())
    assert pool.causes() == {}


def test_a_replica_is_as_slow_as_its_slowest_card() -> None:
    """Eight throttled cards of one replica count once, by the worst; different faults multiply."""
    pool = Pool()
    cards = tuple(
        GpuReport(uuid=f"GPU-{i}", throttle_reasons=0x80, sm_clock_mhz=1000 + i, sm_clock_max_mhz=2000)
        for i in range(8)
    )
    pool.heard(gpus=cards)
    assert pool.causes() == {"gpu throttle": 0.5}
    pool.passes(2, reporting=True, gpus=cards)
    assert pool.endpoint.weight == 0.5
    pool.heard(gpus=(*cards, GpuReport(uuid="GPU-9", ecc_uncorrected=1)))
    pool.passes()
    assert pool.endpoint.health.target == 0.25


def test_an_operator_clears_events() -> None:
    """What is told again afterwards stays cleared; a new event counts."""
    pool = Pool()
    pool.heard(gpus=xid(79))
    assert pool.diagnoses[0].clear_faults() == ["xid 79 on GPU-1"]
    pool.heard(gpus=xid(79))
    assert pool.causes() == {}
    pool.heard(gpus=xid(79, ago_s=-1))
    assert pool.causes() == {"gpu xid 79": 0.0}
    assert pool.diagnoses[0].clear_faults() == ["xid 79 on GPU-1"]
    assert pool.diagnoses[0].clear_faults() == []


def test_events_remembered_are_bounded() -> None:
    """An agent that invents cards fills its bound, and no more."""
    pool = Pool()
    diagnosis = pool.diagnoses[0]
    for i in range(EVENTS_MAX):
        pool.heard(gpus=tuple(GpuReport(uuid=f"GPU-{i}-{j}", xids=((79, 1), (95, 1))) for j in range(4)))
    assert len(diagnosis._active) == EVENTS_MAX
    assert len(diagnosis._cleared) == EVENTS_MAX

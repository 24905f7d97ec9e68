"""What a request's end adds to the figures of its key.

Owns which of a request's facts count as what. Pure; runs in the analytics' thread, not on the request's path.
"""

from __future__ import annotations

from extproc.core.events import Settled
from extproc.core.outcome import Reservation
from extproc.core.quota.values import GPU_US, MONEY
from extproc.observe.analytics.row import AnalyticsRow, RowKey, count_in


def key_of(reservation: Reservation) -> RowKey:
    """Where a placed request is counted."""
    r = reservation
    return RowKey(r.tenant, r.pool, r.model, r.strategy, r.arm, r.place)


def settled(row: AnalyticsRow, event: Settled) -> None:
    """A request has ended."""
    charged, sample, reservation = event.charged, event.sample, event.outcome.reservation
    name = event.outcome.end.value
    setattr(row, name, getattr(row, name) + 1)
    units = charged.units()
    row.input_tokens += charged.input_tokens
    row.output_tokens += charged.output_tokens
    row.gpu_us += units[GPU_US]
    row.cost_nano += units[MONEY]
    if not reservation.permits:
        return
    row.cached_tokens += min(reservation.cached_tokens, charged.input_tokens)
    row.held_ms.add(reservation.held_ms)
    if charged.input_tokens:
        row.prompt_tokens.add(charged.input_tokens)
    row.slo_met += sample.attained is True
    row.slo_missed += sample.attained is False
    if sample.ttft_ms is not None:
        row.ttft_ms.add(sample.ttft_ms)
    if sample.tpot_ms is not None:
        row.tpot_ms.add(sample.tpot_ms)
    if sample.total_ms is not None:
        row.total_ms.add(sample.total_ms)
        row.answer_tokens.add(charged.output_tokens)


def expired(row: AnalyticsRow) -> None:
    """A request's end never came."""
    row.expired += 1


def rejected(row: AnalyticsRow, code: str, waited_ms: float | None, missed: bool) -> None:
    """A request was refused by us; `waited_ms` None where it was never held and never could be.

    `missed`: for want of room, and somebody's whose class has targets.
    """
    row.rejected += 1
    count_in(row.codes, code, 1)
    row.slo_missed += missed
    if missed and waited_ms is not None:
        row.held_ms.add(waited_ms)


def left(row: AnalyticsRow, waited_ms: float | None, gave_up: bool) -> None:
    """A client left before its request was sent anywhere."""
    row.left += 1
    row.slo_missed += gave_up
    if waited_ms is not None:
        row.held_ms.add(waited_ms)


def asked(row: AnalyticsRow, family: str) -> None:
    """A request that this model serves had asked for a family."""
    count_in(row.families, family, 1)

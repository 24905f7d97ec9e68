"""What a request's end adds to the figures of its key.

Owns which of a request's facts count as what. Pure; runs in the analytics' thread, not on the request's path.
"""

from __future__ import annotations

from extproc.core.events import Settled
from extproc.core.outcome import End, Reservation, wanted_room
from extproc.core.quota.values import GPU_US, MONEY
from extproc.core.slo import tokens_each
from extproc.observe.analytics.row import AnalyticsRow, RowKey, count_in


def key_of(reservation: Reservation) -> RowKey:
    """Where a placed request is counted."""
    r = reservation
    return RowKey(r.tenant, r.pool, r.model, r.strategy, r.arm)


def settled(row: AnalyticsRow, event: Settled) -> None:
    """A request has ended."""
    outcome, charged, attained = event.outcome, event.charged, event.sample.attained
    reservation = outcome.reservation
    match outcome.end:
        case End.OK:
            row.ok += 1
        case End.REFUSED:
            row.refused += 1
        case End.ERROR:
            row.error += 1
        case End.CLIENT_GONE:
            row.client_gone += 1
    units = charged.units()
    row.input_tokens += charged.input_tokens
    row.output_tokens += charged.output_tokens
    row.gpu_us += units[GPU_US]
    row.cost_nano += units[MONEY]
    if not reservation.permits:
        # Costs no place on a replica (tokenize and the like): its times would say nothing of the others'.
        return
    row.cached_tokens += min(reservation.cached_tokens, charged.input_tokens)
    row.slo_met += attained is True
    row.slo_missed += attained is False
    row.held_ms.add(reservation.held_ms)
    if charged.input_tokens:
        row.prompt_tokens.add(charged.input_tokens)
    if outcome.ttft_ns is not None and not outcome.refused:
        row.ttft_ms.add(outcome.ttft_ns / 1e6)
    if outcome.end is not End.OK or outcome.refused:
        return
    row.answer_tokens.add(charged.output_tokens)
    row.total_ms.add(outcome.duration_ns / 1e6)
    further = tokens_each(outcome) - 1
    if outcome.ttft_ns is not None and outcome.output_tokens is not None and further > 0:
        # (end − first)/(n − 1), of one sequence.
        row.tpot_ms.add(max(0, outcome.duration_ns - outcome.ttft_ns) / 1e6 / further)


def expired(row: AnalyticsRow) -> None:
    """A request's end never came."""
    row.expired += 1


def rejected(row: AnalyticsRow, code: str, status: int, waited_ms: float | None) -> None:
    """A request was refused by us; `waited_ms` None where it was never held and never could be."""
    row.rejected += 1
    count_in(row.codes, code, 1)
    if waited_ms is None or not wanted_room(status, code):
        return
    row.slo_missed += 1
    row.held_ms.add(waited_ms)


def left(row: AnalyticsRow, waited_ms: float | None) -> None:
    """A client left before its request was sent anywhere."""
    row.left += 1
    if waited_ms is not None:
        row.held_ms.add(waited_ms)


def asked(row: AnalyticsRow, family: str) -> None:
    """A request that this model serves had asked for a family."""
    count_in(row.families, family, 1)

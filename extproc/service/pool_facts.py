"""What is so of a pool's replicas, as scaling asks for it: their stages, kinds, what losing one would cost.

Owns the reading of the fleet. Nothing here changes it; about five microseconds a replica.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from extproc.config.model import PoolConfig
from extproc.core.endpoint import Endpoint
from extproc.core.fleet import Fleet, Pool
from extproc.core.prefix import BLOCK_BYTES
from extproc.core.reach import Look
from extproc.core.reports import SERVING, GpuReport, ReportedState
from extproc.core.scaling.switches import CardSet, memory_lost
from extproc.core.scaling.values import ReplicaFact, ReplicaKind, ReplicaStage

#: A replica that was never ready counts as starting for so many load times, and so long at the least.
STARTING_LOADS: Final = 3.0
STARTING_S: Final = 600.0
#: Kinds of replicas in one pool that a plan tells apart.
KINDS_MAX: Final = 8


def stage_of(
    endpoint: Endpoint, look: Look | None, *, seen_ready: bool, age_s: float, patience_s: float
) -> ReplicaStage:
    """A replica's stage. One that was never ready starts, until that takes longer than `patience_s`."""
    if endpoint.draining:
        return "draining"
    if endpoint.ready:
        return "ready"
    said = endpoint.report.state if endpoint.report is not None else None
    if said is ReportedState.LOADING or (said is None and look is Look.LOADING):
        return "loading"
    if said is ReportedState.GONE:
        return "gone"
    return "failed" if seen_ready or age_s > patience_s else "starting"


def kind_name(hardware: str, gpus: int) -> str:
    """What people call a kind of replica: its card, and how many of them."""
    name = hardware or "replica"
    return name if gpus == 1 else f"{gpus}× {name}"


def kinds_of(pool: Pool, config: PoolConfig) -> tuple[ReplicaKind, ...]:
    """The kinds of a pool's replicas, the most frequent first; as the file has them where there are none."""
    groups: dict[tuple[str, int, float], list[Endpoint]] = {}
    for endpoint in pool.endpoints:
        price = endpoint.price_per_hour or config.price_per_hour
        groups.setdefault((endpoint.hardware, endpoint.gpus, price), []).append(endpoint)
    if not groups:
        return (_kind(pool, config.hardware, config.gpus, config.price_per_hour, ()),)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return tuple(_kind(pool, *at, among) for at, among in ordered[:KINDS_MAX])


def _kind(pool: Pool, hardware: str, gpus: int, price: float, among: Iterable[Endpoint]) -> ReplicaKind:
    some = list(among)
    return ReplicaKind(
        name=kind_name(hardware, gpus),
        # The learner's own: it is seen as it is when a plan is made.
        timing=pool.speed_of(hardware, gpus).timing,
        permits=min((each.max_concurrent for each in some), default=128),
        kv_capacity_tokens=min((each.kv_tokens for each in some), default=pool.kv_capacity_tokens),
        prefill_budget_tokens=pool.prefill_budget_tokens,
        price_per_hour=price,
        hardware=hardware,
        gpus=gpus,
    )


def fact_of(
    endpoint: Endpoint,
    pool: Pool,
    stage: ReplicaStage,
    price_per_hour: float,
    since_ns: int,
    best_kv_tokens: int = 0,
) -> ReplicaFact:
    """One replica; `best_kv_tokens` is what the best of its kind has."""
    load = endpoint.load
    running = max(1, load.streaming)
    left = max(0, load.reserved_tokens - load.context_tokens) / running if endpoint.requests else 0.0
    pace_ms = endpoint.speed.step_ms(load.streaming, load.context_tokens) if left else 0.0
    cards = endpoint.report.gpus if endpoint.report is not None else ()
    total, used, room = card_bytes(cards)
    block_tokens = BLOCK_BYTES / pool.calibration.bytes_per_token
    return ReplicaFact(
        address=endpoint.address,
        stage=stage,
        kind=kind_name(endpoint.hardware, endpoint.gpus),
        zone=endpoint.zone,
        requests=endpoint.load_requests,
        empty_in_ms=load.queued_ms + left * pace_ms,
        cached_value_tokens=pool.prefixes.blocks(endpoint.address) * block_tokens,
        price_per_hour=price_per_hour,
        since_ns=since_ns,
        node=endpoint.report.node if endpoint.report is not None else "",
        memory_lost=memory_lost(endpoint.kv_tokens, best_kv_tokens),
        total_bytes=total,
        used_bytes=used,
        room_bytes=room,
    )


def card_bytes(cards: Sequence[GpuReport]) -> tuple[int, int, int]:
    """(the cards' memory, what a replica holds of it, what it may hold: all but what other processes do);
    zeros where a card does not say."""
    total = used = room = 0
    for card in cards:
        if card.memory_total_bytes is None or card.memory_used_bytes is None:
            return 0, 0, 0
        total += card.memory_total_bytes
        others = card.memory_others_bytes or 0
        used += max(0, card.memory_used_bytes - others)
        room += max(0, card.memory_total_bytes - others)
    return total, used, room


def cards_of(endpoint: Endpoint) -> CardSet | None:
    """The cards of a replica that serves, by its agent's word."""
    report = endpoint.report
    if report is None or not report.node or report.state not in SERVING:
        return None
    return CardSet(report.node, tuple(card.uuid for card in report.gpus) or (endpoint.address,))


def model_of(endpoint: Endpoint) -> str:
    """Which model's weights a replica has loaded, by its agent's word; its pool's where it does not say."""
    report = endpoint.report
    return report.models[0] if report is not None and report.models else endpoint.pool


class StageBook:
    """Since when each replica of a pool is known and at its stage, and whether it ever was ready."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, ReplicaStage, int, bool]] = {}

    def read(
        self, fleet: Fleet, pool: Pool, config: PoolConfig, *, load_time_s: float, now_ns: int
    ) -> tuple[ReplicaFact, ...]:
        """The pool's replicas now, those that leave the fleet with requests on them included."""
        patience_s = max(STARTING_S, STARTING_LOADS * load_time_s)
        known, facts = self._known, []
        now: dict[str, tuple[int, ReplicaStage, int, bool]] = {}
        leaving = [each for each in fleet.leaving.values() if each.pool == pool.name]
        best: dict[tuple[str, int], int] = {}
        for endpoint in pool.endpoints:
            at = (endpoint.hardware, endpoint.gpus)
            best[at] = max(best.get(at, 0), endpoint.kv_tokens)
        for endpoint in (*pool.endpoints, *leaving):
            address = endpoint.address
            first_ns, before, since_ns, seen = known.get(address, (now_ns, "gone", now_ns, False))
            stage: ReplicaStage = "draining"
            if address not in fleet.leaving:
                stage = stage_of(
                    endpoint,
                    fleet.last_look(address),
                    seen_ready=seen,
                    age_s=(now_ns - first_ns) / 1e9,
                    patience_s=patience_s,
                )
            if stage != before:
                since_ns = now_ns
            now[address] = (first_ns, stage, since_ns, seen or stage == "ready")
            price = endpoint.price_per_hour or config.price_per_hour
            most = best.get((endpoint.hardware, endpoint.gpus), 0)
            facts.append(fact_of(endpoint, pool, stage, price, since_ns, most))
        self._known = now
        return tuple(facts)

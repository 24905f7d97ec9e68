"""Fits a scene's timings to the times on record: two factors, for prefill and for decode.

What the service learned of its replicas serves its predictions; part of a wait may hide in it. So the first
FIT_REQUESTS are played as recorded, and the learned coefficients are scaled until the replayed medians of the
first token and of the time per token are the measured ones. The factors are told with the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Final

from extproc.core.predict.timing import Timing
from extproc.lab.replay.play import play
from extproc.lab.replay.rebuild import Machine, Scene
from extproc.sim.served import Served, tpot_ms, ttft_ms

#: Requests that are fitted to, the least of them that say something, and how often they are played at most.
FIT_REQUESTS, FIT_MIN, FIT_ROUNDS = 2_000, 30, 6
#: One round moves a factor by at most this, either way; good enough is within this of the measured.
FIT_STEP_MAX, FIT_ENOUGH = 1.5, 0.02
#: The part of the way that a round goes: prefill and decode stand in each other's way, so that whole steps of
#: both overshoot.
FIT_GAIN: Final = 0.6


def fitted(scene: Scene, *, seed: int = 1) -> Scene:
    """The scene with fitted timings; as it was where too few streamed requests have their times on record."""
    head = scene.part(0, FIT_REQUESTS)
    usable = [
        i
        for i, row in enumerate(head.rows)
        if row.stream
        and row.outcome == "ok"
        and row.ttft_ms is not None
        and head.workload.arrivals[i].output_tokens > 1
    ]
    if len(usable) < FIT_MIN:
        return replace(
            scene, notes=(*scene.notes, "timings are not fitted: too few streamed requests have their times")
        )
    first = median(head.rows[i].ttft_ms or 0.0 for i in usable)
    each = median(_tpot(head, i) for i in usable)
    prefill = decode = 1.0
    for _ in range(FIT_ROUNDS):
        served = play(_scaled(head, prefill, decode), seed=seed, speed_error=0.0)
        answered = [served[i] for i in usable if served[i].outcome == "ok"]
        if not answered:
            break
        ratios = (_ratio(first, median(map(ttft_ms, answered))), _ratio(each, _tpot_median(answered)))
        if max(abs(ratio - 1.0) for ratio in ratios) < FIT_ENOUGH:
            break
        prefill *= ratios[0] ** FIT_GAIN
        decode *= ratios[1] ** FIT_GAIN
    note = (
        f"timings are fitted to the first {len(usable)} streamed requests: "
        f"prefill ×{prefill:.2f}, decode ×{decode:.2f} of what was learned"
    )
    return replace(_scaled(scene, prefill, decode), notes=(*scene.notes, note))


def _tpot(scene: Scene, i: int) -> float:
    row, arrival = scene.rows[i], scene.workload.arrivals[i]
    return max(0.0, row.duration_ms - (row.ttft_ms or 0.0)) / (arrival.output_tokens - 1)


def _tpot_median(served: Sequence[Served]) -> float:
    return median(value for each in served if (value := tpot_ms(each)) is not None)


def _ratio(measured: float, replayed: float) -> float:
    if measured <= 0.0 or replayed <= 0.0:
        return 1.0
    return min(max(measured / replayed, 1.0 / FIT_STEP_MAX), FIT_STEP_MAX)


def _scaled(scene: Scene, prefill: float, decode: float) -> Scene:
    return replace(scene, machines=tuple(_machine(each, prefill, decode) for each in scene.machines))


def _machine(machine: Machine, prefill: float, decode: float) -> Machine:
    at = machine.timing
    timing = Timing(
        at.decode_base_ms * decode,
        at.decode_per_sequence_ms * decode,
        at.decode_per_context_token_ms * decode,
        at.prefill_base_ms * prefill,
        at.prefill_per_token_ms * prefill,
        at.prefill_per_square_ms * prefill,
    )
    return replace(machine, timing=timing)

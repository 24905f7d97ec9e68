"""weighted_round_robin: each endpoint in turn, as often as its live weight says.

weight = memory × compute × health × (1 − load), with

    memory   KV tokens, configured or reported; else by its GPUs' memory; else as its hardware's prior says
    compute  usual decode steps a second, its own learnt factor included
    health   0.01 to 1
    load     permits taken ÷ its limit; a full endpoint still counts for 0.05

The rotation is nginx's smooth one: at each pick every endpoint gains its share p of one pick
(`Endpoint.smooth`), the chosen one pays one. nginx chooses the highest credit, which can leave an endpoint
more than one pick behind. Here, of those whose credit with this pick's gain is above 0 the one goes next
that would first be a whole pick behind (Tijdeman's chairman assignment): with constant weights every
endpoint is within one pick of its share at all times.

Score: picks until it would be a whole pick behind, (1 − credit) ÷ p; those not due come 1e6 later.
Inputs: books, health, reports or the prior. A silent agent leaves what was configured or the prior. An
endpoint that is away or full gains nothing, so it comes back without a burst. Blind to zones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import ClassVar

from extproc.core.endpoint import Endpoint
from extproc.core.forecast import Forecast
from extproc.core.outcome import LATER_MS
from extproc.core.predict.timing import TYPICAL_BATCH, TYPICAL_CONTEXT_TOKENS
from extproc.core.strategies.base import Scored
from extproc.core.work import SchedulingContext, Work

#: KV tokens that a GiB of GPU memory stands for where nobody says (450k on 80 GiB: replica-models.md).
KV_TOKENS_PER_GIB = 5_625.0
GIB = 1 << 30
#: No step is faster, so that weights are finite.
STEP_MS_MIN = 1e-3
#: A full endpoint's share of its weight.
FREE_MIN = 0.05
#: An endpoint is never further ahead or behind than this many picks, however weights jump.
CREDIT_MAX = 2.0
#: A credit this close to 0 is 0: sums of shares round.
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class WeightedRoundRobin(Scored):
    """Each in turn, by live weights."""

    name: ClassVar[str] = "weighted_round_robin"
    defers: ClassVar[bool] = True

    def scores(self, candidates: Sequence[Endpoint], work: Work, at: SchedulingContext) -> list[float]:
        """Those due first, the most pressing first; scores in picks."""
        weights = weights_of(candidates)
        total = fsum(weights)
        scores = []
        for e, each in zip(candidates, weights, strict=True):
            share = each / total
            picks = max(0.0, (1.0 - e.smooth) / share)
            scores.append(min(picks, LATER_MS) if e.smooth + share > ROUNDING else LATER_MS + picks)
        return scores

    def picked(
        self, endpoints: Sequence[Endpoint], endpoint: Endpoint, work: Work, *, at: SchedulingContext
    ) -> None:
        """Moves the rotation on: everybody who could have been chosen gains, the chosen one pays."""
        taking = [e for e in endpoints if e is endpoint or (e.ready and e.load_permits < e.max_concurrent)]
        weights = weights_of(taking)
        total = fsum(weights)
        for e, each in zip(taking, weights, strict=True):
            e.smooth = min(e.smooth + each / total, CREDIT_MAX)
        endpoint.smooth = max(endpoint.smooth - 1.0, -CREDIT_MAX)

    def explain(
        self, endpoint: Endpoint, work: Work, expected: Forecast, *, at: SchedulingContext
    ) -> dict[str, float]:
        """The terms of one endpoint's weight, and its credit."""
        memory, each = memory_tokens(endpoint), weights_of([endpoint])[0]
        step_ms = endpoint.speed.step_ms(TYPICAL_BATCH, TYPICAL_CONTEXT_TOKENS)
        return {
            "memory_tokens": memory,
            "step_ms": step_ms,
            "health": endpoint.weight,
            "free": each * max(step_ms, STEP_MS_MIN) / memory / endpoint.weight,
            "weight": each,
            "credit": endpoint.smooth,
        }


def weights_of(endpoints: Sequence[Endpoint]) -> list[float]:
    """What each endpoint's share of the picks is proportional to; above 0, finite."""
    weights = []
    model, usual = None, 1.0
    for e in endpoints:
        speed = e.speed
        if speed.model is not model:
            # Endpoints of one hardware share a model and mostly stand together.
            model = speed.model
            usual = max(model.timing.step_ms(TYPICAL_BATCH, TYPICAL_CONTEXT_TOKENS), STEP_MS_MIN)
        taken = e.permits + e.peer_permits + e.foreign
        free = 1.0 - taken / e.max_concurrent if e.max_concurrent > 0 else 0.0
        memory = e.kv_capacity_tokens or memory_tokens(e)
        weights.append(memory / (speed.factor * usual) * e.weight * max(FREE_MIN, free))
    return weights


def memory_tokens(endpoint: Endpoint) -> float:
    """KV tokens that it holds, as far as anybody says; at least 1."""
    if (known := endpoint.kv_tokens) > 0:
        return float(known)
    if endpoint.report is not None and endpoint.report.gpus:
        memory = sum(max(0, gpu.memory_total_bytes or 0) for gpu in endpoint.report.gpus)
        if memory:
            return max(1.0, memory / GIB * KV_TOKENS_PER_GIB)
    return float(max(1, endpoint.speed.model.prior.kv_capacity_tokens))

"""The signals that alert rules look at: their names, where they are known, what they need. Values only.

Owns the table; `config/alerts.py` checks rules against it, `observe/alerts` computes and exports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Scope = Literal["fleet", "pool", "class", "tenant"]

EVERYWHERE: Final = ("fleet", "pool", "class", "tenant")
#: The longest window of a quantile or of a tenant's figure, and of any other.
WINDOW_S_MAX, LONG_WINDOW_S_MAX = 3_600, 259_200
#: Refusals that are told apart; every other code is `other`.
CODES: Final = ("overloaded", "quota_exceeded", "no_ready_endpoint", "internal", "other")


@dataclass(frozen=True, slots=True)
class SignalKind:
    """`scopes`: where it is known. `windowed`: it is of a span of time, else of the moment.

    `quantile` 0 to 1 where it is one, of `times` ("ttft", "tpot", "hold").
    """

    about: str
    scopes: tuple[str, ...] = EVERYWHERE
    windowed: bool = True
    times: str = ""
    quantile: float = 0.0


def _quantiles(name: str, about: str) -> dict[str, SignalKind]:
    return {
        f"{name}_p{percent}_ms": SignalKind(
            f"{about}, {percent}th percentile.", times=name, quantile=percent / 100
        )
        for percent in (50, 90, 99)
    }


SIGNALS: Final[dict[str, SignalKind]] = {
    **_quantiles("ttft", "Time from a streamed request's arrival to its first token, its hold included"),
    **_quantiles("tpot", "Time for each further token of a stream"),
    **_quantiles("hold", "Time that a placed request was held before (0 for most)"),
    "error_rate": SignalKind(
        "Share of answers that were errors: 5xx, resets, timeouts, refusals inside a stream."
    ),
    "refusal_rate": SignalKind(
        "Share of requests that the gateway refused; of one `code` where that is given."
    ),
    "requests_per_s": SignalKind("Requests that ended or were refused, a second."),
    "input_tokens_per_s": SignalKind("Prompt tokens of ended requests, a second."),
    "output_tokens_per_s": SignalKind("Generated tokens of ended requests, a second."),
    "slo_attainment": SignalKind(
        "Share of requests within their class's targets; errors, refusals for want of room and clients that "
        "gave up on a late first token miss them; spent quotas, clients' own mistakes and clients that left "
        "before it was due do not count."
    ),
    "slo_burn": SignalKind(
        "How many times faster than allowed the class's error budget is used: "
        "(1 − slo_attainment) ÷ (1 − objective).",
        scopes=("class",),
    ),
    "held": SignalKind("Requests that wait in the gateway.", windowed=False),
    "in_flight": SignalKind("Requests on the replicas.", scopes=("fleet", "pool", "tenant"), windowed=False),
    "ready_share": SignalKind(
        "Share of the replicas that take work.", scopes=("fleet", "pool"), windowed=False
    ),
    "health": SignalKind("Mean health of the replicas, 0 to 1.", scopes=("fleet", "pool"), windowed=False),
    "gpu_faults": SignalKind("Replicas with a fault of a GPU.", scopes=("fleet", "pool"), windowed=False),
    "memory_bound_s": SignalKind(
        "Seconds for which the pool has been bound by KV memory (docs/scaling.md).",
        scopes=("pool",),
        windowed=False,
    ),
    "idle_s": SignalKind(
        "Seconds for which most of the pool's memory and permits was never used.",
        scopes=("pool",),
        windowed=False,
    ),
    "stale_share": SignalKind(
        "Share of the replicas whose agents have fallen silent, of those that were ever heard of.",
        scopes=("fleet", "pool"),
        windowed=False,
    ),
    "prediction_error": SignalKind(
        "Median relative error of the predicted time to first token, of the last 64 requests.",
        scopes=("fleet",),
        windowed=False,
    ),
    "scaling_unmet": SignalKind(
        "Replicas that are wanted beyond what max_replicas or the budget allows, at least.",
        scopes=("pool",),
        windowed=False,
    ),
    "scaling_overdue": SignalKind(
        "Load times that have passed without a replica becoming ready, while fewer are ready than wanted.",
        scopes=("pool",),
        windowed=False,
    ),
    "scaling_turns": SignalKind(
        "How often what is wanted of a pool changed its direction within the last hour.",
        scopes=("pool",),
        windowed=False,
    ),
    "scaler_silence_s": SignalKind(
        "Seconds since anybody asked the external scaler, where there is one.",
        scopes=("fleet",),
        windowed=False,
    ),
    "quota_used": SignalKind(
        "The most used of the tenant's limits, as a share of it.", scopes=("tenant",), windowed=False
    ),
    "anomaly": SignalKind(
        "How far the tenant is out of its pattern: 1 is where it counts as unusual.",
        scopes=("tenant",),
        windowed=False,
    ),
}

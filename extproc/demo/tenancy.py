"""Who asks in the demo, and what its configuration shows: classes, quotas, prices, an experiment, a rule.

Owns figures alone; `fleet.py` puts them into the file. The quota of the trial is there to be hit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from extproc.demo.workload import BATCH, CHAT, TRIAL

CHEAP_MODEL, STRONG_MODEL = "tiny-chat", "tiny-pro"
#: The family: each of its requests gets the model that it needs.
FAMILY: Final = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A pool, its model, what its work costs, and the requests that a replica of it is given at once."""

    pool: str
    model: str
    price: Mapping[str, float]
    max_concurrent: int


POOLS: Final = (
    Serving(
        pool="cheap",
        model=CHEAP_MODEL,
        price={"input_per_million": 0.2, "output_per_million": 0.6},
        max_concurrent=128,
    ),
    # So few that the batch's bursts have to wait in the gateway: that is what a hold looks like.
    Serving(
        pool="strong",
        model=STRONG_MODEL,
        price={"input_per_million": 2.0, "output_per_million": 8.0},
        max_concurrent=3,
    ),
)

CLASSES: Final[list[dict[str, Any]]] = [
    {"name": "premium", "ttft_ms": 500, "tpot_ms": 50, "hold_ms": 5_000},
    {"name": "standard", "ttft_ms": 1_000, "hold_ms": 10_000},
    {"name": "batch", "ttft_ms": 5_000, "tpot_ms": 200, "hold_ms": 60_000},
]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoTenant:
    """A tenant: the model of its requests that name none, its class and its limits.

    `crossing` is the share of its requests that asks for another model by name, `family` the share that
    asks the family. `bites` says in words which limit is meant to refuse some of them; "" for none.
    """

    name: str
    model: str
    service_class: str
    quota: Mapping[str, float]
    crossing: float = 0.0
    family: float = 0.0
    weight: float = 1.0
    bites: str = ""


#: The trial's limit, and how many of them at once.
TRIAL_PER_MINUTE, TRIAL_BURST = 30, 0.2

TENANTS: Final = (
    DemoTenant(
        name=CHAT,
        model=CHEAP_MODEL,
        service_class="premium",
        quota={"requests_per_minute": 6_000, "budget_per_day": 500},
        crossing=0.1,
        family=0.4,
        weight=2.0,
    ),
    DemoTenant(
        name=TRIAL,
        model=CHEAP_MODEL,
        service_class="standard",
        quota={"requests_per_minute": TRIAL_PER_MINUTE, "burst": TRIAL_BURST},
        bites=f"{TRIAL_PER_MINUTE} requests a minute",
    ),
    DemoTenant(
        name=BATCH,
        model=STRONG_MODEL,
        service_class="batch",
        quota={"output_tokens_per_minute": 500_000, "concurrent_requests": 200},
        crossing=0.2,
    ),
)
BY_NAME: Final[Mapping[str, DemoTenant]] = {tenant.name: tenant for tenant in TENANTS}

EXPERIMENTS: Final[dict[str, Any]] = {
    "steer-or-least-work": {
        "pools": ["cheap"],
        "arms": {"steer": {"strategy": "steer"}, "least_work": {"strategy": "least_work", "share": 0.3}},
        "shadow": {"strategy": "prefix", "share": 0.2},
    }
}

ALERTS: Final[dict[str, Any]] = {
    "rules": [
        {
            "name": "TrialOverItsQuota",
            "each": "tenant",
            "only": [TRIAL],
            "when": {
                "all_of": [
                    {"signal": "refusal_rate", "code": "quota_exceeded", "over_s": 60, "above": 0.1},
                ]
            },
            "for_s": 5,
            "min_requests": 5,
            "severity": "info",
            "summary": "Part of the demo: the trial asks for more than its quota lets through.",
        }
    ]
}

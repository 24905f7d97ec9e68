"""The rules that are on without any configuration, and the burn-rate rules of the classes' objectives.

Owns their thresholds. Each can be switched off by name (`alerts.off`) or replaced by a rule of its name.

Burn rates are those of Google's SRE workbook, chapter 5 ("Multiwindow, Multi-Burn-Rate Alerts", table 5-8):
two windows at once, the long one for how much of the budget is gone, the short one for whether it still goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from extproc.config.alerts import Alerts
from extproc.observe.alerts.rules import Condition, Rule, merged, of_section

S: Final = 1_000_000_000

RULES: Final[tuple[Rule, ...]] = (
    Rule(
        name="LatencyAndErrors",
        each="pool",
        when=(
            (
                Condition("ttft_p90_ms", over_s=30, times=2.0, above=200.0),
                Condition("error_rate", over_s=30, above=0.05),
            ),
        ),
        for_ns=10 * S,
        severity="critical",
        min_requests=10,
        summary="First tokens come late and answers fail, both at once: the pool is in trouble.",
    ),
    Rule(
        name="ErrorsHigh",
        each="pool",
        when=((Condition("error_rate", over_s=300, above=0.25),),),
        for_ns=120 * S,
        severity="critical",
        summary="A quarter of the pool's answers have been errors for minutes.",
    ),
    Rule(
        name="NoReadyReplica",
        each="pool",
        when=((Condition("ready_share", below=1e-6),),),
        for_ns=5 * S,
        clear_ns=15 * S,
        severity="critical",
        summary="No replica of the pool takes work; requests get 503.",
    ),
    Rule(
        name="ReplicasDown",
        each="pool",
        # One of two is half.
        when=((Condition("ready_share", below=0.501),),),
        for_ns=60 * S,
        summary="Half of the pool's replicas or more take no work.",
    ),
    Rule(
        name="GpuFault",
        each="pool",
        when=((Condition("gpu_faults", above=0.0),),),
        for_ns=0,
        summary="A replica has a GPU fault; `steersman fleet` names it and what it needs.",
    ),
    Rule(
        name="PoolShortOfMemory",
        each="pool",
        when=((Condition("memory_bound_s", above=3_600.0),),),
        for_ns=0,
        severity="info",
        summary="KV memory has been full for an hour; `steersman scale advice` says what would help.",
    ),
    Rule(
        name="PoolTooLarge",
        each="pool",
        when=((Condition("idle_s", above=86_400.0),),),
        for_ns=0,
        severity="info",
        summary="Most of the replicas has not been used for a day; a smaller card or slice may do.",
    ),
    Rule(
        name="AgentsSilent",
        each="pool",
        when=((Condition("stale_share", above=0.5),),),
        for_ns=30 * S,
        summary="Most of the pool's agents have fallen silent; decisions go by our own books alone.",
    ),
    Rule(
        name="RequestsShed",
        each="pool",
        when=((Condition("refusal_rate", over_s=300, above=0.1, code="overloaded"),),),
        for_ns=60 * S,
        min_requests=50,
        summary="The pool has no room for a tenth of its requests.",
    ),
    Rule(
        name="ScalingLimited",
        each="pool",
        when=((Condition("scaling_unmet", above=0.5),),),
        for_ns=600 * S,
        clear_ns=60 * S,
        summary="The pool needs more replicas than max_replicas or its budget allows.",
    ),
    Rule(
        name="ReplicasNotComing",
        each="pool",
        when=((Condition("scaling_overdue", above=3.0),),),
        for_ns=60 * S,
        severity="critical",
        summary="Replicas are wanted and none has become ready in three load times: they do not start.",
    ),
    Rule(
        name="ScalingFlaps",
        each="pool",
        when=((Condition("scaling_turns", above=6.0),),),
        for_ns=60 * S,
        clear_ns=600 * S,
        summary="What is wanted of the pool goes up and down again and again; raise its down_after_s.",
    ),
    Rule(
        name="ScalerUnasked",
        each="fleet",
        when=((Condition("scaler_silence_s", above=120.0),),),
        for_ns=0,
        summary="Nobody has asked the external scaler for two minutes; KEDA may be serving its fallback.",
    ),
    Rule(
        name="PredictionsOff",
        each="fleet",
        when=((Condition("prediction_error", above=1.0),),),
        for_ns=600 * S,
        clear_ns=300 * S,
        severity="info",
        summary="First tokens come at other times than predicted; choices are worse than they could be.",
    ),
    Rule(
        name="QuotaNearlySpent",
        each="tenant",
        when=((Condition("quota_used", above=0.9),),),
        for_ns=60 * S,
        clear_ns=300 * S,
        severity="info",
        summary="The tenant has used nine tenths of a limit.",
    ),
    Rule(
        name="TenantUnusual",
        each="tenant",
        when=((Condition("anomaly", above=1.0),),),
        # A pattern is judged by the minute: three times in a row.
        for_ns=120 * S,
        clear_ns=300 * S,
        summary="The tenant's usage is out of its own pattern: a mistake of its clients, or a leaked key.",
    ),
)

#: Name, burn rate, long and short window in seconds, how long it must hold, severity.
BURNS: Final = (
    ("SloBurnFast", 14.4, 3_600, 300, 120, "critical"),
    ("SloBurnMedium", 6.0, 21_600, 1_800, 300, "critical"),
    ("SloBurnSlow", 3.0, 86_400, 7_200, 900, "warning"),
    ("SloBurnCreeping", 1.0, 259_200, 21_600, 3_600, "warning"),
)


def burn_rules(*, scale: float = 1.0, min_requests: int = 50) -> tuple[Rule, ...]:
    """A rule for each burn rate, looked at for each class."""
    return tuple(
        Rule(
            name=name,
            each="class",
            when=(
                (
                    Condition("slo_burn", over_s=max(1, round(long_s * scale)), above=rate),
                    Condition("slo_burn", over_s=max(1, round(short_s * scale)), above=rate),
                ),
            ),
            for_ns=round(for_s * scale) * S,
            clear_ns=max(1, round(min(short_s, 300) * scale)) * S,
            severity=severity,
            min_requests=min_requests,
            summary=f"The class uses its error budget {rate:g} times faster than its objective allows.",
        )
        for name, rate, long_s, short_s, for_s, severity in BURNS
    )


def builtin(alerts: Alerts) -> tuple[Rule, ...]:
    """What is on without any rule in the configuration."""
    slo = alerts.slo
    rules = RULES + (burn_rules(scale=slo.scale, min_requests=slo.min_requests) if slo.enabled else ())
    return (
        rules if alerts.anomalies.enabled else tuple(each for each in rules if each.name != "TenantUnusual")
    )


def rules_of(alerts: Alerts) -> Sequence[Rule]:
    """Every rule that a configuration makes."""
    return merged(builtin(alerts), [of_section(each) for each in alerts.rules], alerts.off)

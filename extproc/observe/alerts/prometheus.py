"""The rules as Prometheus' own: a file of alerting rules over the metrics of docs/metrics.md.

Owns the translation. What Prometheus cannot reckon from those metrics (a tenant's pattern, a tenant's
latencies, thresholds that are compared with what is not exported) is taken from the service's own word,
`steersman_alerts_firing`, so that every rule is in the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

from extproc.config.signals import SIGNALS
from extproc.observe.alerts.rules import Condition, Rule

#: A rate over less has too few scrapes in it (of 15 s each).
RANGE_S_MIN: Final = 60
HEAD: Final = """\
# Made by `steersman alerts export`; tests/observe/alerts/test_prometheus.py keeps the built-in rules' fresh.
# Windows below a minute are a minute here: a rate needs some scrapes.
"""
_METRICS: Final = {"ttft": "steersman_ttft_seconds", "tpot": "steersman_tpot_seconds",
                   "hold": "steersman_hold_seconds"}  # fmt: skip
#: Scope → the label that tells its names apart.
_LABELS: Final = {"fleet": "", "pool": "pool", "class": "class", "tenant": "tenant"}
_ENDED: Final = 'outcome=~"ok|error"'


def export(rules: Sequence[Rule], *, budgets: Mapping[str, float]) -> str:
    """A rule file. `budgets`: the allowed share of misses by class, for slo_burn."""
    document = {"groups": [{"name": "steersman", "rules": [_rule(rule, budgets) for rule in rules]}]}
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1_000)
    return HEAD + text


def _rule(rule: Rule, budgets: Mapping[str, float]) -> dict[str, Any]:
    expression = expression_of(rule, budgets)
    own = expression is not None
    label = _LABELS[rule.each] if own else ""
    where = f"{rule.each} {{{{ $labels.{label} }}}}: " if label else ""
    return {
        "alert": rule.name,
        "expr": expression if own else f'max(steersman_alerts_firing{{rule="{rule.name}"}}) > 0',
        **({"for": _span(rule.for_ns)} if own and rule.for_ns else {}),
        **({"keep_firing_for": _span(rule.clear_ns)} if own and rule.clear_ns else {}),
        "labels": {"severity": rule.severity},
        "annotations": {
            "summary": _plain(rule.summary or rule.name),
            "description": f"{where}{'{{ $value | humanize }}' if own else 'see `steersman alerts`'}",
        },
    }


def expression_of(rule: Rule, budgets: Mapping[str, float]) -> str | None:
    """A rule in PromQL; None where the metrics do not hold what it looks at."""
    alternatives = []
    for alternative in rule.when:
        parts = []
        for condition in alternative:
            part = _condition(rule, condition, budgets)
            if part is None:
                return None
            parts.append(part)
        own = [text for text, fleet in parts if not fleet]
        joined = " and ".join(own) or parts.pop(0)[0]
        for text, fleet in parts:
            if fleet:
                joined += f" and on () {text}"
        alternatives.append(joined)
    return " or ".join(f"({each})" if len(alternatives) > 1 else each for each in alternatives)


def _condition(rule: Rule, condition: Condition, budgets: Mapping[str, float]) -> tuple[str, bool] | None:
    """One condition's text, and whether it is the whole fleet's within a rule for its parts."""
    scope = "fleet" if condition.fleet else rule.each
    label, matcher = _LABELS[scope], ""
    if rule.only is not None and label and scope == rule.each:
        names = "|".join(sorted(name.replace(".", r"\\.") for name in rule.only))
        matcher = f'{label}=~"{names}"'
    if condition.signal == "slo_burn":
        text = _burn(condition, matcher, budgets)
        return None if text is None else (text, False)
    window = max(RANGE_S_MIN, condition.over_s)
    value = _value(condition, label, matcher, f"[{window}s]")
    if value is None:
        return None
    comparisons = []
    if condition.times is not None:
        past = f"quantile_over_time(0.5, {value}[{condition.baseline_s}s:{window}s] offset {window}s)"
        sign = ">" if condition.times >= 1.0 else "<"
        comparisons.append(f"{value} {sign} {condition.times:g} * {past}")
    comparisons += [f"{value} > {condition.above:g}"] if condition.above is not None else []
    comparisons += [f"{value} < {condition.below:g}"] if condition.below is not None else []
    if condition.over_s and (asked := _requests(condition.signal, label, matcher, f"[{window}s]")):
        comparisons.append(f"{asked} >= {rule.min_requests}")
    text = " and ".join(f"({each})" for each in comparisons)
    return f"({text})" if len(comparisons) > 1 else text, condition.fleet and rule.each != "fleet"


def _value(condition: Condition, label: str, matcher: str, span: str) -> str | None:
    """A signal in PromQL, by `label`; None where the metrics do not have it."""
    name = condition.signal
    spec = SIGNALS[name]
    if spec.times:
        if label == "tenant":
            return None
        by = f"le, {label}" if label else "le"
        buckets = f"sum by ({by}) (rate({_METRICS[spec.times]}_bucket{_braces(matcher)}{span}))"
        return f"(1000 * histogram_quantile({spec.quantile:g}, {buckets}))"
    if name == "error_rate":
        errors = _sum("steersman_requests_total", label, _both(matcher, 'outcome="error"'), span)
        return f"({errors} / {_sum('steersman_requests_total', label, _both(matcher, _ENDED), span)})"
    if name == "requests_per_s":
        return _sum("steersman_requests_total", label, matcher, span)
    if name in ("input_tokens_per_s", "output_tokens_per_s"):
        if label == "class":
            return None
        direction = f'direction="{name.partition("_")[0]}"'
        return _sum("steersman_tokens_total", label, _both(matcher, direction), span)
    if name == "slo_attainment":
        if label == "pool":
            return None
        met = _sum("steersman_slo_requests_total", label, _both(matcher, 'met="yes"'), span)
        return f"({met} / {_sum('steersman_slo_requests_total', label, matcher, span)})"
    if name == "refusal_rate":
        # Refusals are counted by tenant and code alone.
        if label not in ("", "tenant") or condition.code == "other":
            return None
        code = f'code="{condition.code}"' if condition.code else ""
        refused = _sum("steersman_refusals_total", label, _both(matcher, code), span)
        every = _sum("steersman_refusals_total", label, matcher, span)
        return f"({refused} / ({every} + {_sum('steersman_requests_total', label, matcher, span)}))"
    return _moment(name, label, matcher)


def _moment(name: str, label: str, matcher: str) -> str | None:
    by = f" by ({label})" if label else ""
    braces = _braces(matcher)
    tenants = label == "tenant"
    match name:
        case "held":
            return f"sum{by} (steersman_{'tenant_' if tenants else ''}held{braces})"
        case "in_flight":
            return f"sum{by} (steersman_{'tenant_' if tenants else ''}in_flight{braces})"
        case "ready_share":
            ready = _braces(_both(matcher, 'ready="yes"'))
            endpoints = "steersman_pool_endpoints"
            return f"(sum{by} ({endpoints}{ready}) / sum{by} ({endpoints}{braces}))"
        case "health":
            return f"avg{by} (steersman_endpoint_health{braces})"
        case "stale_share":
            return f"avg{by} (steersman_endpoint_stale{braces})"
        case "memory_bound_s" | "idle_s":
            resource = _braces(_both(matcher, f'resource="{"idle" if name == "idle_s" else "memory"}"'))
            return f"max{by} (steersman_pool_bound_seconds{resource})"
        case "prediction_error":
            return 'max(steersman_prediction_error_ratio{what="ttft"})'
        case "scaling_unmet":
            return f"max{by} (steersman_scaling_unmet_replicas{braces})"
        case "scaling_overdue":
            return f"max{by} (steersman_scaling_overdue_ratio{braces})"
        case "scaling_turns":
            return f"max{by} (steersman_scaling_turns{braces})"
        case "scaler_silence_s":
            # KEDA asks one of several services.
            return "min(steersman_scaler_silence_seconds)"
        case "quota_used":
            return f"max{by} (steersman_quota_used_ratio{braces})"
    return None


def _burn(condition: Condition, matcher: str, budgets: Mapping[str, float]) -> str | None:
    """The burn rate of each class by its budget; in one comparison where all have the same."""
    sign, threshold = (">", condition.above) if condition.above is not None else ("<", condition.below)
    if threshold is None or not budgets:
        return None
    alike = len(set(budgets.values())) == 1
    own = {matcher: next(iter(budgets.values()))} if alike else _by_class(matcher, budgets)
    parts = []
    for only, budget in own.items():
        span = f"[{max(RANGE_S_MIN, condition.over_s)}s]"
        met = _sum("steersman_slo_requests_total", "class", _both(only, 'met="yes"'), span)
        every = _sum("steersman_slo_requests_total", "class", only, span)
        parts.append(f"((1 - {met} / {every}) / {budget:.6g} {sign} {threshold:g})")
    return parts[0] if len(parts) == 1 else f"({' or '.join(parts)})"


def _by_class(matcher: str, budgets: Mapping[str, float]) -> dict[str, float]:
    return {_both(matcher, f'class="{name}"'): budget for name, budget in budgets.items()}


def _requests(signal: str, label: str, matcher: str, span: str) -> str | None:
    """How many requests a windowed signal is of."""
    spec = SIGNALS[signal]
    if spec.times:
        by = f" by ({label})" if label else ""
        return f"sum{by} (increase({_METRICS[spec.times]}_count{_braces(matcher)}{span}))"
    if signal == "slo_attainment":
        return _sum("steersman_slo_requests_total", label, matcher, span, "increase")
    if signal == "refusal_rate":
        refused = _sum("steersman_refusals_total", label, matcher, span, "increase")
        return f"({refused} + {_sum('steersman_requests_total', label, matcher, span, 'increase')})"
    return _sum("steersman_requests_total", label, matcher, span, "increase")


def _sum(metric: str, label: str, matcher: str, span: str, of: str = "rate") -> str:
    by = f" by ({label})" if label else ""
    return f"sum{by} ({of}({metric}{_braces(matcher)}{span}))"


def _both(first: str, second: str) -> str:
    return ",".join(each for each in (first, second) if each)


def _braces(matcher: str) -> str:
    return f"{{{matcher}}}" if matcher else ""


def _span(ns: int) -> str:
    return f"{max(1, round(ns / 1e9))}s"


def _plain(text: str) -> str:
    """Without meaning for Prometheus' templates."""
    return text.replace("{{", "{ {")

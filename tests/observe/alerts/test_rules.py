"""What a condition says at a moment."""

from __future__ import annotations

import pytest
from alert_requests import ended, watch

from extproc.config.alerts import Alerts
from extproc.observe.alerts.defaults import BURNS, RULES, rules_of
from extproc.observe.alerts.rules import HYSTERESIS, Condition, Rule, judge
from extproc.observe.alerts.watch import FLEET, Key

POOL = ("pool", "chat")


class Told:
    """Signals as a test says them: by (signal, whether it is of the past)."""

    def __init__(self, **values: float | None) -> None:
        self.values = values
        self.count = 100
        self.covered = 10_000

    def windowed(
        self, signal: str, key: Key, since: int, until: int, *, code: str | None
    ) -> tuple[float | None, int]:
        name = f"{signal}_before" if until < 1_000 else signal
        return self.values.get(f"{key[0]}_{name}", self.values.get(name)), self.count

    def covered_s(self, key: Key, since: int, until: int) -> int:
        return self.covered

    def moment(self, signal: str, key: Key) -> float | None:
        return self.values.get(signal)


def holds(signals: Told, *conditions: Condition, **more: object) -> bool:
    rule = Rule("R", "pool", (conditions,), min_requests=10)
    return judge(rule, POOL, signals, second=1_000, **more)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("condition", "value", "expected"),
    [
        (Condition("error_rate", over_s=60, above=0.1), 0.2, True),
        (Condition("error_rate", over_s=60, above=0.1), 0.1, False),
        (Condition("slo_attainment", over_s=60, below=0.9), 0.8, True),
        (Condition("slo_attainment", over_s=60, below=0.9), 0.9, False),
        (Condition("error_rate", over_s=60, above=0.1, below=0.5), 0.6, False),
        (Condition("error_rate", over_s=60, above=0.1), None, False),
    ],
)
def test_thresholds(condition: Condition, value: float | None, expected: bool) -> None:
    """Above and below are strict; the unknown holds nothing."""
    assert holds(Told(**{condition.signal: value}), condition) is expected


def test_a_multiple_of_what_was_usual() -> None:
    """Both the multiple and the threshold beside it must be passed; below 1 it is a fall."""
    rise = Condition("ttft_p90_ms", over_s=30, times=2.0, above=200.0)
    assert holds(Told(ttft_p90_ms=500, ttft_p90_ms_before=240), rise)
    assert not holds(Told(ttft_p90_ms=500, ttft_p90_ms_before=260), rise)
    assert not holds(Told(ttft_p90_ms=150, ttft_p90_ms_before=20), rise)
    fall = Condition("requests_per_s", over_s=30, times=0.5)
    assert holds(Told(requests_per_s=4, requests_per_s_before=10), fall)
    assert not holds(Told(requests_per_s=6, requests_per_s_before=10), fall)


def test_what_is_usual_must_be_known() -> None:
    """No past, or less of it than the window is long, or too few requests in it: nothing is said."""
    rise = Condition("ttft_p90_ms", over_s=30, times=2.0)
    assert not holds(Told(ttft_p90_ms=500), rise)
    young = Told(ttft_p90_ms=500, ttft_p90_ms_before=100)
    young.covered = 29
    assert not holds(young, rise)
    young.covered = 30
    assert holds(young, rise)


def test_a_kept_baseline_counts_in_the_place_of_the_past() -> None:
    """An incident that has become the past is still measured by what was before it."""
    rise = Condition("ttft_p90_ms", over_s=30, times=2.0)
    assert not holds(Told(ttft_p90_ms=500, ttft_p90_ms_before=500), rise)
    assert holds(Told(ttft_p90_ms=500, ttft_p90_ms_before=500), rise, usual={rise: 100.0})


def test_an_incident_that_is_over_is_not_what_is_usual() -> None:
    """A blip of a third of the past changes nothing: most of the parts of it say what was before."""
    heard = watch()
    for second in range(400, 1_000):
        ended(heard, second, ttft_ms=1_000.0 if 700 <= second < 900 or second >= 970 else 100.0)
    condition = Condition("ttft_p90_ms", over_s=30, times=2.0, baseline_s=600)

    class Heard(Told):
        def windowed(
            self, signal: str, key: Key, since: int, until: int, *, code: str | None
        ) -> tuple[float | None, int]:
            return heard.windowed(signal, key, since, until, code=code)

        def covered_s(self, key: Key, since: int, until: int) -> int:
            return heard.covered_s(key, since, until)

    assert heard.windowed("ttft_p90_ms", POOL, 370, 970)[0] == pytest.approx(1_000, rel=0.2)
    rule = Rule("R", "pool", ((condition,),), min_requests=10)
    found, (reading,) = judge(rule, POOL, Heard(), second=1_000)
    assert found
    assert reading.usual == pytest.approx(100, rel=0.2)


def test_few_requests_say_nothing() -> None:
    """min_requests is of each condition's own window."""
    few = Told(error_rate=1.0)
    few.count = 9
    assert not holds(few, Condition("error_rate", over_s=60, above=0.1))


def test_while_it_fires_the_thresholds_are_nearer() -> None:
    """What hovers at a threshold does not come and go."""
    condition = Condition("error_rate", over_s=60, above=0.1)
    hovering = Told(error_rate=0.1 * (1 - HYSTERESIS / 2))
    assert not holds(hovering, condition)
    assert holds(hovering, condition, firing=True)


def test_all_of_and_any_of() -> None:
    """Alternatives: all of one hold; one of the fleet's is read there."""
    slow = Condition("ttft_p90_ms", over_s=60, above=100)
    failing = Condition("error_rate", over_s=60, above=0.1)
    shed = Condition("refusal_rate", fleet=True, over_s=60, above=0.5)
    rule = Rule("R", "pool", ((slow, failing), (slow, shed)))
    assert not judge(rule, POOL, Told(ttft_p90_ms=200, error_rate=0.0), second=1_000)[0]
    assert judge(rule, POOL, Told(ttft_p90_ms=200, error_rate=0.2), second=1_000)[0]
    values = Told(ttft_p90_ms=200, error_rate=0.0, pool_refusal_rate=0.0, fleet_refusal_rate=0.6)
    found, readings = judge(rule, POOL, values, second=1_000)
    assert found
    assert [reading.text() for reading in readings] == [
        "ttft_p90_ms 200 over 60 s",
        "refusal_rate of the fleet 0.6 over 60 s",
    ]


def test_the_built_in_rules_are_on_and_each_can_be_switched_off_or_replaced() -> None:
    """By name; the burn rates with the objectives' section."""
    names = [rule.name for rule in rules_of(Alerts())]
    assert names == [*(rule.name for rule in RULES), *(burn[0] for burn in BURNS)]
    for name in names:
        assert name not in [rule.name for rule in rules_of(Alerts(off=[name]))]
    own = {"name": "GpuFault", "each": "pool", "when": {"all_of": [{"signal": "gpu_faults", "above": 3}]}}
    replaced = {rule.name: rule for rule in rules_of(Alerts.model_validate({"rules": [own]}))}
    assert replaced["GpuFault"].when[0][0].above == 3
    assert len(replaced) == len(names)
    assert "SloBurnFast" not in {r.name for r in rules_of(Alerts.model_validate({"slo": {"enabled": False}}))}
    quiet = rules_of(Alerts.model_validate({"anomalies": {"enabled": False}}))
    assert "TenantUnusual" not in {rule.name for rule in quiet}


def test_burn_windows_are_scaled_together() -> None:
    """A trial on a hundredth of the time."""
    rules = {r.name: r for r in rules_of(Alerts.model_validate({"slo": {"scale": 0.01}}))}
    fast = rules["SloBurnFast"]
    assert [each.over_s for each in fast.when[0]] == [36, 3]
    assert fast.for_ns == 1_000_000_000


def test_a_rule_of_the_configuration_is_translated_whole() -> None:
    """any_of makes alternatives of all_of with each; a window of 60 s where none is given."""
    section = {
        "rules": [
            {
                "name": "Mine",
                "each": "tenant",
                "only": ["acme"],
                "for_s": 1.5,
                "clear_s": 2,
                "severity": "info",
                "min_requests": 3,
                "when": {
                    "all_of": [{"signal": "requests_per_s", "above": 1}],
                    "any_of": [
                        {"signal": "quota_used", "above": 0.5},
                        {"signal": "refusal_rate", "code": "quota_exceeded", "above": 0.1, "over_s": 30},
                    ],
                },
            }
        ]
    }
    rule = next(r for r in rules_of(Alerts.model_validate(section)) if r.name == "Mine")
    assert [[each.signal for each in alternative] for alternative in rule.when] == [
        ["requests_per_s", "quota_used"],
        ["requests_per_s", "refusal_rate"],
    ]
    assert [each.over_s for each in rule.conditions] == [60, 0, 30]
    assert (rule.only, rule.for_ns, rule.clear_ns) == (frozenset({"acme"}), 1_500_000_000, 2_000_000_000)
    assert FLEET == ("fleet", "")

"""What is wrong with a section of alerts, and how it is said."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from extproc.config.alerts import Alerts, ConditionConfig
from extproc.config.signals import SIGNALS


def rule(*conditions: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "Mine", "when": {"all_of": list(conditions)}, **more}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"rules": [rule({"signal": "speed", "above": 1})]},
            "'speed' is not a signal; there are ttft_p50_ms",
        ),
        ({"rules": [rule({"signal": "error_rate"})]}, "compared with nothing; give above, below or times"),
        ({"rules": [rule({"signal": "held", "above": 1, "over_s": 60})]}, "held is of the moment"),
        ({"rules": [rule({"signal": "health", "times": 2})]}, "health is of the moment"),
        ({"rules": [rule({"signal": "held", "above": 1, "code": "other"})]}, "code goes with refusal_rate"),
        ({"rules": [rule({"signal": "refusal_rate", "above": 1, "code": "x"})]}, "is not told apart"),
        ({"rules": [rule({"signal": "ttft_p90_ms", "above": 1, "over_s": 7_200})]}, "kept for 3600 s"),
        ({"rules": [rule({"signal": "quota_used", "above": 1})]}, "known of tenant, not of fleet"),
        ({"rules": [rule({"signal": "slo_burn", "above": 1}, each="pool")]}, "known of class, not of pool"),
        (
            {"rules": [rule({"signal": "error_rate", "above": 1, "over_s": 7_200}, each="tenant")]},
            "a tenant's figures are kept for 3600 s",
        ),
        ({"rules": [{"name": "Mine", "when": {}}]}, "has no condition"),
        ({"rules": [rule({"signal": "held", "above": 1})] * 2}, "two rules named 'Mine'"),
        ({"rules": [rule({"signal": "held", "above": 1}) | {"name": "my rule"}]}, "should match pattern"),
        ({"webhooks": [{"name": "a", "url": "http://x"}] * 2}, "two webhooks named 'a'"),
        ({"webhooks": [{"name": "a", "url": "ftp://x"}]}, "should match pattern"),
        (
            {"webhooks": [{"name": "a", "url": "http://x", "secret_file": "f", "secret_env": "E"}]},
            "secret_file stands beside secret_env",
        ),
        ({"slo": {"objective": 0.5}}, "greater than or equal to 0.94"),
    ],
)
def test_mistakes_are_said_with_the_mend(section: dict[str, Any], message: str) -> None:
    """Each in its own words."""
    with pytest.raises(ValidationError) as caught:
        Alerts.model_validate(section)
    assert message in str(caught.value)


def test_objectives_by_class() -> None:
    """The class's own where it has one."""
    section = {"slo": {"objectives": [{"class": "premium", "objective": 0.99}]}}
    slo = Alerts.model_validate(section).slo
    assert (slo.of("premium"), slo.of("standard")) == (0.99, 0.95)


@pytest.mark.parametrize("name", SIGNALS)
def test_every_signal_can_be_in_a_rule(name: str) -> None:
    """In each scope that knows it."""
    condition = ConditionConfig(signal=name, above=1.0)
    for each in SIGNALS[name].scopes:
        section = {"rules": [rule(condition.model_dump(exclude_none=True), each=each)]}
        assert Alerts.model_validate(section).rules[0].each == each

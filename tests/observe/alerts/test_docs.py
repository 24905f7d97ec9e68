"""docs/alerts.md names what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from extproc.config.alerts import Alerts
from extproc.config.signals import SIGNALS
from extproc.observe.alerts.defaults import rules_of

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "alerts.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SIGNALS)
def test_every_signal_is_in_the_page(name: str) -> None:
    """With its scopes and its meaning, as the table in signals.py has them."""
    signal = SIGNALS[name]
    assert f"| `{name}` | {', '.join(signal.scopes)} | {signal.about} |" in TEXT


@pytest.mark.parametrize("rule", rules_of(Alerts()), ids=lambda rule: rule.name)
def test_every_built_in_rule_is_in_the_page(rule: object) -> None:
    """With what it is for and how bad it is."""
    line = next(line for line in TEXT.splitlines() if line.startswith(f"| `{rule.name}` |"))  # type: ignore[attr-defined]
    assert f"| {rule.each} |" in line  # type: ignore[attr-defined]
    assert line.endswith(f"| {rule.severity} |")  # type: ignore[attr-defined]

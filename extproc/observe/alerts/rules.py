"""Rules as the engine runs them, and what a condition says at a moment.

Owns the values, the translation from the configuration, and the judging of one condition; which rules there
are is defaults.py's, states are engine.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_high, median_low
from typing import Final, Protocol

from extproc.config.alerts import ConditionConfig as ConditionSection
from extproc.config.alerts import RuleConfig as RuleSection
from extproc.config.signals import SIGNALS
from extproc.observe.alerts.watch import FLEET, Key

#: While an alert fires its thresholds are nearer by this share: what hovers at one does not come and go.
HYSTERESIS: Final = 0.1
#: Parts of the past that each say what was usual.
BASELINE_PARTS: Final = 8
SEVERITIES: Final = ("info", "warning", "critical")


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison; `over_s` 0 for what is of the moment. See config/alerts.py for the words."""

    signal: str
    fleet: bool = False
    over_s: int = 0
    above: float | None = None
    below: float | None = None
    times: float | None = None
    baseline_s: int = 3_600
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """`when`: alternatives, in each of which every condition must hold."""

    name: str
    each: str
    when: tuple[tuple[Condition, ...], ...]
    only: frozenset[str] | None = None
    for_ns: int = 30_000_000_000
    clear_ns: int = 60_000_000_000
    severity: str = "warning"
    min_requests: int = 20
    summary: str = ""

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Each of them once."""
        return tuple(dict.fromkeys(each for alternative in self.when for each in alternative))


@dataclass(frozen=True, slots=True)
class ConditionReading:
    """What a condition saw: its value (None unknown), the usual one where compared, and whether it holds."""

    condition: Condition
    value: float | None
    usual: float | None
    holds: bool

    def text(self) -> str:
        """For people: `ttft_p90_ms 2310 over 30 s (usually 410)`."""
        shown = "unknown" if self.value is None else f"{self.value:.4g}"
        what = self.condition.signal + (f" of {self.condition.code}" if self.condition.code else "")
        over = f" over {self.condition.over_s} s" if self.condition.over_s else ""
        usual = f" (usually {self.usual:.4g})" if self.usual is not None else ""
        where = " of the fleet" if self.condition.fleet else ""
        return f"{what}{where} {shown}{over}{usual}"


class SignalSource(Protocol):
    """Where values come from."""

    def windowed(
        self, signal: str, key: Key, since: int, until: int, *, code: str | None
    ) -> tuple[float | None, int]:
        """A value after one second and until another, and of how many requests."""
        ...

    def covered_s(self, key: Key, since: int, until: int) -> int:
        """For how much of that the scope was known."""
        ...

    def moment(self, signal: str, key: Key) -> float | None:
        """A value of now."""
        ...


def of_section(section: RuleSection) -> Rule:
    """A rule of the configuration."""
    common = tuple(_condition(each) for each in section.when.all_of)
    choices = tuple(_condition(each) for each in section.when.any_of)
    return Rule(
        name=section.name,
        each=section.each,
        when=tuple((*common, each) for each in choices) or (common,),
        only=None if section.only is None else frozenset(section.only),
        for_ns=int(section.for_s * 1e9),
        clear_ns=int(section.clear_s * 1e9),
        severity=section.severity,
        min_requests=section.min_requests,
        summary=section.summary,
    )


def _condition(section: ConditionSection) -> Condition:
    return Condition(
        signal=section.signal,
        fleet=section.scope == "fleet",
        over_s=section.window_s if SIGNALS[section.signal].windowed else 0,
        above=section.above,
        below=section.below,
        times=section.times,
        baseline_s=section.baseline_s,
        code=section.code,
    )


def judge(
    rule: Rule,
    key: Key,
    signals: SignalSource,
    *,
    second: int,
    firing: bool = False,
    usual: Mapping[Condition, float] | None = None,
) -> tuple[bool, list[ConditionReading]]:
    """Whether a rule's conditions hold for a scope now, and what they saw.

    `usual` are baselines to go by instead of the past's: an incident must not become its own measure.
    """
    readings: dict[Condition, ConditionReading] = {}
    for alternative in rule.when:
        holds = True
        for condition in alternative:
            reading = readings.get(condition)
            if reading is None:
                reading = readings[condition] = _read(
                    rule, condition, key, signals, second=second, firing=firing, usual=usual
                )
            if not reading.holds:
                holds = False
                break
        if holds:
            return True, [readings[each] for each in alternative]
    return False, list(readings.values())


def _read(
    rule: Rule,
    condition: Condition,
    key: Key,
    signals: SignalSource,
    *,
    second: int,
    firing: bool,
    usual: Mapping[Condition, float] | None,
) -> ConditionReading:
    where = FLEET if condition.fleet else key
    if not condition.over_s:
        value = signals.moment(condition.signal, where)
        return ConditionReading(condition, value, None, _holds(condition, value, None, firing))
    since = second - condition.over_s
    value, count = signals.windowed(condition.signal, where, since, second, code=condition.code)
    if value is None or count < rule.min_requests:
        return ConditionReading(condition, value, None, holds=False)
    before: float | None = None
    if condition.times is not None:
        if not _within(condition, value, firing):
            return ConditionReading(condition, value, None, holds=False)
        before = (usual or {}).get(condition)
        if before is None:
            before = _usual(rule, condition, where, signals, since)
    return ConditionReading(condition, value, before, _holds(condition, value, before, firing))


def _usual(rule: Rule, condition: Condition, key: Key, signals: SignalSource, until: int) -> float | None:
    """What was usual until a second; None before as much of it is known as the window that is compared.

    The median of what each of up to BASELINE_PARTS parts of the past says: an incident that is over, even one
    that took a third of the time, is not what is usual. A quantile of the whole would be the incident's.
    """
    known_s = min(condition.baseline_s, signals.covered_s(key, until - condition.baseline_s, until))
    if known_s < min(condition.over_s, condition.baseline_s):
        return None
    parts = max(1, min(BASELINE_PARTS, known_s // condition.over_s))
    found: list[float] = []
    requests = 0
    for part in range(parts):
        begin, end = (until - known_s * each // parts for each in (part + 1, part))
        value, count = signals.windowed(condition.signal, key, begin, end, code=condition.code)
        requests += count
        if value is not None and count * parts >= rule.min_requests:
            found.append(value)
    if not found or requests < rule.min_requests:
        return None
    return median_low(found) if (condition.times or 0.0) >= 1.0 else median_high(found)


def _holds(condition: Condition, value: float | None, usual: float | None, firing: bool) -> bool:
    if value is None:
        return False
    if condition.times is not None:
        if usual is None:
            return False
        threshold = usual * condition.times
        upwards = condition.times >= 1.0
        if not _past(value, threshold, upwards=upwards, firing=firing):
            return False
    return _within(condition, value, firing)


def _within(condition: Condition, value: float, firing: bool) -> bool:
    """Whether a value is past the fixed thresholds."""
    if condition.above is not None and not _past(value, condition.above, upwards=True, firing=firing):
        return False
    return condition.below is None or _past(value, condition.below, upwards=False, firing=firing)


def _past(value: float, threshold: float, *, upwards: bool, firing: bool) -> bool:
    slack = abs(threshold) * HYSTERESIS if firing else 0.0
    return value > threshold - slack if upwards else value < threshold + slack


def merged(builtin: Sequence[Rule], own: Sequence[Rule], off: Sequence[str]) -> tuple[Rule, ...]:
    """The built-in rules less those switched off, with the configuration's in the place of equal names."""
    rules = {rule.name: rule for rule in builtin if rule.name not in off}
    rules.update({rule.name: rule for rule in own})
    return tuple(rules.values())

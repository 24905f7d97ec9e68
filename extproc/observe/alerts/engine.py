"""The states of alerts: pending while conditions hold, firing after `for_s`, resolved after `clear_s`.

Owns the states, their bounds and what is told when. Knows nothing of how values come about (rules.py) or
where messages go. The laws, held by the tests: nothing fires whose conditions have not held at every look for
`for_s`; each firing ends in exactly one resolution; what comes and goes within `clear_s` is told once.

Baselines are kept from when an alert became pending until it is over: an incident is measured by what was
usual before it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from extproc.observe.alerts.rules import Condition, ConditionReading, Rule, SignalSource, judge
from extproc.observe.alerts.watch import FLEET, SECOND, Key

#: Alerts that are pending or firing at once; more are counted and left out.
ACTIVE_MAX: Final = 1_000
#: Alerts remembered after they are over.
RECENT_MAX: Final = 200
#: Tenants' rules looked at in one step: with four steps a second, 1,000 tenants and two rules in 13 s.
TENANT_LOOKS: Final = 40
#: After so long of firing the past before it is no measure any more: the new one is taken.
USUAL_KEPT_NS: Final = 6 * 3600 * SECOND


class AlertState(Enum):
    """What an alert is."""

    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(slots=True)
class Alert:
    """One rule's state for one scope. Times are monotonic nanoseconds, 0 where not yet."""

    rule: Rule
    key: Key
    state: AlertState
    since_ns: int
    fired_ns: int = 0
    ended_ns: int = 0
    #: Since when its conditions have not held, while it fires; 0 while they hold.
    quiet_ns: int = 0
    told_ns: int = 0
    readings: list[ConditionReading] = field(default_factory=list)
    usual: dict[Condition, float] = field(default_factory=dict)
    #: What somebody who knows more says of it.
    detail: str = ""
    why_ended: str = ""

    @property
    def labels(self) -> dict[str, str]:
        """What it is told apart by: equal at every service that sees the same."""
        kind, name = self.key
        own = {} if kind == "fleet" else {kind: name}
        return {"alertname": self.rule.name, "severity": self.rule.severity, **own}


class AlertEngine:
    """Runs a set of rules. `step` gives what is to be told: alerts that fired, fire still, or are over."""

    def __init__(self, rules: Sequence[Rule], *, repeat_ns: int = 4 * 3600 * SECOND) -> None:
        self.repeat_ns = repeat_ns
        self.active: dict[tuple[str, Key], Alert] = {}
        self.recent: deque[Alert] = deque(maxlen=RECENT_MAX)
        self.counts: Counter[str] = Counter()
        self.rules: tuple[Rule, ...] = ()
        self._wide: tuple[Rule, ...] = ()
        self._narrow: tuple[Rule, ...] = ()
        self._looked_second = -1
        self._tenants: list[Key] = []
        self._turn = 0
        self.apply(rules, now_ns=0)

    def apply(self, rules: Sequence[Rule], *, now_ns: int) -> list[Alert]:
        """New rules; those of the same name go on where they were, what fired under a former one is over."""
        self.rules = tuple(rules)
        self._wide = tuple(rule for rule in rules if rule.each != "tenant")
        self._narrow = tuple(rule for rule in rules if rule.each == "tenant")
        known = {rule.name: rule for rule in rules}
        over = []
        for (name, key), alert in list(self.active.items()):
            rule = known.get(name)
            if rule is None or rule.each != key[0] or not _for(rule, key):
                over += self._over(alert, now_ns, "the rule was removed")
            else:
                alert.rule = rule
                alert.usual = {each: usual for each, usual in alert.usual.items() if each in rule.conditions}
        return over

    def step(self, signals: SignalSource, scopes: Mapping[str, Sequence[Key]], *, now_ns: int) -> list[Alert]:
        """Look at the rules: at all of fleet, pools and classes once a second, at tenants by turns.

        `scopes` are the known names by kind ("pool", "class", "tenant").
        """
        told: list[Alert] = []
        second = now_ns // SECOND
        if second != self._looked_second:
            self._looked_second = second
            told += self._gone(scopes, now_ns)
            for rule in self._wide:
                for key in (FLEET,) if rule.each == "fleet" else scopes.get(rule.each, ()):
                    if _for(rule, key):
                        told += self._look(rule, key, signals, now_ns)
            told += self._repeated(now_ns)
        for key in self._next_tenants(scopes.get("tenant", ())):
            for rule in self._narrow:
                if _for(rule, key):
                    told += self._look(rule, key, signals, now_ns)
        return told

    def _next_tenants(self, tenants: Sequence[Key]) -> Iterable[Key]:
        """Whose turn it is: everybody's once a round, in the order they were known at its beginning."""
        if not self._narrow or not tenants:
            return ()
        if self._turn >= len(self._tenants):
            self._tenants, self._turn = list(tenants), 0
        begin = self._turn
        self._turn += max(1, TENANT_LOOKS // len(self._narrow))
        return self._tenants[begin : self._turn]

    def _look(self, rule: Rule, key: Key, signals: SignalSource, now_ns: int) -> list[Alert]:
        alert = self.active.get((rule.name, key))
        firing = alert is not None and alert.state is AlertState.FIRING
        usual = None
        if alert is not None and (not firing or now_ns - alert.fired_ns < USUAL_KEPT_NS):
            usual = alert.usual
        holds, readings = judge(rule, key, signals, second=now_ns // SECOND, firing=firing, usual=usual)
        if alert is None:
            if not holds:
                return []
            alert = self._begin(rule, key, readings, now_ns)
            if alert is None:
                return []
        if holds:
            alert.readings, alert.quiet_ns = readings, 0
            for each in readings:
                if each.usual is not None:
                    alert.usual.setdefault(each.condition, each.usual)
            if not firing and now_ns - alert.since_ns >= rule.for_ns:
                alert.state, alert.fired_ns, alert.told_ns = AlertState.FIRING, now_ns, now_ns
                self.counts["fired"] += 1
                return [alert]
            return []
        if not firing:
            del self.active[rule.name, key]
            return []
        alert.quiet_ns = alert.quiet_ns or now_ns
        if now_ns - alert.quiet_ns >= rule.clear_ns:
            return self._over(alert, now_ns, "its conditions no longer hold")
        return []

    def _begin(self, rule: Rule, key: Key, readings: list[ConditionReading], now_ns: int) -> Alert | None:
        if len(self.active) >= ACTIVE_MAX:
            self.counts["left_out"] += 1
            return None
        alert = self.active[rule.name, key] = Alert(rule, key, AlertState.PENDING, now_ns, readings=readings)
        return alert

    def _over(self, alert: Alert, now_ns: int, why: str) -> list[Alert]:
        """It is over; what had not fired is nobody's concern."""
        del self.active[alert.rule.name, alert.key]
        if alert.state is not AlertState.FIRING:
            return []
        alert.state, alert.ended_ns, alert.why_ended = AlertState.RESOLVED, now_ns, why
        self.recent.append(alert)
        self.counts["resolved"] += 1
        return [alert]

    def _gone(self, scopes: Mapping[str, Sequence[Key]], now_ns: int) -> list[Alert]:
        """What is no longer known has no alerts."""
        if not self.active:
            return []
        known = {key for keys in scopes.values() for key in keys} | {FLEET}
        gone = [alert for alert in self.active.values() if alert.key not in known]
        return [told for alert in gone for told in self._over(alert, now_ns, f"{alert.key[1]} is gone")]

    def _repeated(self, now_ns: int) -> list[Alert]:
        due = [
            alert
            for alert in self.active.values()
            if alert.state is AlertState.FIRING and now_ns - alert.told_ns >= self.repeat_ns
        ]
        for alert in due:
            alert.told_ns = now_ns
            self.counts["repeated"] += 1
        return due


def _for(rule: Rule, key: Key) -> bool:
    return rule.only is None or key[1] in rule.only

"""The states of alerts, and their laws."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from extproc.observe.alerts.engine import ACTIVE_MAX, RECENT_MAX, Alert, AlertEngine, AlertState
from extproc.observe.alerts.rules import Condition, Rule
from extproc.observe.alerts.watch import FLEET, SECOND, Key

CONDITION = Condition("held", above=5.0)
POOLS = {"pool": [("pool", "a"), ("pool", "b")], "class": [], "tenant": []}


class Moments:
    """Gauges as a test says them, by scope."""

    def __init__(self) -> None:
        self.values: dict[Key, float] = {}

    def windowed(
        self, signal: str, key: Key, since: int, until: int, *, code: str | None
    ) -> tuple[float | None, int]:
        return None, 0

    def covered_s(self, key: Key, since: int, until: int) -> int:
        return 0

    def moment(self, signal: str, key: Key) -> float | None:
        return self.values.get(key)


def rule(name: str = "R", *, each: str = "pool", for_s: int = 10, clear_s: int = 20, **more: object) -> Rule:
    return Rule(name, each, ((CONDITION,),), for_ns=for_s * SECOND, clear_ns=clear_s * SECOND, **more)  # type: ignore[arg-type]


def told(alerts: list[Alert]) -> list[tuple[str, str, str]]:
    return [(alert.rule.name, alert.key[1], alert.state.value) for alert in alerts]


def test_pending_firing_resolved() -> None:
    """It fires when its conditions have held for for_s, and is over when they have not for clear_s."""
    engine, signals = AlertEngine([rule()]), Moments()
    signals.values[POOLS["pool"][0]] = 9.0
    assert engine.step(signals, POOLS, now_ns=100 * SECOND) == []
    assert engine.active["R", ("pool", "a")].state is AlertState.PENDING
    assert engine.step(signals, POOLS, now_ns=109 * SECOND) == []
    assert told(engine.step(signals, POOLS, now_ns=110 * SECOND)) == [("R", "a", "firing")]
    assert engine.step(signals, POOLS, now_ns=111 * SECOND) == [], "told once"
    signals.values.clear()
    assert engine.step(signals, POOLS, now_ns=120 * SECOND) == []
    assert engine.step(signals, POOLS, now_ns=139 * SECOND) == []
    assert told(engine.step(signals, POOLS, now_ns=140 * SECOND)) == [("R", "a", "resolved")]
    assert engine.active == {}
    assert [alert.ended_ns for alert in engine.recent] == [140 * SECOND]


def test_what_does_not_last_is_nobodys_concern() -> None:
    """A break in for_s begins it anew; one within clear_s while it fires changes nothing."""
    engine, signals = AlertEngine([rule()]), Moments()
    for second in range(60):
        signals.values[POOLS["pool"][0]] = 0.0 if second % 10 == 9 else 9.0
        assert engine.step(signals, POOLS, now_ns=(100 + second) * SECOND) == []
    signals.values[POOLS["pool"][0]] = 9.0
    events = []
    for second in range(60, 200):
        if second > 90:
            signals.values[POOLS["pool"][0]] = 0.0 if second % 10 else 9.0
        events += engine.step(signals, POOLS, now_ns=(100 + second) * SECOND)
    assert told(events) == [("R", "a", "firing")]


def test_an_alert_that_still_fires_is_told_again() -> None:
    """After repeat_ns, as often as that."""
    engine, signals = AlertEngine([rule(for_s=0)], repeat_ns=60 * SECOND), Moments()
    signals.values[POOLS["pool"][0]] = 9.0
    events = [len(engine.step(signals, POOLS, now_ns=second * SECOND)) for second in range(100, 300)]
    assert [second for second, count in enumerate(events) if count] == [0, 60, 120, 180]


def test_a_reload_goes_on_with_what_stays() -> None:
    """The same rule keeps its state with a new threshold; one that is gone is over at once, and says so."""
    engine, signals = AlertEngine([rule("Stays"), rule("Goes"), rule("Pends", for_s=99)]), Moments()
    signals.values[POOLS["pool"][0]] = 9.0
    for second in range(100, 120):
        engine.step(signals, POOLS, now_ns=second * SECOND)
    over = engine.apply([rule("Stays", severity="critical")], now_ns=120 * SECOND)
    assert told(over) == [("Goes", "a", "resolved")]
    assert over[0].why_ended == "the rule was removed"
    assert engine.step(signals, POOLS, now_ns=121 * SECOND) == []
    stays = engine.active["Stays", ("pool", "a")]
    assert (stays.fired_ns, stays.labels["severity"]) == (110 * SECOND, "critical")
    narrowed = engine.apply([rule("Stays", only=frozenset({"b"}))], now_ns=122 * SECOND)
    assert told(narrowed) == [("Stays", "a", "resolved")]


def test_a_pool_that_is_gone_has_no_alert() -> None:
    """It is resolved, with the reason."""
    engine, signals = AlertEngine([rule(for_s=0)]), Moments()
    signals.values[POOLS["pool"][0]] = 9.0
    engine.step(signals, POOLS, now_ns=100 * SECOND)
    gone = engine.step(signals, {**POOLS, "pool": [("pool", "b")]}, now_ns=101 * SECOND)
    assert told(gone) == [("R", "a", "resolved")]
    assert gone[0].why_ended == "a is gone"


def test_every_tenant_has_its_turn() -> None:
    """However many there are: none is looked at twice before all were looked at once."""
    engine, signals = AlertEngine([rule(each="tenant", for_s=0)]), Moments()
    tenants = [("tenant", f"t{i}") for i in range(250)]
    signals.values = dict.fromkeys(tenants, 9.0)
    events: list[Alert] = []
    steps = 0
    while len(events) < 250:
        events += engine.step(
            signals, {**POOLS, "tenant": tenants}, now_ns=100 * SECOND + steps * SECOND // 4
        )
        steps += 1
    assert steps == 7  # 40 looks a step, one rule
    assert {alert.key for alert in events} == set(tenants)


def test_alerts_are_bounded() -> None:
    """A storm of tenants fills the bound and no more; what is over is remembered up to its own."""
    engine, signals = AlertEngine([rule(each="tenant", for_s=0, clear_s=0)]), Moments()
    tenants = [("tenant", f"t{i}") for i in range(ACTIVE_MAX + 50)]
    scopes = {**POOLS, "tenant": tenants}
    signals.values = dict.fromkeys(tenants, 9.0)
    for step in range(60):
        engine.step(signals, scopes, now_ns=100 * SECOND + step * SECOND // 4)
    assert len(engine.active) == ACTIVE_MAX
    assert engine.counts["left_out"] > 0
    signals.values = {}
    for step in range(200):
        engine.step(signals, scopes, now_ns=200 * SECOND + step * SECOND // 4)
    assert engine.active == {}
    assert len(engine.recent) == RECENT_MAX
    assert engine.counts["fired"] == engine.counts["resolved"] == ACTIVE_MAX


@given(
    held=st.lists(st.booleans(), min_size=1, max_size=300),
    for_s=st.integers(0, 15),
    clear_s=st.integers(0, 15),
)
def test_laws(held: list[bool], for_s: int, clear_s: int) -> None:
    """Nothing fires before its time, each firing has one end, and tellings have their distance."""
    engine = AlertEngine([rule(each="fleet", for_s=for_s, clear_s=clear_s)], repeat_ns=10**18)
    signals, scopes = Moments(), dict[str, list[Key]]()
    fires, ends = [], []
    for second, holds in enumerate([*held, *[False] * 40]):
        signals.values[FLEET] = 9.0 if holds else 0.0
        for alert in engine.step(signals, scopes, now_ns=(100 + second) * SECOND):
            (fires if alert.state is AlertState.FIRING else ends).append(second)
    assert len(fires) == len(ends)
    for fired, ended in zip(fires, ends, strict=True):
        assert all(held[fired - for_s : fired + 1]), "the conditions held at every look of for_s"
        after = [*held, *[False] * 40][ended - clear_s : ended + 1]
        assert not any(after), "and not once in clear_s"
        assert ended >= fired + clear_s
    assert all(later > ended for later, ended in zip(fires[1:], ends, strict=False))
    assert engine.active == {}

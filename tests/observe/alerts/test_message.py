"""Notifications as Alertmanager writes them."""

from __future__ import annotations

from extproc.observe.alerts.engine import Alert, AlertState
from extproc.observe.alerts.message import ALERTS_MAX, NEVER, From, fingerprint, grouped, message, view
from extproc.observe.alerts.rules import Condition, ConditionReading, Rule
from extproc.observe.alerts.watch import SECOND

#: 2026-01-01T00:00:00Z.
WALL = 1_767_225_600 * SECOND


def alert(pool: str = "chat", *, state: AlertState = AlertState.FIRING, ended_ns: int = 0) -> Alert:
    rule = Rule("Slow", "pool", (), severity="critical", summary="It is slow.")
    condition = Condition("ttft_p90_ms", over_s=30, times=2.0)
    readings = [ConditionReading(condition, 2310.4, 410.0, holds=True)]
    return Alert(
        rule, ("pool", pool), state, 5 * SECOND, fired_ns=10 * SECOND, ended_ns=ended_ns, readings=readings
    )


def test_a_fingerprint_is_alertmanagers() -> None:
    """FNV-1a of 64 bits over sorted names and values, each ended by 0xff."""
    assert fingerprint({}) == "cbf29ce484222325"
    # By hand: FNV-1a of b"a\xffb\xff".
    total = 14695981039346656037
    for byte in b"a\xffb\xff":
        total = (total ^ byte) * 1099511628211 % 2**64
    assert fingerprint({"a": "b"}) == f"{total:016x}"
    assert fingerprint({"a": "1", "b": "2"}) == fingerprint({"b": "2", "a": "1"})


def test_a_firing_alert() -> None:
    """Labels tell it apart, annotations tell people; its end is not yet."""
    shown = view(alert(), From("one", "http://here", WALL))
    assert shown == {
        "status": "firing",
        "labels": {"alertname": "Slow", "severity": "critical", "pool": "chat"},
        "annotations": {
            "summary": "It is slow.",
            "description": "pool chat: ttft_p90_ms 2310 over 30 s (usually 410)",
            "instance": "one",
        },
        "startsAt": "2026-01-01T00:00:10.000Z",
        "endsAt": NEVER,
        "generatorURL": "http://here",
        "fingerprint": fingerprint({"alertname": "Slow", "severity": "critical", "pool": "chat"}),
    }


def test_services_that_see_the_same_send_the_same_fingerprint() -> None:
    """The instance is in the annotations, not in the labels."""
    one, two = (view(alert(), From(name, "", WALL)) for name in ("one", "two"))
    assert one["fingerprint"] == two["fingerprint"]
    assert one["annotations"] != two["annotations"]


def test_a_message_has_alertmanagers_version_4() -> None:
    """All of its keys, and what the alerts have in common."""
    alerts = [view(alert(pool), From(wall_ns=WALL)) for pool in ("chat", "code")]
    found = message(alerts, receiver="pager", external_url="http://here")
    assert found["alerts"] == alerts
    assert {key: value for key, value in found.items() if key != "alerts"} == {
        "version": "4",
        "groupKey": '{}:{alertname="Slow"}',
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "pager",
        "groupLabels": {"alertname": "Slow"},
        "commonLabels": {"alertname": "Slow", "severity": "critical"},
        "commonAnnotations": {"summary": "It is slow."},
        "externalURL": "http://here",
    }


def test_a_large_group_is_cut_and_says_so() -> None:
    """At ALERTS_MAX."""
    alerts = [view(alert(f"p{i}"), From()) for i in range(ALERTS_MAX + 3)]
    found = message(alerts, receiver="pager", external_url="")
    assert (len(found["alerts"]), found["truncatedAlerts"]) == (ALERTS_MAX, 3)


def test_groups_are_of_one_rule_and_one_state() -> None:
    """What fires and what is over are told apart."""
    over = alert("code", state=AlertState.RESOLVED, ended_ns=20 * SECOND)
    groups = grouped([alert("a"), over, alert("b")])
    assert [[each.key[1] for each in group] for group in groups] == [["a", "b"], ["code"]]
    assert view(over, From(wall_ns=WALL))["endsAt"] == "2026-01-01T00:00:20.000Z"

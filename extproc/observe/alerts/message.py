"""Notifications in the form of Alertmanager's webhooks, version 4.

Owns the payload and the fingerprint. Pure: wall-clock time is what `wall_ns` adds to the monotonic one.
Sources: prometheus.io/docs/alerting/latest/configuration, <webhook_config>; prometheus/common,
model/signature.go.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from extproc.observe.alerts.engine import Alert, AlertState

#: Alerts in one message; more are counted as truncated.
ALERTS_MAX: Final = 64
#: What Alertmanager writes for a time that is not yet.
NEVER: Final = "0001-01-01T00:00:00Z"
#: FNV-1a of 64 bits.
_OFFSET, _PRIME, _MASK = 14695981039346656037, 1099511628211, (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class From:
    """Who tells: for annotations and links."""

    instance: str = ""
    external_url: str = ""
    #: Unix nanoseconds less monotonic nanoseconds.
    wall_ns: int = 0


def fingerprint(labels: Mapping[str, str]) -> str:
    """Alertmanager's own: FNV-1a over names and values in order, each followed by 0xff; 16 hex digits."""
    total = _OFFSET
    for name in sorted(labels):
        for byte in (*name.encode(), 255, *labels[name].encode(), 255):
            total = ((total ^ byte) * _PRIME) & _MASK
    return f"{total:016x}"


def annotations_of(alert: Alert, sender: From) -> dict[str, str]:
    """What people read: the rule's words, the figures, who saw it."""
    seen = "; ".join(reading.text() for reading in alert.readings)
    kind, name = alert.key
    where = f"{kind} {name}: " if name else ""
    found = {"summary": alert.rule.summary or alert.rule.name, "description": f"{where}{seen}"}
    if alert.detail:
        found["detail"] = alert.detail
    if alert.why_ended:
        found["resolved"] = alert.why_ended
    return {**found, **({"instance": sender.instance} if sender.instance else {})}


def view(alert: Alert, sender: From, *, status: str | None = None) -> dict[str, Any]:
    """One alert as Alertmanager writes it; `status` in the place of its own."""
    ended = alert.ended_ns
    return {
        "status": status or alert.state.value,
        "labels": alert.labels,
        "annotations": annotations_of(alert, sender),
        "startsAt": _time((alert.fired_ns or alert.since_ns) + sender.wall_ns),
        "endsAt": _time(ended + sender.wall_ns) if ended else NEVER,
        "generatorURL": sender.external_url,
        "fingerprint": fingerprint(alert.labels),
    }


def message(alerts: Sequence[Mapping[str, Any]], *, receiver: str, external_url: str) -> dict[str, Any]:
    """One notification of alerts (as `view` has them) of one rule and one status."""
    shown = alerts[:ALERTS_MAX]
    name = shown[0]["labels"]["alertname"]
    return {
        "version": "4",
        "groupKey": f'{{}}:{{alertname="{name}"}}',
        "truncatedAlerts": len(alerts) - len(shown),
        "status": shown[0]["status"],
        "receiver": receiver,
        "groupLabels": {"alertname": name},
        "commonLabels": _common(each["labels"] for each in shown),
        "commonAnnotations": _common(each["annotations"] for each in shown),
        "externalURL": external_url,
        "alerts": list(shown),
    }


def grouped(alerts: Iterable[Alert]) -> list[list[Alert]]:
    """Those that go into one message: of one rule and one state."""
    groups: dict[tuple[str, AlertState], list[Alert]] = {}
    for alert in alerts:
        groups.setdefault((alert.rule.name, alert.state), []).append(alert)
    return list(groups.values())


def _common(each: Iterable[Mapping[str, str]]) -> dict[str, str]:
    first, *others = each
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def _time(unix_ns: int) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(unix_ns // 1_000_000_000))
    return f"{whole}.{unix_ns % 1_000_000_000 // 1_000_000:03d}Z"

"""The running service's alerts: feeds the rules with what is seen, and tells the webhooks.

Owns the wall clock and the sending; which rules there are and what they mean
is `observe/alerts`'s. Each service of several watches by itself: of requests' ends all of them hear, so that
the same alert comes from each with the same fingerprint, by which a receiver takes it once (as Alertmanager
does).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgspec

from extproc.config.alerts import Alerts, Webhook
from extproc.config.load import ConfigError, Problem
from extproc.config.model import Config
from extproc.core.events import Observer
from extproc.core.scheduler import Scheduler
from extproc.observe.alerts import message, post
from extproc.observe.alerts.anomaly import Anomalies, Settings
from extproc.observe.alerts.defaults import rules_of
from extproc.observe.alerts.engine import Alert, AlertEngine, AlertState
from extproc.observe.alerts.outbox import AlertOutbox, Parcel, Patience
from extproc.observe.alerts.rules import SEVERITIES, Rule
from extproc.observe.alerts.watch import (
    ERROR,
    FLEET,
    GONE,
    INPUT,
    OK,
    OUTPUT,
    REFUSED,
    SECOND,
    TURNED,
    AlertWatch,
    Key,
)
from extproc.service.build import classes_of
from extproc.service.parts import Part
from extproc.service.signals import Values

log = logging.getLogger(__name__)

#: Tenants whose minute is added to their pattern in one step: 1,000 of them within a minute's first 13 s.
PATTERN_TENANTS = 20
#: A tenant that has been idle for so long is looked at again when it asks.
IDLE_S = 360
#: How long what was not delivered may still take when the service ends.
STOP_S = 2.0
#: Alerts of a kind in one answer.
VIEW_MAX = 500


class _Box:
    """One webhook with what waits for it."""

    def __init__(self, webhook: Webhook, rng: Random) -> None:
        self.webhook = webhook
        self.outbox = AlertOutbox(_patience(webhook), rng=rng)
        self.sending: asyncio.Task[None] | None = None


class AlertsPart(Part):
    """The part that tells people. Raises ConfigError where a webhook's secret cannot be read."""

    name = "alerts"

    def __init__(
        self,
        config: Config,
        scheduler: Scheduler,
        *,
        clock: Callable[[], int],
        wall_ns: Callable[[], int] = time.time_ns,
        rng: Random | None = None,
    ) -> None:
        self._scheduler, self._clock = scheduler, clock
        self._rng = rng or Random(f"{scheduler.instance} alerts")
        self._wall_ns = wall_ns() - clock()
        self.settings = config.alerts
        _check_secrets(self.settings.webhooks)
        self.watch = AlertWatch((), tenants_max=self.settings.tenants_max)
        self.anomalies = Anomalies(_anomaly_settings(self.settings))
        self.values = Values(scheduler, self.watch, self.anomalies)
        self.engine = AlertEngine((), repeat_ns=int(self.settings.repeat_s * 1e9))
        self._boxes: dict[str, _Box] = {}
        self._second = self._minute = -1
        self._patterns: list[Key] = []
        self._scopes: dict[str, list[Key]] = {}
        self.apply(config)

    @property
    def observers(self) -> tuple[Observer, ...]:
        """The watch, unless nothing is watched."""
        return (self.watch,) if self.settings.enabled else ()

    @property
    def rules(self) -> Sequence[Rule]:
        """What is looked for."""
        return self.engine.rules

    def apply(self, config: Config) -> None:
        """New rules, webhooks, classes and pools; what fires goes on where its rule is still there."""
        now_ns = self._clock()
        self.settings = settings = config.alerts
        self.anomalies.settings = _anomaly_settings(settings)
        self.watch.tenants_max = settings.tenants_max
        self.watch.apply(classes_of(config), pools=[pool.name for pool in config.pools])
        self.watch.budgets = {each.name: 1.0 - settings.slo.of(each.name) for each in config.classes}
        boxes = {}
        for webhook in settings.webhooks:
            box = self._boxes.get(webhook.name)
            if box is None:
                box = _Box(webhook, self._rng)
            box.webhook, box.outbox.patience = webhook, _patience(webhook)
            boxes[webhook.name] = box
        self._boxes = boxes
        self.engine.repeat_ns = int(settings.repeat_s * 1e9)
        over = self.engine.apply(rules_of(settings) if settings.enabled else (), now_ns=now_ns)
        self._tell(over, now_ns)
        self._second = -1

    async def stop(self) -> None:
        """Give what waits a last moment to be delivered."""
        deadline = time.monotonic() + STOP_S
        while any(len(box.outbox) for box in self._boxes.values()) and time.monotonic() < deadline:
            self._send(self._clock())
            tasks = [box.sending for box in self._boxes.values() if box.sending is not None]
            await asyncio.wait(tasks, timeout=0.1) if tasks else await asyncio.sleep(0.05)
        for box in self._boxes.values():
            if box.sending is not None:
                box.sending.cancel()

    def step(self, *, now_ns: int) -> None:
        """Look at the rules, and send what is due."""
        if self.settings.enabled:
            second = now_ns // SECOND
            if second != self._second:
                self._second = second
                self.values.look(now_ns=now_ns)
                self._scopes = self._known()
            if self.settings.anomalies.enabled:
                self._learn(now_ns)
            self._tell(self.engine.step(self.values, self._scopes, now_ns=now_ns), now_ns)
        self._send(now_ns)

    def view(self) -> dict[str, Any]:
        """What fires, is pending, was of late; the rules; how the webhooks do."""
        sender = self._sender()
        active = list(self.engine.active.values())
        kinds = {state: [each for each in active if each.state is state] for state in AlertState}
        by_rule: dict[str, list[AlertState]] = {}
        for each in active:
            by_rule.setdefault(each.rule.name, []).append(each.state)
        return {
            "firing": [message.view(each, sender) for each in kinds[AlertState.FIRING][:VIEW_MAX]],
            "pending": [message.view(each, sender) for each in kinds[AlertState.PENDING][:VIEW_MAX]],
            "recent": [message.view(each, sender) for each in reversed(self.engine.recent)],
            "rules": [
                {
                    "name": rule.name,
                    "each": rule.each,
                    "severity": rule.severity,
                    "for_s": rule.for_ns / 1e9,
                    "summary": rule.summary,
                    "firing": by_rule.get(rule.name, []).count(AlertState.FIRING),
                    "pending": by_rule.get(rule.name, []).count(AlertState.PENDING),
                }
                for rule in self.rules
            ],
            "webhooks": {name: box.outbox.status() for name, box in self._boxes.items()},
            "counts": dict(sorted(self.engine.counts.items())),
        }

    def firing(self) -> dict[str, bool]:
        """Each rule, and whether it fires for anything (the metric `alerts_firing`)."""
        fires = {each.rule.name for each in self.engine.active.values() if each.state is AlertState.FIRING}
        return {rule.name: rule.name in fires for rule in self.rules}

    def status(self) -> dict[str, object]:
        """Counts, for `steersman status`."""
        active = self.engine.active.values()
        return {
            "on": self.settings.enabled,
            "rules": len(self.rules),
            "firing": sorted(each.rule.name for each in active if each.state is AlertState.FIRING),
            "pending": sum(each.state is AlertState.PENDING for each in active),
            "tenants": self.watch.tenants,
            "webhooks": {name: box.outbox.status() for name, box in self._boxes.items()},
        }

    def order(self, body: bytes) -> bytes:
        """The command `Alerts`: `{}` shows, `{"test": NAME or ""}` sends a test to one webhook or to all.

        ValueError says what is wrong.
        """
        order = msgspec.json.decode(body, type=_AlertOrder) if body else _AlertOrder()
        if order.test is None:
            return msgspec.json.encode(self.view())
        names = [order.test] if order.test else list(self._boxes)
        if unknown := [name for name in names if name not in self._boxes]:
            there = ", ".join(self._boxes) or "none is configured"
            raise ValueError(f"there is no webhook {unknown[0][:63]!r}; there are: {there}")
        if not names:
            raise ValueError("no webhook is configured; write one under alerts.webhooks")
        now_ns = self._clock()
        rule = Rule("SteersmanTest", "fleet", (), summary="A test; nothing has happened.")
        alert = Alert(rule, FLEET, AlertState.FIRING, now_ns, fired_ns=now_ns)
        for name in names:
            self._put(self._boxes[name], [alert], now_ns)
        self._send(now_ns)
        return msgspec.json.encode({"sent_to": names})

    def _known(self) -> dict[str, list[Key]]:
        scopes: dict[str, list[Key]] = {"pool": [], "class": [], "tenant": []}
        for key in self.watch.figures:
            if key != FLEET:
                scopes[key[0]].append(key)
        return scopes

    def _learn(self, now_ns: int) -> None:
        """Add the minute that is over to the tenants' patterns, some of them at a time."""
        minute = now_ns // (60 * SECOND)
        if minute != self._minute:
            self._minute = minute
            known = {key[1]: None for key in self._scopes.get("tenant", ())}
            self.anomalies.forget(known)
            self._patterns = list(self._scopes.get("tenant", ()))
        end = minute * 60 - 1
        hour = (now_ns + self._wall_ns) // (3600 * SECOND) % 24
        for key in self._patterns[:PATTERN_TENANTS]:
            figures = self.watch.figures.get(key)
            quiet = self.anomalies.verdict(key[1]).score < 1.0
            if figures is None or (quiet and figures.counts.second < end - IDLE_S):
                continue
            grown = figures.counted(end - 60, end)
            requests = sum(grown[each] for each in (OK, ERROR, TURNED, GONE, REFUSED))
            row = (requests, grown[INPUT], grown[OUTPUT], grown[ERROR])
            self.anomalies.minute(key[1], minute - 1, row, hour=hour)
        del self._patterns[:PATTERN_TENANTS]

    def _tell(self, alerts: Sequence[Alert], now_ns: int) -> None:
        for alert in alerts:
            if alert.rule.name == "TenantUnusual" and alert.state is AlertState.FIRING:
                alert.detail = self.anomalies.verdict(alert.key[1]).text() or alert.detail
            how = log.warning if alert.state is AlertState.FIRING else log.info
            where = " ".join(alert.key).strip()
            seen = "; ".join(reading.text() for reading in alert.readings)
            how("alert %s of %s is %s: %s %s", alert.rule.name, where, alert.state.value, seen, alert.detail)
        for group in message.grouped(alerts):
            alert = group[0]
            for box in self._boxes.values():
                least = SEVERITIES.index(box.webhook.severity_min)
                wanted = alert.state is AlertState.FIRING or box.webhook.resolved
                if wanted and SEVERITIES.index(alert.rule.severity) >= least:
                    self._put(box, group, now_ns)

    def _put(self, box: _Box, alerts: Sequence[Alert], now_ns: int) -> None:
        sender = self._sender()
        views = [message.view(alert, sender) for alert in alerts]
        body = message.message(views, receiver=box.webhook.name, external_url=self.settings.external_url)
        box.outbox.add(body, now_ns=now_ns)

    def _send(self, now_ns: int) -> None:
        for box in self._boxes.values():
            parcel = box.outbox.due(now_ns=now_ns)
            if parcel is not None:
                box.sending = asyncio.get_running_loop().create_task(self._deliver(box, parcel))

    async def _deliver(self, box: _Box, parcel: Parcel) -> None:
        webhook, status, trouble = box.webhook, None, "the service ends"
        try:
            body = msgspec.json.encode(parcel.message)
            secrets = post.secrets_of(webhook)
            given = post.headers(body, secrets, timestamp_s=time.time_ns() // SECOND)
            status = await post.post(
                webhook.url, body, given, timeout_s=webhook.timeout_s, ca_file=webhook.ca_file
            )
            trouble = ""
        except TimeoutError:
            trouble = f"no answer within {webhook.timeout_s:g} s"
        except (OSError, ValueError, post.SecretError) as error:
            trouble = str(error) or type(error).__name__
        finally:
            known = box.outbox.trouble
            box.sending = None
            if not box.outbox.sent(status, trouble, now_ns=self._clock()) and not known:
                log.warning("webhook %s: %s; trying again", webhook.name, box.outbox.trouble)

    def _sender(self) -> message.From:
        return message.From(self._scheduler.instance, self.settings.external_url, self._wall_ns)


class _AlertOrder(msgspec.Struct):
    test: str | None = None


def _anomaly_settings(alerts: Alerts) -> Settings:
    section = alerts.anomalies
    return Settings(
        times=section.times,
        spreads=section.spreads,
        requests_min=section.requests_min,
        learn_buckets=max(1, round(section.learn_h * 12)),
    )


def _patience(webhook: Webhook) -> Patience:
    return Patience(
        retry_min_ns=webhook.retry_min_ms * 1_000_000,
        retry_max_ns=int(webhook.retry_max_s * 1e9),
        give_up_ns=int(webhook.give_up_s * 1e9),
        queue_max=webhook.queue_max,
    )


def _check_secrets(webhooks: Sequence[Webhook]) -> None:
    problems = []
    for i, webhook in enumerate(webhooks):
        try:
            post.secrets_of(webhook)
        except post.SecretError as error:
            problems.append(Problem("the configuration", None, f"alerts.webhooks[{i}]", str(error)))
    if problems:
        raise ConfigError(problems)

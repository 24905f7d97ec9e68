"""The section of alerts: rules over signals, objectives, anomalies, and where notifications go.

Owns names, ranges and what of it cannot mean anything. The signals are signals.py's; what is on without any
configuration is `observe/alerts/defaults.py`'s.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from extproc.config.section import Section
from extproc.config.signals import CODES, LONG_WINDOW_S_MAX, SIGNALS, WINDOW_S_MAX, Scope
from extproc.config.types import Name
from extproc.meant import meant

RULES_MAX, WEBHOOKS_MAX, CONDITIONS_MAX = 200, 16, 8
Severity = Literal["info", "warning", "critical"]
#: A lower objective leaves a budget that the fastest burn (14.4 times) could never use.
OBJECTIVE_MIN = 0.94


def _signal(value: str) -> str:
    if value not in SIGNALS:
        raise ValueError(f"{value!r} is not a signal; there are {', '.join(SIGNALS)}{meant(value, SIGNALS)}")
    return value


def _code(value: str) -> str:
    if value not in CODES:
        raise ValueError(f"{value!r} is not told apart; write one of {', '.join(CODES)}{meant(value, CODES)}")
    return value


class ConditionConfig(Section):
    """One signal against a threshold, or against its own past; what is given must all hold."""

    signal: Annotated[str, AfterValidator(_signal)]
    """Which one; docs/alerts.md lists them."""
    scope: Literal["own", "fleet"] = "own"
    """'own' is what the rule is for (its pool, class or tenant); 'fleet' looks at everything."""
    over_s: int | None = Field(default=None, ge=5, le=LONG_WINDOW_S_MAX)
    """The span looked at, for signals that have one; 60 s when left out."""
    above: float | None = Field(default=None, ge=-1e12, le=1e12)
    """Holds while the signal is above this."""
    below: float | None = Field(default=None, ge=-1e12, le=1e12)
    """Holds while the signal is below this."""
    times: float | None = Field(default=None, gt=0.0, le=1_000.0)
    """Holds while the signal is above this multiple of its own past (below it, where it is less than 1)."""
    baseline_s: int = Field(default=3_600, ge=60, le=LONG_WINDOW_S_MAX)
    """With times: how much of the past is taken; it ends where over_s begins."""
    code: Annotated[str, AfterValidator(_code)] | None = None
    """With refusal_rate: refusals with this code alone."""

    @property
    def window_s(self) -> int:
        """The span looked at."""
        return self.over_s or 60

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        signal = SIGNALS[self.signal]
        if self.above is None and self.below is None and self.times is None:
            raise ValueError(f"{self.signal} is compared with nothing; give above, below or times")
        if not signal.windowed and (self.over_s is not None or self.times is not None):
            raise ValueError(
                f"{self.signal} is of the moment; leave over_s and times out (for_s says how long)"
            )
        if self.code is not None and self.signal != "refusal_rate":
            raise ValueError("code goes with refusal_rate alone; leave it out")
        if signal.times and max(self.window_s, self.baseline_s if self.times else 0) > WINDOW_S_MAX:
            raise ValueError(f"quantiles are kept for {WINDOW_S_MAX} s; shorten over_s or baseline_s")
        return self


class When(Section):
    """Conditions: every one of `all_of`, and one at least of `any_of` where there are some."""

    all_of: list[ConditionConfig] = Field(default=[], max_length=CONDITIONS_MAX)
    """All of these hold."""
    any_of: list[ConditionConfig] = Field(default=[], max_length=CONDITIONS_MAX)
    """And one of these."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.all_of and not self.any_of:
            raise ValueError("has no condition; list some under all_of or any_of")
        return self


class RuleConfig(Section):
    """When somebody is told. A rule with the name of a built-in one takes its place."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,62}$")
    """Its name, of letters, digits and '_': the alert's 'alertname'."""
    each: Scope = "fleet"
    """What it is looked at for: everything at once, or each pool, class or tenant by itself."""
    only: list[str] | None = Field(default=None, max_length=1_000)
    """The names of the pools, classes or tenants that it is for; all when left out."""
    when: When
    """Its conditions."""
    for_s: float = Field(default=30.0, ge=0.0, le=86_400.0)
    """How long they must hold without a break before it fires."""
    clear_s: float = Field(default=60.0, ge=0.0, le=86_400.0)
    """How long they must not hold before it is over."""
    severity: Severity = "warning"
    """How bad it is."""
    min_requests: int = Field(default=20, ge=1, le=1_000_000_000)
    """A span with fewer requests says nothing: its condition does not hold."""
    summary: str = Field(default="", max_length=500)
    """What people are told beside the figures."""

    @model_validator(mode="after")
    def _known_there(self) -> Self:
        for condition in (*self.when.all_of, *self.when.any_of):
            scope = "fleet" if condition.scope == "fleet" else self.each
            signal = SIGNALS[condition.signal]
            if scope not in signal.scopes:
                raise ValueError(
                    f"{condition.signal} is known of {' or '.join(signal.scopes)}, not of {scope}"
                )
            if scope == "tenant" and condition.window_s > WINDOW_S_MAX:
                raise ValueError(f"a tenant's figures are kept for {WINDOW_S_MAX} s; shorten over_s")
        return self


class Objective(Section):
    """The share of a class's requests that shall meet its targets."""

    service_class: Name = Field(alias="class")
    """The class."""
    objective: float = Field(ge=OBJECTIVE_MIN, le=0.99999)
    """The share, such as 0.99."""


class SloConfig(Section):
    """Alerts on how fast the classes' error budgets are used, over two windows at once (multi-window burn
    rates, as Google's SRE workbook has them)."""

    enabled: bool = True
    """Whether there are any."""
    objective: float = Field(default=0.95, ge=OBJECTIVE_MIN, le=0.99999)
    """The share of requests that shall meet their class's targets, where objectives does not say."""
    objectives: list[Objective] = Field(default=[], max_length=8)
    """The same for single classes."""
    scale: float = Field(default=1.0, ge=0.001, le=1.0)
    """All windows are multiplied by this; for trials."""
    min_requests: int = Field(default=50, ge=1, le=1_000_000_000)
    """A window with fewer requests says nothing."""

    def of(self, service_class: str) -> float:
        """A class's objective."""
        own = {each.service_class: each.objective for each in self.objectives}
        return own.get(service_class, self.objective)


class AnomalyConfig(Section):
    """Tenants whose usage is out of their own pattern."""

    enabled: bool = True
    """Whether they are looked for."""
    times: float = Field(default=3.0, ge=1.5, le=100.0)
    """What is unusual differs by this factor at the least from what the tenant usually does."""
    spreads: float = Field(default=5.0, ge=2.0, le=50.0)
    """And by this many of the usual deviations (median absolute deviation × 1.4826)."""
    requests_min: int = Field(default=30, ge=5, le=1_000_000)
    """Five minutes with fewer requests say nothing."""
    learn_h: float = Field(default=3.0, ge=0.5, le=48.0)
    """How long a tenant is watched before anything of it is called unusual."""


class Webhook(Section):
    """Where notifications go, in the form of Alertmanager's webhooks (version 4)."""

    name: Name
    """Its name in reports; the message's 'receiver'."""
    url: str = Field(pattern=r"^https?://[^\s/]+", max_length=2_048)
    """Where it is posted to."""
    severity_min: Severity = "warning"
    """Alerts that are less severe are not sent here."""
    resolved: bool = True
    """Whether it is told too when an alert is over."""
    timeout_s: float = Field(default=5.0, ge=0.1, le=60.0)
    """How long one attempt may take, from the name's look-up to the answer."""
    retry_min_ms: int = Field(default=500, ge=10, le=60_000)
    """The first wait before another attempt; each further one is twice as long, give or take a half."""
    retry_max_s: float = Field(default=60.0, ge=0.1, le=3_600.0)
    """The longest wait."""
    give_up_s: float = Field(default=3_600.0, ge=1.0, le=604_800.0)
    """A notification that could not be delivered for this long is dropped, and counted."""
    queue_max: int = Field(default=256, ge=1, le=10_000)
    """Notifications that wait; above it the oldest is dropped, and counted."""
    secret_file: str | None = Field(default=None, min_length=1)
    """A file with the secret of the signature in x-steersman-signature; not signed when left out."""
    secret_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable with that secret. Either this or secret_file."""
    bearer_file: str | None = Field(default=None, min_length=1)
    """A file with a token to send as 'Authorization: Bearer'; none when left out."""
    bearer_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable with that token. Either this or bearer_file."""
    ca_file: str | None = Field(default=None, min_length=1)
    """The authorities that https is checked against, a PEM file; the system's when left out."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        for kind in ("secret", "bearer"):
            if getattr(self, f"{kind}_file") and getattr(self, f"{kind}_env"):
                raise ValueError(f"{kind}_file stands beside {kind}_env; keep one of them")
        return self


class Alerts(Section):
    """Alerts on this service's traffic and replicas, and on tenants out of their pattern."""

    enabled: bool = True
    """Whether anything is watched."""
    off: list[str] = Field(default=[], max_length=RULES_MAX)
    """Built-in rules that are switched off, by name."""
    rules: list[RuleConfig] = Field(default=[], max_length=RULES_MAX)
    """Further rules, or others in the place of built-in ones."""
    slo: SloConfig = SloConfig()
    """Alerts on the classes' targets."""
    anomalies: AnomalyConfig = AnomalyConfig()
    """Alerts on tenants out of their pattern."""
    webhooks: list[Webhook] = Field(default=[], max_length=WEBHOOKS_MAX)
    """Who is told."""
    repeat_s: float = Field(default=14_400.0, ge=10.0, le=604_800.0)
    """An alert that still fires is told again after so long."""
    external_url: str = Field(default="", max_length=2_048)
    """Where people find this service's page; it is put into notifications."""
    tenants_max: int = Field(default=1_000, ge=1, le=100_000)
    """Tenants that are watched one by one (about 30 kB each); the one longest idle gives way to a new one."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        for what, names in (
            ("rule", [each.name for each in self.rules]),
            ("webhook", [each.name for each in self.webhooks]),
        ):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ValueError(f"there are two {what}s named {min(twice)!r}; rename one")
        return self

"""The part that alerts: what it reads of the fleet, learns of tenants, tells and shows."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.config.load import ConfigError
from extproc.config.model import Config
from extproc.core.accounts import Accounts
from extproc.core.health import Cause, CauseKind
from extproc.core.outcome import End, Outcome
from extproc.core.quota import NOTHING, Account, ExactBooks, limits
from extproc.core.scheduler import Policy
from extproc.observe.alerts.engine import AlertState
from extproc.service.alerts import AlertsPart
from tests.stand.schedulers import make_pool, make_reservation, make_scheduler, make_settled

S = 1_000_000_000
A, B = "10.0.0.1:80", "10.0.0.2:80"
BEGIN = 1_000_000 * S


def config_of(**alerts: Any) -> Config:
    pool = {"name": "chat", "models": ["m"], "endpoints": [{"address": A}, {"address": B}]}
    return Config.model_validate({"gateway": {"auth": "none"}, "pools": [pool], "alerts": alerts})


class World:
    """A scheduler with a pool of two, and the part over it; time is the test's."""

    def __init__(self, **alerts: Any) -> None:
        spec = make_pool(A, B, permits=8, name="chat", strategy="steer")
        quota = limits(concurrent_requests=2)
        self.scheduler = make_scheduler(
            spec,
            instance="here",
            policy=Policy(accounts=Accounts(tenants={"acme": quota})),
            quotas=ExactBooks(),
        )
        self.now_ns = BEGIN
        self.part = AlertsPart(
            config_of(**alerts),
            self.scheduler,
            clock=lambda: self.now_ns,
            wall_ns=lambda: self.now_ns,
        )

    def ended(self, *, tenant: str = "acme", prompt: int = 100, end: End = End.OK) -> None:
        """A request ends now."""
        reservation = make_reservation(
            id=f"here-{self.now_ns}", tenant=tenant, pool="chat", address=A, stream=True
        )
        outcome = Outcome(
            reservation=reservation,
            final=True,
            end=end,
            duration_ns=S,
            ttft_ns=S // 10,
            prompt_tokens=prompt,
            output_tokens=10,
        )
        self.part.watch.settled(make_settled(outcome), now_ns=self.now_ns)

    def pass_s(self, seconds: float) -> None:
        """Time passes in steps."""
        for _ in range(int(seconds * 4)):
            self.now_ns += S // 4
            self.part.step(now_ns=self.now_ns)

    def fires(self) -> set[str]:
        return {a.rule.name for a in self.part.engine.active.values() if a.state is AlertState.FIRING}


def test_a_pool_without_a_ready_replica() -> None:
    """NoReadyReplica within seconds, ReplicasDown after its minute, and both are over when they come back."""
    world = World()
    world.pass_s(10)
    assert world.fires() == set()
    for endpoint in world.scheduler.fleet.pools["chat"].endpoints:
        endpoint.ready = False
    world.pass_s(7)
    assert world.fires() == {"NoReadyReplica"}
    world.pass_s(60)
    assert world.fires() == {"NoReadyReplica", "ReplicasDown"}
    for endpoint in world.scheduler.fleet.pools["chat"].endpoints:
        endpoint.ready = True
    world.pass_s(65)
    assert world.fires() == set()
    assert {each["labels"]["alertname"] for each in world.part.view()["recent"]} == {
        "NoReadyReplica",
        "ReplicasDown",
    }


def test_a_gpus_fault_and_silent_agents() -> None:
    """The causes of health that are the GPUs' count; silence counts of those that were heard of."""
    world = World()
    first, second = world.scheduler.fleet.pools["chat"].endpoints
    first.health.set("gpu xid 79", Cause(CauseKind.HARD, 0.0, "fell off the bus"))
    second.health.set("errors", Cause(CauseKind.SUSPICION, 0.5, ""))
    world.pass_s(2)
    assert world.fires() == {"GpuFault"}
    assert world.part.values.moment("gpu_faults", ("pool", "chat")) == 1.0
    assert world.part.values.moment("stale_share", ("pool", "chat")) is None
    first.reported_ns, first.stale = world.now_ns, True
    world.pass_s(40)
    assert world.fires() == {"GpuFault", "AgentsSilent"}


def test_a_quota_that_is_nearly_spent() -> None:
    """Of the tenant's most used limit."""
    world = World()
    world.ended()
    account = Account("acme", "", "", (("tenant", limits(concurrent_requests=2)),))
    for i in range(2):
        world.scheduler.quotas.reserve(account, f"r{i}", NOTHING, now_ns=world.now_ns, idle_capacity=False)
    world.pass_s(2)
    assert world.part.values.moment("quota_used", ("tenant", "acme")) == 1.0
    world.pass_s(62)
    assert world.fires() == {"QuotaNearlySpent"}
    assert world.part.values.moment("quota_used", ("tenant", "other")) is None


def test_a_tenant_out_of_its_pattern_is_named_with_what_is_odd() -> None:
    """Prompts ten times as long, after hours of the usual; the detail says what it usually is."""
    world = World(anomalies={"learn_h": 1.0})
    for minute in range(80):
        for _ in range(12):
            world.ended(prompt=100 if minute < 70 else 1_000)
            world.pass_s(5)
    assert world.fires() == {"TenantUnusual"}
    (shown,) = world.part.view()["firing"]
    assert shown["labels"]["tenant"] == "acme"
    assert shown["annotations"]["detail"].startswith("input_length 700 tokens, usually 100")
    assert world.part.firing()["TenantUnusual"] is True


def test_a_configuration_that_switches_off() -> None:
    """Nothing is heard, looked at or told; what fired is over."""
    world = World()
    for endpoint in world.scheduler.fleet.pools["chat"].endpoints:
        endpoint.ready = False
    world.pass_s(10)
    assert world.fires() == {"NoReadyReplica"}
    world.part.apply(config_of(enabled=False))
    assert world.fires() == set()
    assert world.part.observers == ()
    assert world.part.rules == ()
    world.pass_s(10)
    assert world.part.status()["on"] is False
    world.part.apply(config_of())
    world.pass_s(10)
    assert world.fires() == {"NoReadyReplica"}


def test_a_reload_goes_on_with_what_fires_and_what_waits() -> None:
    """The same rule is not told again, and a webhook of the same name keeps its queue."""
    hook = {"name": "pager", "url": "http://127.0.0.1:9/"}

    async def run() -> None:
        world = World(webhooks=[hook])
        for endpoint in world.scheduler.fleet.pools["chat"].endpoints:
            endpoint.ready = False
        world.pass_s(10)
        box = world.part._boxes["pager"]
        assert len(box.outbox) == 1
        world.part.apply(config_of(webhooks=[{**hook, "timeout_s": 1.0}]))
        world.pass_s(10)
        assert world.part._boxes["pager"] is box
        assert box.webhook.timeout_s == 1.0
        assert len(box.outbox) == 1
        await world.part.stop()

    asyncio.run(run())


def test_severities_and_ends_go_where_they_are_wanted() -> None:
    """A receiver of critical ones hears no warning; one that does not want ends hears of none."""
    hooks = [
        {"name": "all", "url": "http://127.0.0.1:9/", "severity_min": "info"},
        {"name": "critical", "url": "http://127.0.0.1:9/", "severity_min": "critical", "resolved": False},
    ]

    async def run() -> None:
        world = World(webhooks=hooks)
        first, second = world.scheduler.fleet.pools["chat"].endpoints
        first.health.set("gpu xid 79", Cause(CauseKind.HARD, 0.0, ""))
        first.ready = second.ready = False
        world.pass_s(10)
        first.health.set("gpu xid 79", None)
        first.ready = second.ready = True
        world.pass_s(70)
        counts = {name: len(box.outbox) for name, box in world.part._boxes.items()}
        assert counts == {"all": 4, "critical": 1}
        await world.part.stop()

    asyncio.run(run())


def test_the_command() -> None:
    """`{}` shows; a test without a webhook, or with an unknown one, is the caller's mistake."""
    world = World()
    world.pass_s(1)
    shown = msgspec.json.decode(world.part.order(b"{}"))
    assert shown["firing"] == []
    assert len(shown["rules"]) == len(world.part.rules)
    with pytest.raises(ValueError, match="no webhook is configured"):
        world.part.order(b'{"test": ""}')
    with pytest.raises(ValueError, match="no webhook 'pager'; there are: none is configured"):
        world.part.order(b'{"test": "pager"}')


def test_a_secret_that_is_missing_at_the_start_is_a_mistake_of_the_configuration(tmp_path: Path) -> None:
    """With the setting's path."""
    hook = {"name": "pager", "url": "http://x/", "secret_file": str(tmp_path / "none")}
    with pytest.raises(
        ConfigError, match=r"alerts\.webhooks\[0\]: webhook pager: secret_file .* No such file"
    ):
        World(webhooks=[hook])

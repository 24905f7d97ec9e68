"""What operators see of scaling, and what binds pools: from plans and looks to answers."""

from __future__ import annotations

import asyncio
import json
import re
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from extproc.admin.orders import CHANGING, LOOKING
from extproc.config.load import loads
from extproc.core.scaling.values import Band, Demand, LoadTime, Need, PlanTerm, PoolPlan, WorkSample
from extproc.observe.alerts.defaults import RULES
from extproc.service.advice import JUDGED_AT_ONCE, JUDGED_EVERY_S, LOOKED_AT, AdvicePart
from extproc.service.app import App
from extproc.service.scale_view import POINTS_ALL_MAX, POINTS_MAX, ScaleView, thinned

CONFIG = """
gateway: {auth: none}
pools:
  - {name: chat, models: [m], endpoints: [{address: '10.0.0.1:80'}], scaling: {max_replicas: 8}}
  - {name: code, models: [c], endpoints: [{address: '10.0.0.2:80'}], scaling: {max_replicas: 4}}
  - {name: still, models: [s], endpoints: [{address: '10.0.0.3:80'}]}
"""
S = 1_000_000_000


def plan(wanted: int, at_s: float, **more: Any) -> PoolPlan:
    given: dict[str, Any] = {
        "pool": "chat",
        "at_ns": round(at_s * S),
        "wanted": wanted,
        "ready": 2,
        "loading": 1,
        "draining": 0,
        "why": f"{wanted} bear 9/s in 80 s (ttft binds)",
        "now": Demand(requests_per_s=7.0, samples=(WorkSample("standard", 10, 0, 10),) * 50),
        "forecast": Band(ahead_s=80.0, low=5.0, median=7.5, high=9.0, method="ets"),
        "need": Need(replicas=wanted - 1, attainment=0.995, utilization=0.6, binding="ttft"),
        "need_high": Need(replicas=wanted, attainment=0.992, utilization=0.7, binding="ttft"),
        "load_time": LoadTime(p50_s=50.0, p90_s=60.0, measured=4),
        "horizon_s": 80.0,
        "cost_per_hour": 6.0,
        "terms": (PlanTerm(replicas=wanted, attainment=0.992, utilization=0.7, binding="ttft"),),
    }
    return PoolPlan(**{**given, **more})


class Stand:
    """A service that nobody started, with a clock of its own."""

    def __init__(self, config: str = CONFIG) -> None:
        self.now_s = 1_000.0
        self.app = App(loads(config))
        self.config = self.app.config
        self.advice = AdvicePart(self.config, self.app.scheduler, clock=self.clock)
        self.view = ScaleView(
            lambda: self.config,
            self.app.scaling,
            self.advice,
            clock=self.clock,
            wall_s=lambda: 1_790_000_000.0 + self.now_s,
        )

    def clock(self) -> int:
        return round(self.now_s * S)

    def ask(self, **order: Any) -> Any:
        return json.loads(asyncio.run(self.view.order(json.dumps(order).encode())))


def test_the_newest_plan_of_each_pool_is_told() -> None:
    """With its time on the wall's clock, without the requests that its demand holds; who has none waits."""
    stand = Stand()
    stand.app.scaling.publish(plan(3, 990.0))
    stand.app.scaling.publish(plan(4, 995.0, leaving=("10.0.0.1:80",)))
    found = stand.ask()
    (pool,) = found["pools"]
    assert (pool["pool"], pool["wanted"], pool["had"], pool["at"]) == ("chat", 4, 3, 1_790_000_995.0)
    assert pool["now"] == {"requests_per_s": 7.0}
    assert pool["leaving"] == ["10.0.0.1:80"]
    assert found["waiting"] == ["code"]
    assert stand.ask(pool="code") == {"pools": [], "waiting": ["code"]}


def test_history_is_thinned_evenly_with_the_newest() -> None:
    """At most as many points as asked for, within a bound."""
    stand = Stand()
    for i in range(500):
        stand.app.scaling.publish(plan(1 + i % 3, 500.0 + i))
    points = stand.ask(what="history", pool="chat", points=11)["pools"][0]["points"]
    assert len(points) == 11
    assert (points[0]["at"], points[-1]["at"]) == (1_790_000_500.0, 1_790_000_999.0)
    gaps = {round(b["at"] - a["at"]) for a, b in pairwise(points)}
    assert gaps <= {49, 50}
    assert thinned([plan(1, 1.0), plan(2, 2.0)], 1)[0].wanted == 2
    with pytest.raises(ValueError, match=f"1 to {POINTS_MAX}"):
        stand.ask(what="history", points=POINTS_MAX + 1)


def test_an_explanation_has_every_term() -> None:
    """Need, one fewer and one more, bounds of the file, and when the number last changed."""
    stand = Stand()
    stand.app.scaling.publish(plan(3, 900.0))
    stand.app.scaling.publish(plan(4, 905.0))
    stand.app.scaling.publish(plan(4, 910.0, floor=2, bound="step"))
    (found,) = stand.ask(what="explain", pool="chat")["pools"]
    assert found["terms"][0]["replicas"] == 4
    assert (found["before"], found["since"]) == (3, 1_790_000_905.0)
    assert found["bounds"]["max_replicas"] == 8
    assert found["floor"] == 2
    assert found["need_high"]["binding"] == "ttft"


def test_what_cannot_be_answered_says_what_there_is() -> None:
    """A pool that does not scale, a service without any, a body that is no order."""
    stand = Stand()
    with pytest.raises(ValueError, match="pool 'still' does not scale; there are chat, code"):
        stand.ask(pool="still")
    with pytest.raises(ValueError, match="no replica that was looked at yet; there is none"):
        stand.ask(what="advice", pool="chat")
    with pytest.raises(msgspec.ValidationError):
        stand.ask(what="everything")
    bare = Stand(re.sub(r", scaling: \{.*?\}", "", CONFIG))
    with pytest.raises(ValueError, match="no pool scales here"):
        bare.ask()
    assert bare.view.live() == {"pools": [], "pools_left_out": 0, "advice": []}


def test_what_binds_a_pool_is_watched() -> None:
    """A pool whose max_concurrent is full is bound by permits once it is judged, and since when is known."""
    stand = Stand()
    endpoint = stand.app.scheduler.fleet.endpoints[0]
    endpoint.announced = True
    endpoint.refresh()
    endpoint.permits = endpoint.max_concurrent
    assert stand.advice.bound() == {}
    for _ in range(int(JUDGED_EVERY_S * 4) * 3 + 1):
        stand.now_s += 0.25
        stand.advice.step(now_ns=stand.clock())
    stand.now_s += 60.0
    for _ in range(2):
        stand.advice.step(now_ns=stand.clock())
    since = stand.advice.bound()["chat", "permits"]
    assert since >= 60.0
    stand.now_s += 10.0
    assert stand.advice.bound()["chat", "permits"] == pytest.approx(since + 10.0)
    assert stand.advice.bound()["chat", "memory"] == 0.0
    (found,) = stand.ask(what="advice", pool="chat")["pools"]
    assert (found["bound"], found["use"]["permits_p99"]) == ("permits", 1.0)
    assert stand.advice.status()["chat"]["why"].startswith("max_concurrent was full")
    stand.advice.apply(loads(CONFIG.replace("name: chat", "name: other")))
    assert "chat" not in stand.advice.status()


def test_a_step_looks_at_a_bounded_number() -> None:
    """All endpoints have their turn, however many there are."""
    many = ", ".join(f"{{address: '10.1.{i // 250}.{i % 250 + 1}:80'}}" for i in range(3 * LOOKED_AT))
    stand = Stand(f"gateway: {{auth: none}}\npools: [{{name: chat, models: [m], endpoints: [{many}]}}]\n")
    for endpoint in stand.app.scheduler.fleet.endpoints:
        endpoint.announced = True
        endpoint.refresh()

    def looks() -> float:
        stand.now_s += JUDGED_EVERY_S
        stand.advice.step(now_ns=stand.clock())
        found: float = stand.advice.status()["chat"]["use"]["looks"]
        return found

    assert looks() == LOOKED_AT
    assert looks() == pytest.approx(2 * LOOKED_AT, rel=0.01)
    assert looks() == pytest.approx(3 * LOOKED_AT, rel=0.02)


def test_pools_are_judged_a_few_a_step() -> None:
    """However many there are: each has its turn, and is judged again only after a while."""
    count = 5 * JUDGED_AT_ONCE
    pools = "".join(
        f"  - {{name: p{i}, models: [m{i}], endpoints: [{{address: '10.1.0.{i + 1}:80'}}]}}\n"
        for i in range(count)
    )
    stand = Stand(f"gateway: {{auth: none}}\npools:\n{pools}")
    for endpoint in stand.app.scheduler.fleet.endpoints:
        endpoint.announced = True
        endpoint.refresh()
    seen = []
    for _ in range(5):
        stand.now_s += 0.25
        stand.advice.step(now_ns=stand.clock())
        seen.append(len(stand.advice.status()))
    assert seen == [JUDGED_AT_ONCE * turn for turn in (1, 2, 3, 4, 5)]
    looks = stand.advice.status()["p0"]["use"]["looks"]
    stand.advice.step(now_ns=stand.clock())
    assert stand.advice.status()["p0"]["use"]["looks"] == looks


def test_the_order_is_an_operators_and_looks_alone() -> None:
    """It stands in the table of commands, and the admin port passes it on with scope read."""
    stand = Stand()
    assert "Scaling" in stand.app.rpc.commands
    assert "Scaling" in LOOKING
    assert "Scaling" not in CHANGING


def test_a_pool_that_stays_short_of_memory_is_an_alert() -> None:
    """The rule's signal and its metric say for how long; the rule waits for an hour of it."""
    stand = Stand()
    app = stand.app
    endpoint = app.scheduler.fleet.endpoints[0]
    endpoint.announced = True
    endpoint.kv_capacity_tokens = 1_000
    endpoint.load.reserved_tokens = 990
    endpoint.refresh()
    began_ns = app.clock() - 1_900 * S
    for i in range(400):
        app.advising.step(now_ns=began_ns + i * S // 4)
    values = app.alerting.values
    values.look(now_ns=app.clock())
    found = values.moment("memory_bound_s", ("pool", "chat"))
    assert found is not None
    assert found == pytest.approx(1_800.0, abs=60.0)
    assert values.moment("idle_s", ("pool", "chat")) == 0.0
    rule = next(each for each in RULES if each.name == "PoolShortOfMemory")
    condition = rule.when[0][0]
    assert condition.signal == "memory_bound_s"
    assert condition.above is not None
    assert found < condition.above <= 7_200.0
    text = asyncio.run(app.measuring.exposition())[0].decode()
    assert 'steersman_pool_bound_seconds{pool="chat",resource="memory"} 18' in text
    assert 'steersman_pool_bound_seconds{pool="chat",resource="idle"} 0' in text


def test_a_long_past_of_many_pools_is_bounded_and_lets_others_go_on() -> None:
    """Points of all pools together are bounded, and the loop turns between two pools."""
    pools = "".join(
        f"  - {{name: p{i}, models: [m{i}], endpoints: [{{address: '10.1.0.{i + 1}:80'}}], "
        "scaling: {max_replicas: 8}}\n"
        for i in range(40)
    )
    stand = Stand(f"gateway: {{auth: none}}\npools:\n{pools}")
    for i in range(40):
        for at in range(600):
            stand.app.scaling.publish(plan(2, 100.0 + at, pool=f"p{i}"))

    async def main() -> tuple[Any, int]:
        turns, over = 0, False

        async def others() -> None:
            nonlocal turns
            while not over:
                turns += 1
                await asyncio.sleep(0)

        beside = asyncio.create_task(others())
        found = json.loads(await stand.view.view(1_000))
        over = True
        await beside
        return found, turns

    found, turns = asyncio.run(main())
    assert len(found["pools"]) == 40
    assert sum(len(pool["points"]) for pool in found["pools"]) == POINTS_ALL_MAX
    assert turns >= 40

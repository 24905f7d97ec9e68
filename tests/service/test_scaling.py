"""The scaling part: whose plans are kept, and who hears of them."""

from typing import Any

from extproc.config.model import Config
from extproc.core.scaling.values import PoolPlan
from extproc.service.app import App

SCALED = {"max_replicas": 4}


def config(scaling: dict[str, Any] | None, **more: Any) -> Config:
    pool: dict[str, Any] = {"name": "llama", "models": ["llama"], "endpoints": [{"address": "127.0.0.1:9"}]}
    if scaling is not None:
        pool["scaling"] = scaling
    return Config.model_validate({"pools": [pool], **more})


def plan(wanted: int, pool: str = "llama") -> PoolPlan:
    return PoolPlan(pool=pool, at_ns=wanted, wanted=wanted, ready=1, loading=0, draining=0, why="because")


def test_a_service_without_scaling_pools_listens_to_no_request() -> None:
    """Who does not scale pays nothing: the part is no observer until a pool has `scaling`."""
    app = App(config(None))
    assert app.scaling.observers == ()
    app.scaling.apply(config(SCALED))
    assert app.scaling.observers


def test_plans_reach_every_listener_and_are_kept() -> None:
    """A listener that fails is counted, and the others hear of the plan all the same."""
    app = App(config(SCALED))
    heard: list[PoolPlan] = []

    def fails(_plan: PoolPlan) -> None:
        raise OSError("gone")

    app.scaling.listeners += [fails, heard.append]
    app.scaling.publish(plan(2))
    app.scaling.publish(plan(3))
    assert [each.wanted for each in heard] == [2, 3]
    assert app.scaling.plans["llama"].wanted == 3
    assert [each.wanted for each in app.scaling.history("llama")] == [2, 3]
    assert app.scaling.status()["llama"]["wanted"] == 3
    assert app.scheduler.counts["exception.telling of a plan"] == 2


def test_a_pool_that_scales_no_more_has_no_plan() -> None:
    """A reload that takes `scaling` away takes its plans along."""
    app = App(config(SCALED))
    app.scaling.publish(plan(2))
    app.scaling.apply(config(None))
    assert app.scaling.plans == {}
    assert app.scaling.history("llama") == []

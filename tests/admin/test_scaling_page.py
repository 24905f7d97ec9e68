"""The pane of scaling: the API's answer, the live events, and the page in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from extproc.core.scaling.values import Band, Demand, LoadTime, PoolPlan
from tests.admin.browsing import browsed, fits_a_phone, needs_chromium, pictured
from tests.admin.test_openapi import valid

Stand = Callable[..., None]
CONFIG = """
gateway: {auth: none}
pools:
  - {name: chat, models: [m], endpoints: [{address: "10.0.0.1:80"}], scaling: {max_replicas: 8}}
"""


def plan(port: Any, wanted: int, *, ago_s: float = 0.0, why: str = "because") -> PoolPlan:
    return PoolPlan(
        pool="chat",
        at_ns=port.app.clock() - round(ago_s * 1e9),
        wanted=wanted,
        ready=2,
        loading=1,
        draining=0,
        why=why,
        bound="step",
        now=Demand(requests_per_s=7.5),
        forecast=Band(ahead_s=80.0, low=5.0, median=8.0, high=11.0, method="ets"),
        load_time=LoadTime(p50_s=50.0, p90_s=60.0),
        horizon_s=80.0,
        cost_per_hour=6.5,
    )


def test_the_api_tells_pools_with_their_past(stand: Stand) -> None:
    """By its schema; as many points as asked for; no number is a mistake of the caller's."""

    async def body(port: Any) -> None:
        status, found = await port.get("api/v1/scaling")
        assert (status, found["pools"]) == (200, [])
        for i in range(20):
            port.app.scaling.publish(plan(port, 1 + i, ago_s=100.0 - i))
        status, found = await port.get("api/v1/scaling?points=5")
        assert status == 200
        valid(found, {"$ref": "#/components/schemas/Scaling"})
        (pool,) = found["pools"]
        assert [point["wanted"] for point in pool["points"]] == [1, 6, 11, 15, 20]
        assert (pool["wanted"], pool["had"], pool["bound"]) == (20, 3, "step")
        assert (await port.get("api/v1/scaling?points=many"))[0] == 400

    stand(body, config=CONFIG)


def test_live_events_tell_of_a_new_plan(stand: Stand) -> None:
    """The snapshot has the newest of each pool, and an event comes with the next; no past is sent along."""

    async def body(port: Any) -> None:
        port.app.scaling.publish(plan(port, 3))
        async with port.events() as events:
            _, name, data = await anext(events)
            assert name == "snapshot"
            assert [pool["wanted"] for pool in data["scaling"]["pools"]] == [3]
            assert "points" not in data["scaling"]["pools"][0]
            port.app.scaling.publish(plan(port, 4))
            while name != "scaling" or data["pools"][0]["wanted"] != 4:
                _, name, data = await anext(events)
            assert data["pools"][0]["point"]["wanted"] == 4

    stand(body, config=CONFIG)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_page_draws_it(stand: Stand) -> None:
    """In a browser: the pane comes with the first plan, its words and lines follow, and no text is markup."""
    needs_chromium()

    async def body(port: Any) -> None:
        async with browsed(port.url) as page:
            await page.wait_for_selector("body[data-connection=live]")
            assert not await page.locator("#scaling").is_visible()
            for i in range(30):
                port.app.scaling.publish(plan(port, 2 + i // 10, ago_s=300.0 - 10 * i))
            await page.wait_for_selector("#scaling article[data-pool=chat]")
            port.app.scaling.publish(plan(port, 6, why="<b>6</b> bear 11/s"))
            await page.wait_for_selector("#scaling :text('6 replicas wanted: 2 ready, 1 loading')")
            text = await page.locator("#scaling").inner_text()
            assert "<b>6</b> bear 11/s" in text
            assert "7.5 requests/s now, 8 [5, 11] in 1 min 20 s (ets)" in text
            assert "kept by one step at a time" in text
            assert "6.5 an hour" in text
            await page.reload()
            await page.locator("#scaling").scroll_into_view_if_needed()
            await page.wait_for_selector("#scaling .plot .main-svg", timeout=60_000)
            # The other charts draw with the same library.
            await page.wait_for_function("() => document.querySelectorAll('#plots .main-svg').length >= 4")
            arrivals = "document.querySelector('#scaling .plot').data?.find((t) => t.name === 'arrivals')"
            await page.wait_for_function(f"() => {arrivals}?.x.length >= 31")
            label = await page.locator("#scaling .plot").nth(1).get_attribute("aria-label")
            assert label is not None
            assert "6 wanted, 2 ready, 1 loading" in label
            await fits_a_phone(page)
            await pictured(page, "scaling")

    stand(body, config=CONFIG)

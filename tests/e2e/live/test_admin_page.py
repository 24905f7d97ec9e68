"""The page in a real browser, over a real demo: live, with the keyboard alone, on a phone, in the dark.

In the order of the file. Screenshots go to the folder that STEERSMAN_SCREENSHOTS names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live.live_demo import LiveDemo

#: By conftest.py: also where the order of tests is random.
IN_ORDER = True
pytestmark = [pytest.mark.envoy, pytest.mark.slow, pytest.mark.timeout(400)]
CHROMIUM = "/usr/bin/chromium"
#: What the demo has to show in each pane: classes, a quota that bites, an experiment, prices apart.
PANES = {
    "#pools": "tiny-pro",
    "#tenants-table": "premium",
    "#experiments-body": "least_work",
    "#decisions-list": "batch-jobs",
}
WIDE, NARROW, PHONE = (1440, 900), (390, 844), (360, 740)
#: The charts' library is most of what opening a page costs: where they are not the subject it is empty.
LIBRARY = "**/plotly.min.js"
#: Text against its ground, by WCAG 2.2's formula, for every visible text of the page.
CONTRAST = """() => {
  const lum = (c) => { const f = c.map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2]; };
  const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const ground = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] === 1) return c; } return [255, 255, 255]; };
  const poor = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || e.closest("svg, script, noscript, .hidden, .skip") || !e.checkVisibility()) continue;
    const [a, b] = [lum(rgb(getComputedStyle(e).color)), lum(ground(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push(`${walk.currentNode.data.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return poor;
}"""  # noqa: E501 (a program of another language)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if shutil.which(CHROMIUM) is None:
        pytest.skip("no chromium here; apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # No sandbox: CI runs as root, in a container of its own.
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield chromium
        finally:
            chromium.close()


class Seen:
    """A page, and everything that it complained about."""

    def __init__(
        self, browser: Any, size: tuple[int, int] = WIDE, scheme: str = "light", **more: Any
    ) -> None:
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, **more
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.wrong: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("requestfailed", self._failed)
        self.page.on("response", self._answered)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(f"{message.type}: {message.text}")

    def _failed(self, request: Any) -> None:
        # The live events end when the page does; nothing else may.
        if not request.url.endswith("/events"):
            self.wrong.append(f"failed: {request.url}")

    def _answered(self, answer: Any) -> None:
        self.hosts.add(answer.url.split("/")[2])
        if answer.status >= 400:
            self.wrong.append(f"{answer.status}: {answer.url}")

    def open(self, url: str) -> Any:
        self.page.goto(url)
        self.page.wait_for_selector("#connection[data-state=live]")
        self.page.wait_for_selector(".tile")
        return self.page

    def without_charts(self) -> None:
        """For a page whose subject they are not."""
        self.context.route(LIBRARY, lambda route: route.fulfill(body="", content_type="text/javascript"))

    def until(self, condition: str, argument: Any = None) -> None:
        """Wait for a function to be true; looked at now and then, as a look at each frame draws each."""
        self.page.wait_for_function(condition, arg=argument, polling=100, timeout=60_000)

    def look(self, size: tuple[int, int] = WIDE, scheme: str = "light") -> Any:
        """The page on a screen of this size and scheme."""
        self.page.set_viewport_size({"width": size[0], "height": size[1]})
        self.page.emulate_media(color_scheme=scheme)
        self.page.keyboard.press("Escape")
        return self.page

    def shoot(self, name: str) -> None:
        if folder := os.environ.get("STEERSMAN_SCREENSHOTS"):
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


@pytest.fixture
def seen(browser: Any) -> Iterator[Any]:
    """Opens pages; each must have had nothing to complain about."""
    pages: list[Seen] = []

    def make(*arguments: Any) -> Seen:
        pages.append(Seen(browser, *arguments))
        return pages[-1]

    yield make
    for each in pages:
        each.context.close()
    assert [wrong for each in pages for wrong in each.wrong] == []


@pytest.fixture(scope="module")
def opened(live: LiveDemo, browser: Any) -> Iterator[Seen]:
    """A page that stays open: opening one costs seconds, most of them the charts' library."""
    looking = Seen(browser)
    looking.open(live.url)
    yield looking
    looking.context.close()


@pytest.fixture
def looking(opened: Seen) -> Iterator[Seen]:
    """It again, wide and light, no dialog open; nothing may be wrong with it here either."""
    opened.look()
    yield opened
    assert opened.wrong == []


@pytest.fixture(scope="module")
def stranger(live: LiveDemo, browser: Any) -> Iterator[Seen]:
    """A page of somebody without a token."""
    nobody = Seen(browser)
    nobody.without_charts()
    nobody.open(live.url.partition("#")[0])
    yield nobody
    nobody.context.close()


@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        pytest.param(WIDE, "light", id="wide-light"),
        pytest.param(WIDE, "dark", id="wide-dark", marks=pytest.mark.soak),
        pytest.param(NARROW, "light", id="narrow-light", marks=pytest.mark.soak),
        pytest.param(NARROW, "dark", id="narrow-dark", marks=pytest.mark.soak),
        pytest.param(PHONE, "light", id="phone-light", marks=pytest.mark.soak),
        pytest.param(PHONE, "dark", id="phone-dark"),
    ],
)
def test_it_is_whole_and_quiet(live: LiveDemo, looking: Seen, size: tuple[int, int], scheme: str) -> None:
    """All its parts; no error, no failed request, no stranger, no sideways scroll, no pale text."""
    page = looking.look(size, scheme)
    page.wait_for_selector("#decisions-list li")
    page.locator("#charts").scroll_into_view_if_needed()
    page.wait_for_selector(".plot .main-svg")
    assert page.locator(".plot .main-svg").count() >= 4
    # Four stay; the pool that scales has up to four more.
    assert 4 <= page.locator(".tile").count() <= 8
    assert page.locator("#tenants-table tbody tr").count() == 3
    page.wait_for_selector("#alerts-body:has-text('TrialOverItsQuota')", timeout=240_000)
    for pane, shown in PANES.items():
        assert shown in (page.locator(pane).text_content() or ""), pane  # a narrow screen hides columns
    assert "token" not in page.url
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert page.evaluate(CONTRAST) == []
    assert looking.hosts == {live.api.split("/")[2]}
    page.evaluate("window.scrollTo(0, 0)")
    looking.shoot(f"{size[0]}-{scheme}")


def test_numbers_move(looking: Seen) -> None:
    """The stream goes on: other decisions a moment later."""
    page = looking.page
    first = page.locator("#decisions-list li").first.inner_text()
    looking.until("first => document.querySelector('#decisions-list li').innerText !== first", first)


def test_the_keyboard_is_enough(live: LiveDemo, looking: Seen) -> None:
    """Skip link, a tile's facts and back, the stream paused, the theme: Tab, Enter and Escape alone."""
    page = looking.page
    page.evaluate(
        "document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex')"
    )
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert "tile" in page.evaluate("document.activeElement.className")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    address = page.evaluate("document.activeElement.dataset.address")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    assert page.locator("#dialog-h").inner_text() == address
    assert "undefined" not in page.locator("dialog").inner_text()
    assert "[object" not in page.locator("dialog").inner_text()
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog[open]", state="detached")
    assert page.evaluate("document.activeElement.dataset.address") == address
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "decisions-pause":
            break
    page.keyboard.press("Space")
    assert page.locator("#decisions-pause").get_attribute("aria-pressed") == "true"
    before = page.locator("#decisions-list").inner_text()
    looking.until("() => /paused, [1-9]/.test(document.getElementById('decisions-note').innerText)")
    assert page.locator("#decisions-list").inner_text() == before
    page.keyboard.press("Space")
    page.locator("#theme").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    again = looking.context.new_page()
    again.goto(live.url)
    assert again.evaluate("document.documentElement.dataset.theme") == "dark"
    again.close()
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "auto"


def test_why_a_request_went_there(looking: Seen) -> None:
    """A decision's endpoints with scores and terms."""
    page = looking.page
    page.locator("#decisions-pause").click()
    page.locator("#decisions-list button").first.click()
    page.wait_for_selector("dialog[open] table")
    assert "chosen #1" in page.locator("dialog").inner_text()
    page.keyboard.press("Escape")
    page.locator("#decisions-pause").click()


def test_an_order_is_asked_about_and_shows(looking: Seen) -> None:
    """Drain and back, each confirmed."""
    page = looking.page
    for word, state in (("Drain", "draining"), ("Undrain", "ready")):
        page.locator(".tile").first.click()
        page.get_by_role("button", name=f"{word}…").click()
        assert page.locator(".tile").first.get_attribute("data-state") != state
        page.get_by_role("button", name=word, exact=True).click()
        page.wait_for_selector(f"#pools li:first-child .tile[data-state={state}]", timeout=60_000)


def test_orders_need_a_token(stranger: Seen) -> None:
    """Without one there are no such buttons."""
    page = stranger.page
    page.locator(".tile").first.click()
    page.wait_for_selector("dialog[open]")
    assert page.get_by_role("button", name="Drain…").count() == 0
    assert "need a token" in page.locator("dialog").inner_text()
    page.keyboard.press("Escape")
    assert stranger.wrong == []


def test_a_wrong_token_is_said_and_forgotten(live: LiveDemo, stranger: Seen) -> None:
    """The page goes on without it, and takes the right one."""
    page = stranger.page
    page.locator("#access").click()
    page.fill("dialog input", "wrong")
    page.get_by_role("button", name="Use this token").click()
    page.wait_for_selector("dialog [role=alert]:not(:empty)")
    assert "not known" in page.locator("dialog [role=alert]").inner_text()
    page.fill("dialog input", live.token)
    page.get_by_role("button", name="Use this token").click()
    stranger.until("() => document.getElementById('access').innerText === 'Access: write'")
    # The browser itself notes the refused request; nothing else.
    assert all("401" in wrong for wrong in stranger.wrong), stranger.wrong


#: Notes when the first tile says that something is wrong, in unix milliseconds.
SHOWN = """() => {
  const look = () => {
    // A busy machine may degrade another tile for a while: this fault's own words are waited for.
    const all = [...document.querySelectorAll('.tile[data-state=down], .tile[data-state=degraded]')];
    const shown = all.some(tile => /lost/i.test(tile.innerText));
    if (shown) window.shownAt = performance.timeOrigin + performance.now();
    else setTimeout(look, 20);
  };
  look();
}"""


def test_a_fault_shows(live: LiveDemo, looking: Seen) -> None:
    """A card falls off the bus (XID 79): from the moment that its driver shows it to the tile's words."""
    page = looking.page
    # Not for every tile to be ready: a busy machine degrades one now and then.
    looking.until(
        "() => ![...document.querySelectorAll('.tile')].some((tile) => /lost/i.test(tile.innerText))"
    )
    page.evaluate(SHOWN)
    files = [live.run_dir / "node-a.faults.json", live.run_dir / "node-h.faults.json"]
    before_s = time.time()
    live.fault("xid=79", "1")
    looking.until("() => window.shownAt")
    broken_ms = max(1000 * file.stat().st_mtime for file in files if file.exists())
    assert broken_ms > 1000 * before_s
    took_ms = page.evaluate("window.shownAt") - broken_ms
    print(f"shown {took_ms:.0f} ms after the fault")
    tile = page.locator(".tile[data-state=down], .tile[data-state=degraded]").filter(has_text="lost").first
    assert "because" in (tile.get_attribute("aria-label") or "")
    assert took_ms > 0


#: The colours of the banner and of the first card where alerts of these severities fire.
LOUD = """async (given) => {
  const alerts = await import(new URL('static/js/alerts.js', location.href));
  const colours = {};
  for (const severities of given) {
    const firing = severities.map((severity) => ({ labels: { alertname: 'A', severity }, annotations: {}, startsAt: '2026-01-01T00:00:00Z' }));
    alerts.take({ firing, recent: [] });
    const card = document.querySelector('#alerts-body .card');
    colours[severities.join()] = [document.getElementById('banner'), card].map((each) => getComputedStyle(each).backgroundColor);
  }
  return colours;
}"""  # noqa: E501 (a program of another language)


def test_an_alert_is_as_loud_as_it_is_grave(looking: Seen) -> None:
    """What is for information alone alarms nobody; a severity of the operator's own is grave."""
    given = [["info"], ["warning"], ["critical"], ["info", "warning"], ["warning", "page-me"]]
    colours = looking.page.evaluate(LOUD, given)
    assert len({colours[each][0] for each in ("info", "warning", "critical")}) == 3
    assert len({colours[each][1] for each in ("info", "warning", "critical")}) == 3
    assert colours["info,warning"][0] == colours["warning"][0]
    assert colours["warning,page-me"][0] == colours["critical"][0]


def test_a_hostile_name_is_text(live: LiveDemo, seen: Any) -> None:
    """Whatever a name, a reason or a cause holds is shown as it is written, and runs nothing."""
    hostile = '<img src=x onerror="window.broken=1"><script>window.broken=1</script>&amp;'
    looking = seen()
    looking.without_charts()
    page = looking.open(live.url)
    shown = page.evaluate(
        """async (name) => {
          const [fleet, tenants, decisions, alerts, experiments] = await Promise.all(
            ['fleet', 'tenants', 'decisions', 'alerts', 'experiments'].map((each) => import(new URL(`static/js/${each}.js`, location.href))));
          const tile = { address: name, pool: name, zone: name, node: name, state: 'down', stale: false, health: 0.2, detail: name,
            causes: [{ name, kind: name, detail: name }], in_flight: 1, peers_in_flight: 0, max_concurrent: 4, waiting: 0, running: 0, kv: 0.5,
            gpu: { name, count: 1, utilization: 1, memory: 0.1, temperature_c: 1, power_w: 1, lost: false, xids: [] }, tokens_per_s: 1, ok: 1, failed: 0 };
          const pools = [{ name, models: [name], strategy: name, endpoints: 1, ready: 0 }];
          fleet.reset([tile]); fleet.change({ pools, endpoints: [tile] }); fleet.draw();
          const limit = { scope: name, limit: name, allowed: 1, used: 1, borrowed: 0, throttled: 1 };
          const tenant = { name, class: name, limits: [limit], decided: 1, rejected: 0, in_flight: 0, held: 0, failed: 0, refused: 0, tokens_per_s: 0, ttft_p50_ms: 1, ttft_p99_ms: 1 };
          tenants.reset([tenant]); tenants.change({ tenants: [tenant] }); tenants.draw();
          decisions.add({ decisions: [{ number: 1e9, at: 1, kind: 'refused', id: name, tenant: name, class: name, model: name, pool: name, endpoint: name, status: 429, code: name, reason: name, arm: name }], left_out: 0 });
          alerts.take({ firing: [{ labels: { alertname: name, severity: name, tenant: name }, annotations: { summary: name }, startsAt: name }], recent: [] });
          experiments.take([{ name, pools: [name], split: name, state: name, ended: name, arms: [], verdict: [name], shadow: null }]);
          return ['pools', 'tenants-table', 'decisions-list', 'alerts-body', 'banner', 'experiments-body'].map((id) => document.getElementById(id).textContent);
        }""",  # noqa: E501 (a program of another language)
        hostile,
    )
    assert [hostile in text for text in shown] == [True] * 6
    assert page.locator("main img").count() == 0
    assert page.evaluate("window.broken") is None
    looking.shoot("hostile")


def test_a_lost_connection_is_said_with_its_age(live: LiveDemo, looking: Seen) -> None:
    """A service that hangs: how old the figures are; when it goes on, the page is live again by itself."""
    page = looking.page
    page.wait_for_selector(".plot .main-svg")
    (announced,) = (live.run_dir.parent / "steersman-demo").glob("*.json")
    service = json.loads(announced.read_text(encoding="utf-8"))["service_pid"]
    os.kill(service, signal.SIGSTOP)
    try:
        page.wait_for_selector("#connection[data-state=lost]", timeout=20_000)
        said = page.locator("#connection").inner_text()
        assert re.search(r"connection lost, data is \d+ s old", said), said
        looking.shoot("lost")
    finally:
        os.kill(service, signal.SIGCONT)
    page.wait_for_selector("#connection[data-state=live]", timeout=30_000)

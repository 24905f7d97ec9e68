"""The pane of the cache: the live events, a purge with a token that may, and the page in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from extproc.cache.semantic.entries import SemanticEntry
from extproc.config.cache import TenantCache
from extproc.core.cachekeys import AskAnswer, CachedAnswer
from extproc.core.reading import parse
from extproc.core.request import Request
from extproc.core.routes import find_route
from extproc.core.tenant import Tenant
from extproc.extras import missing
from tests.admin.browsing import browsed, fits_a_phone, needs_chromium, pictured
from tests.stand.cached import CHAT, answer_of, body_of
from tests.stand.redis_answers import answer as answer_at

Stand = Callable[..., None]
CONFIG = """
gateway: {auth: none}
cache: {}
pools:
  - {name: chat, models: [m], endpoints: [{address: "10.0.0.1:80"}], cache: {mode: 'on'}}
"""


def asks(port: Any, text: str, tenant: str = "anonymous") -> bool:
    """A request of a tenant, answered by its engine where it is not cached; whether it was a hit."""
    cache, route, body = port.app.caching.cache, find_route("POST", CHAT), body_of(text)
    assert route is not None
    request = parse(route, body)
    assert isinstance(request, Request)
    found = cache.look(request, body, Tenant(name=tenant), model="m", pool="chat", directive=None)
    assert not isinstance(found, AskAnswer)
    if isinstance(found, CachedAnswer):
        return True
    name = f"r{sum(cache.looked.values())}"
    cache.flagged(name, tenant, found)
    cache.fill(name, answer_of())
    cache.settled(name, gpu_ms=1_500.0)
    return False


def test_live_events_tell_of_the_cache(stand: Stand) -> None:
    """The snapshot has its figures, and an event comes when they change; without a cache they are empty."""

    async def body(port: Any) -> None:
        asks(port, "a")
        async with port.events() as events:
            _, name, data = await anext(events)
            assert name == "snapshot"
            assert (data["cache"]["answers"], data["cache"]["store"]) == (1, "memory")
            assert asks(port, "a")
            while name != "cache":
                _, name, data = await anext(events)
            assert data["requests"] == {"anonymous": {"hit": 1, "miss": 1}}
            assert data["saved"]["anonymous"]["gpu_ms"] == 1_500.0

    stand(body, config=CONFIG)

    async def without(port: Any) -> None:
        async with port.events() as events:
            assert (await anext(events))[2]["cache"] == {}

    stand(without, config=CONFIG.replace("cache: {}\n", ""))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_page_shows_and_purges(stand: Stand) -> None:
    """In a browser: hits, misses and what they saved by tenant; a purge of one, and of all."""
    needs_chromium()

    async def body(port: Any) -> None:
        # A name that no file could have.
        port.app.caching._tenants["<b>b</b>"] = TenantCache()
        for name in ("anonymous", "<b>b</b>"):
            for text in ("one", "two", "one"):
                asks(port, text, name)
        async with browsed(port.url) as page:
            await page.wait_for_selector("#cache tr[data-tenant=anonymous]")
            text = await page.locator("#cache tr[data-tenant=anonymous]").inner_text()
            assert text.split("\t")[:4] == ["anonymous", "1", "33%", "1 hit, 2 miss"]
            assert "<b>b</b>" in await page.locator("#cache-table").inner_text()
            assert "4 answers" in await page.locator("#cache-note").inner_text()
            await page.click("#cache tr[data-tenant=anonymous] button")
            await page.click("#dialog button[type=submit]")
            await page.wait_for_selector("#cache-note:has-text('2 answers')")
            assert set(port.app.caching.store.shelves) == {"tenant:<b>b</b>"}
            await page.click("#cache-purge")
            await page.click("#dialog button[type=submit]")
            await page.wait_for_selector("#cache-note:has-text('0 answers')")
            await fits_a_phone(page)
            await pictured(page, "cache")

    stand(body, ", auth: none", config=CONFIG)


WORDED = """
gateway: {auth: none}
cache: {}
tenants:
  - name: acme
    keys: [{sha256: "0000000000000000000000000000000000000000000000000000000000000001"}]
    cache: {semantic: {}}
pools:
  - {name: chat, models: [m], endpoints: [{address: "10.0.0.1:80"}], cache: {mode: 'on'}}
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_page_shows_questions_in_other_words(stand: Stand) -> None:
    """By tenant what is kept, what was checked and how many were wrong, who is off; what came of them."""
    pytest.importorskip("numpy")
    if missing("semantic"):
        pytest.skip("the extra `semantic` is not installed")
    needs_chromium()

    async def body(port: Any) -> None:
        questions = port.app.semantic.questions
        questions.looked["acme", "unsure"] = 3
        questions.refused["numbers"] = 2
        for name in ("acme", "<i>b</i>"):
            answer = answer_at(now_ns=port.app.semantic._clock(), tenant=name)
            entry = SemanticEntry(f"tenant:{name}", b"f", b"k" * 32, "Why?", answer, "So.", b"v" * 12)
            questions.take(entry)
        questions.scopes["tenant:acme"].window.extend([True] * 18 + [False] * 2)
        questions.scopes["tenant:acme"].off = True
        async with browsed(port.url) as page:
            await page.wait_for_selector("#cache-words-table tr[data-scope='tenant:acme']")
            row = await page.locator("#cache-words-table tr[data-scope='tenant:acme']").inner_text()
            assert row.split("\t")[:4] == ["tenant:acme", "1", "20", "2"]
            assert "off" in row
            assert "<i>b</i>" in await page.locator("#cache-words-table").inner_text()
            note = await page.locator("#cache-words-note").inner_text()
            assert note.startswith("2 questions, ")
            assert "in memory" in note
            came = await page.locator("#cache-words-came").inner_text()
            assert "asked: 3 unsure" in came
            assert "refused by guards: 2 numbers" in came
            await fits_a_phone(page)
            await pictured(page, "cache-words")

    stand(body, config=WORDED)

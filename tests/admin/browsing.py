"""The page in a real browser, for what only a browser shows."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

CHROMIUM = "/usr/bin/chromium"
WIDE, NARROW = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


def needs_chromium() -> None:
    """Without it a test skips with the reason, and in CI fails (tests/stand/wanting.py)."""
    if shutil.which(CHROMIUM) is None:
        pytest.skip("no chromium here; apt-get install chromium")


@asynccontextmanager
async def browsed(url: str) -> AsyncIterator[Any]:
    """A wide page that has opened an address; in the end it must have had no error, script's or console's."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        # No sandbox: CI runs as root, in a container of its own.
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = await chromium.new_page(viewport=WIDE)
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        await page.goto(url)
        yield page
        assert wrong == []
        await chromium.close()


async def fits_a_phone(page: Any) -> None:
    """Nothing stands out at the side."""
    await page.set_viewport_size(NARROW)
    await page.wait_for_function("() => document.documentElement.scrollWidth <= 390")


async def pictured(page: Any, pane: str) -> None:
    """A picture of a pane, where somebody wants one (STEERSMAN_SCREENSHOTS names the folder)."""
    if folder := os.environ.get("STEERSMAN_SCREENSHOTS"):
        await page.set_viewport_size({"width": 1440, "height": 1200})
        await asyncio.sleep(1.0)  # charts are drawn anew
        await page.locator(f"#{pane}").screenshot(path=f"{folder}/{pane}.png")

"""A replica's LoRA adapters on the page, in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.admin.browsing import browsed, needs_chromium

CONFIG = """
gateway: {auth: none}
pools:
  - name: chat
    models: [m, law, code]
    endpoints: [{address: "10.0.0.1:80"}, {address: "10.0.0.2:80"}]
    adapters: {names: [law, code], loaded_max: 2}
  - {name: plain, models: [n], endpoints: [{address: "10.0.0.3:80"}]}
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_page_says_which_adapters_a_replica_has(stand: Callable[..., None]) -> None:
    """In its dialog, with the loads; of a pool without adapters nothing is said."""
    needs_chromium()

    async def body(port: Any) -> None:
        loaded = port.app.scheduler.fleet.endpoint("chat", "10.0.0.1:80").adapters
        for name in ("law", "code"):
            loaded.begins(name, now_ns=0)
        async with browsed(port.url) as page:
            for address, told in (
                ("10.0.0.1:80", "law, code (2 loads)"),
                ("10.0.0.2:80", "none loaded (0 loads)"),
                ("10.0.0.3:80", ""),
            ):
                await page.click(f"text={address} >> nth=0")
                await page.wait_for_selector("dialog[open] >> text=prefix cache")
                text = await page.locator("dialog[open]").inner_text()
                assert ("LoRA adapters" in text, told in text) == (bool(told), True)
                await page.keyboard.press("Escape")

    stand(body, ", auth: none", config=CONFIG)

"""An engine that Steersman does not know by itself, as a package of somebody else's: docs/plugins.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from steersman_agent.engines.base import EngineAdapter, mapping
from steersman_agent.engines.exposition import WantedSamples, count, known
from steersman_agent.figures import About, Scrape
from steersman_agent.state import Symptom

_WANTED = WantedSamples("mlx_waiting", "mlx_running", "mlx_tokens_total")


class Mlx(EngineAdapter):
    """Answers `/mlx` with what it is."""

    name = "mlx"
    traits: ClassVar[Mapping[str, Any]] = {
        "title": "MLX",
        "queues": False,
        "obeys": "max_tokens",
        "limit_flag": "--decode-concurrency",
    }
    about_paths = telling_paths = ("/mlx",)

    def recognises(self, pages: Mapping[str, Any]) -> bool:
        """Nobody else has the page."""
        return "mlx_version" in mapping(pages.get("/mlx"))

    def about(self, pages: Mapping[str, Any]) -> About:
        """Its page."""
        page = mapping(pages.get("/mlx"))
        return About(models=(str(page.get("model")),), max_concurrent=count(page.get("slots")))

    def scrape(self, page: bytes) -> Scrape:
        """Read the page."""
        found = _WANTED.read(page)
        running, tokens = found.total("mlx_running"), found.total("mlx_tokens_total")
        return Scrape(
            waiting=count(found.total("mlx_waiting")), running=count(running), progress=known(tokens, running)
        )

    def health(self, status: int) -> Symptom:
        """425 while it loads."""
        return Symptom.LOADING if status == 425 else super().health(status)


class Misspelt(Mlx):
    """Names a trait that there is not."""

    name = "misspelt"
    traits: ClassVar[Mapping[str, Any]] = {"queue": True}

    def recognises(self, pages: Mapping[str, Any]) -> bool:
        """No server is one."""
        return False


class Unfinished(EngineAdapter):
    """Says what it is, and reads no page."""

    name = "unfinished"
    telling_paths = ("/mlx",)

    def recognises(self, pages: Mapping[str, Any]) -> bool:
        """No server is one."""
        return False


dict_of_traits = {"queues": False}

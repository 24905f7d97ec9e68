"""What a model server is: which engine, which models, how many requests at once.

Asks the pages by which engines are told apart, in the order of how sure each makes; what a page means is
the agents' adapters' knowledge. Sends no prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from extproc.doctor.evidence import Backend, Failed
from extproc.doctor.fetch import Fetched, fetch
from steersman_agent.engines import EngineAdapter, adapters
from steersman_agent.engines.base import mapping, served_models

#: Where engines tell their version, under that key.
VERSION_PATHS = ("/info", "/version", "/get_server_info")
VERSION_CHARS_MAX = 64


def backend(url: str, *, timeout_s: float, address: str = "") -> Backend | Failed:
    """Ask `http://host:port` what it is; Failed where nobody answers there."""
    health = fetch(f"{url}/health", timeout_s=timeout_s)
    if isinstance(health, Failed):
        return health
    pages: dict[str, Any] = {}
    asked: set[str] = set()

    def ask(paths: tuple[str, ...]) -> None:
        for path in paths:
            if path not in asked:
                asked.add(path)
                answer = fetch(f"{url}{path}", timeout_s=timeout_s)
                if isinstance(answer, Fetched) and answer.status == 200:
                    pages[path] = answer.json()

    for engine in adapters():
        ask(engine.telling_paths)
        if engine.recognises(pages):
            ask(engine.about_paths)
            break
    return told(address or url.partition("://")[2], pages, health=health.status)


def recognised(pages: Mapping[str, Any]) -> EngineAdapter | None:
    """The engine by what only it says; None for a stranger."""
    return next((engine for engine in adapters() if engine.recognises(pages)), None)


def told(address: str, pages: Mapping[str, Any], *, health: int | None) -> Backend:
    """The pages in one vocabulary."""
    engine = recognised(pages)
    if engine is None:
        return Backend(address=address, models=served_models(pages.get("/v1/models")), health=health)
    about = engine.about(pages)
    return Backend(
        address=address,
        engine=engine.name,
        version=_version(pages),
        models=about.models,
        max_concurrent=about.max_concurrent,
        kv_capacity_tokens=about.kv_capacity_tokens,
        prefill_budget_tokens=about.prefill_budget_tokens,
        health=health,
    )


def _version(pages: Mapping[str, Any]) -> str:
    said = (mapping(pages.get(path)).get("version") for path in VERSION_PATHS)
    return next((each[:VERSION_CHARS_MAX] for each in said if isinstance(each, str)), "")

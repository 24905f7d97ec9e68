"""What a model server is: which engine, which models, how many requests at once.

Asks the pages by which engines are told apart, in the order of how sure each makes; what a page means is
the agents' adapters' knowledge. Sends no prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from extproc.doctor.evidence import Backend, Failed
from extproc.doctor.fetch import Fetched, fetch
from extproc.upstream import PLAIN, ReplicaAccess
from steersman_agent.engines import EngineAdapter, adapters
from steersman_agent.engines.base import mapping, served_models

#: Where engines tell their version, under that key.
VERSION_PATHS = ("/info", "/version", "/get_server_info")
VERSION_CHARS_MAX = 64


def backend(
    url: str, *, timeout_s: float, address: str = "", access: ReplicaAccess = PLAIN
) -> Backend | Failed:
    """Ask `http://host:port` what it is; Failed where nobody answers there. `access` is how it is asked."""
    asking = partial(
        fetch,
        timeout_s=timeout_s,
        headers={"host": access.server_name, **access.headers} if access.server_name else access.headers,
        tls=access.context,
        server_name=access.server_name,
    )
    url += access.path_prefix
    health = asking(f"{url}/health")
    if isinstance(health, Failed):
        return health
    pages: dict[str, Any] = {}
    asked: set[str] = set()
    refused: list[str] = []

    def ask(paths: tuple[str, ...]) -> None:
        for path in paths:
            if path not in asked:
                asked.add(path)
                answer = asking(f"{url}{path}")
                if isinstance(answer, Fetched) and answer.status == 200:
                    pages[path] = answer.json()
                elif isinstance(answer, Fetched) and answer.status in (401, 403):
                    refused.append(path)

    for engine in adapters():
        ask(engine.telling_paths)
        if engine.recognises(pages):
            ask(engine.about_paths)
            break
    if refused and not pages:
        mend = "has another key than upstream.key says" if access.keyed else "wants a key; write upstream.key"
        return Failed(f"it {mend} (401 at {refused[0]})")
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

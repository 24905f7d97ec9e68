"""What a model server is: which engine, which models, how many requests at once.

Asks the pages by which engines are told apart, in the order of how sure each makes; what a page means is
the agents' adapters' knowledge. Sends no prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from extproc.doctor.evidence import Backend, Failed
from extproc.doctor.fetch import Fetched, fetch
from steersman_agent.engines import ENGINES

#: Pages asked of a server that nobody has named. vLLM is the one with `/version`; SGLang has it not.
PAGES: Final = ("/info", "/get_server_info", "/get_model_info", "/props", "/version", "/v1/models")


def backend(url: str, *, timeout_s: float, address: str = "") -> Backend | Failed:
    """Ask `http://host:port` what it is; Failed where nobody answers there."""
    health = fetch(f"{url}/health", timeout_s=timeout_s)
    if isinstance(health, Failed):
        return health
    pages: dict[str, Any] = {}
    for path in PAGES:
        answer = fetch(f"{url}{path}", timeout_s=timeout_s)
        if isinstance(answer, Fetched) and answer.status == 200:
            pages[path] = answer.json()
        if recognised(pages) in ("tgi", "sglang"):
            break
    engine = recognised(pages)
    if engine is not None:
        for path in set(ENGINES[engine].about_paths) - pages.keys():
            answer = fetch(f"{url}{path}", timeout_s=timeout_s)
            if isinstance(answer, Fetched) and answer.status == 200:
                pages[path] = answer.json()
    return told(address or url.partition("://")[2], pages, health=health.status)


def recognised(pages: Mapping[str, Any]) -> str | None:
    """The engine by what only it says; None for a stranger."""
    if _has(pages, "/info", "model_id"):
        return "tgi"
    if _has(pages, "/get_server_info", "max_total_num_tokens") or _has(
        pages, "/get_model_info", "model_path"
    ):
        return "sglang"
    if _has(pages, "/props", "total_slots") or _has(pages, "/props", "default_generation_settings"):
        return "llamacpp"
    if _has(pages, "/version", "version") and _has(pages, "/v1/models", "data"):
        return "vllm"
    return None


def told(address: str, pages: Mapping[str, Any], *, health: int | None) -> Backend:
    """The pages in one vocabulary."""
    engine = recognised(pages)
    if engine is None:
        listed = ENGINES["vllm"].about(pages)
        return Backend(address=address, models=listed.models, health=health)
    about = ENGINES[engine].about(pages)
    info = pages.get("/info") if isinstance(pages.get("/info"), dict) else {}
    return Backend(
        address=address,
        engine=engine,
        version=_version(pages),
        models=about.models,
        max_concurrent=about.max_concurrent,
        kv_capacity_tokens=about.kv_capacity_tokens,
        prefill_budget_tokens=_whole(info.get("max_batch_prefill_tokens")) if info else None,
        health=health,
    )


def _version(pages: Mapping[str, Any]) -> str:
    for path, key in (("/info", "version"), ("/version", "version"), ("/get_server_info", "version")):
        page = pages.get(path)
        if isinstance(page, dict) and isinstance(page.get(key), str):
            return str(page[key])[:64]
    return ""


def _has(pages: Mapping[str, Any], path: str, key: str) -> bool:
    page = pages.get(path)
    return isinstance(page, dict) and key in page


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

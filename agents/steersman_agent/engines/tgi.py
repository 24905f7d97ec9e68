"""TGI (text-generation-inference) 3: `/metrics` without `_total`, `/info` without KV capacity.

`tgi_batch_current_max_tokens` is what the running batch has reserved, so it is the KV in use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from steersman_agent.engines.base import EngineAdapter, mapping, revision_of
from steersman_agent.engines.exposition import WantedSamples, count, known, names, tokens
from steersman_agent.figures import About, Scrape

_WANTED: Final = WantedSamples(
    "tgi_queue_size",
    "tgi_batch_current_size",
    "tgi_batch_current_max_tokens",
    "tgi_batch_inference_success",
    "tgi_request_success",
    "tgi_request_input_length_sum",
    "tgi_request_generated_tokens_sum",
)


class Tgi(EngineAdapter):
    """See the module."""

    name = "tgi"
    about_paths = telling_paths = ("/info",)

    def recognises(self, pages: Mapping[str, Any]) -> bool:
        """`/info` names the model."""
        return "model_id" in mapping(pages.get("/info"))

    def scrape(self, page: bytes) -> Scrape:
        """Gauges that TGI has not set yet (before its first request) are absent, so unknown."""
        found = _WANTED.read(page)
        running, reserved = found.total("tgi_batch_current_size"), found.total("tgi_batch_current_max_tokens")
        return Scrape(
            waiting=count(found.total("tgi_queue_size")),
            running=count(running),
            kv_used_tokens=tokens(reserved),
            prompt_tokens=found.total("tgi_request_input_length_sum"),
            output_tokens=found.total("tgi_request_generated_tokens_sum"),
            # Not `tgi_request_count`: it moves when a request arrives, even at a hung engine.
            progress=known(
                found.total("tgi_batch_inference_success"),
                found.total("tgi_request_success"),
                running,
                reserved,
            ),
        )

    def about(self, pages: Mapping[str, Any]) -> About:
        """`/info`."""
        info = mapping(pages.get("/info"))
        return About(
            models=names([info.get("model_id")]),
            max_concurrent=count(info.get("max_concurrent_requests")),
            prefill_budget_tokens=count(info.get("max_batch_prefill_tokens")),
            revision=revision_of(
                *(info.get(name) for name in ("model_id", "model_sha", "model_dtype", "version"))
            ),
        )

    def prompt(self, model: str | None) -> tuple[str, dict[str, Any]]:  # noqa: ARG002 (TGI serves one model)
        """`/generate`."""
        return "/generate", {"inputs": "Hi", "parameters": {"max_new_tokens": 1}}

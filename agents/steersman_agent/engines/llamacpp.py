"""llama.cpp's server (started with `--metrics`): `llamacpp:` metrics and `/props`.

It answers 503 while it loads. `/metrics` goes through the same queue as decoding, so a long prompt on a
CPU makes it late: its timeout is longer than the others'. Newer servers say nothing of KV use.

`/props` tells each slot's context. Started without `-np` (since the end of 2025), a server has four slots
that share one KV of `-c` tokens, and each slot's context is the whole of it; with `-np` each has a part of
its own. The page does not say which: only one slot's context surely is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from steersman_agent.engines.base import EngineAdapter, mapping, revision_of, served_models
from steersman_agent.engines.exposition import WantedSamples, count, known, names, tokens
from steersman_agent.figures import About, Scrape
from steersman_agent.state import Symptom

_WANTED: Final = WantedSamples(
    "llamacpp:requests_processing",
    "llamacpp:requests_deferred",
    "llamacpp:kv_cache_tokens",
    "llamacpp:prompt_tokens_total",
    "llamacpp:tokens_predicted_total",
    "llamacpp:n_decode_total",
)


class LlamaCpp(EngineAdapter):
    """See the module."""

    name = "llamacpp"
    about_paths = ("/v1/models", "/props")
    telling_paths = ("/props",)
    timeout_ms = 3000

    def recognises(self, pages: Mapping[str, Any]) -> bool:
        """`/props` tells of slots."""
        props = mapping(pages.get("/props"))
        return "total_slots" in props or "default_generation_settings" in props

    def scrape(self, page: bytes) -> Scrape:
        """Read the page."""
        found = _WANTED.read(page)
        running = found.total("llamacpp:requests_processing")
        prompt, output = (
            found.total("llamacpp:prompt_tokens_total"),
            found.total("llamacpp:tokens_predicted_total"),
        )
        return Scrape(
            waiting=count(found.total("llamacpp:requests_deferred")),
            running=count(running),
            kv_used_tokens=tokens(found.total("llamacpp:kv_cache_tokens")),
            prompt_tokens=prompt,
            output_tokens=output,
            progress=known(prompt, output, found.total("llamacpp:n_decode_total"), running),
        )

    def about(self, pages: Mapping[str, Any]) -> About:
        """Slots are what it runs at once; a slot's context is the KV cache, unless it says that each has one.

        A cache of several times that is told by `kv_capacity_tokens` in agent.yaml.
        """
        props = mapping(pages.get("/props"))
        slots = count(props.get("total_slots"))
        settings = mapping(props.get("default_generation_settings"))
        context = count(settings.get("n_ctx"))
        apart = False in (props.get("kv_unified"), settings.get("kv_unified"))
        return About(
            models=served_models(pages.get("/v1/models")) or names([props.get("model_path")]),
            max_concurrent=slots,
            kv_capacity_tokens=context * (slots or 1) if context and apart else context or None,
            revision=revision_of(props.get("model_path"), props.get("build_info")),
        )

    def health(self, status: int) -> Symptom:
        """503 is "Loading model"."""
        return Symptom.LOADING if status == 503 else super().health(status)

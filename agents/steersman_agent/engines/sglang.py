"""SGLang (started with `--enable-metrics`): `sglang:` metrics, `/get_server_info` for limits.

Its gauges move every few dozen decode steps; the histograms' counts move with each token, so they are
what tells work from standstill. Tensor-parallel ranks may repeat the gauges: one rank speaks for all.
Data-parallel ranks have a cache and a limit each: what one says is its own, and the replica's is the sum.
`cached_tokens_total` is of the prompts in `prompt_tokens_total`, by where they were kept; `cache_hit_rate` is
the last batch's alone, and not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from steersman_agent.engines.base import (
    EngineAdapter,
    listed,
    mapping,
    revision_of,
    served_adapters,
    served_models,
)
from steersman_agent.engines.exposition import PageSamples, WantedSamples, count, known, names, tokens
from steersman_agent.figures import About, Scrape
from steersman_agent.state import Symptom

_WANTED: Final = WantedSamples(
    "sglang:num_running_reqs",
    "sglang:num_queue_reqs",
    "sglang:num_used_tokens",
    "sglang:max_total_num_tokens",
    "sglang:token_usage",
    "sglang:cache_config_info",
    "sglang:prompt_tokens_total",
    "sglang:generation_tokens_total",
    "sglang:cached_tokens_total",
    "sglang:time_to_first_token_seconds_count",
    "sglang:inter_token_latency_seconds_count",
)


class SGLang(EngineAdapter):
    """See the module."""

    name = "sglang"
    #: Its pages wait for a server in Python, which also tokenizes.
    timeout_ms = 3000
    about_paths = ("/v1/models", "/get_model_info", "/get_server_info")
    telling_paths = ("/get_server_info", "/get_model_info")

    def recognises(self, pages: Mapping[str, Any]) -> bool:
        """Two pages that nobody else has."""
        server, model = mapping(pages.get("/get_server_info")), mapping(pages.get("/get_model_info"))
        return "max_total_num_tokens" in server or "model_path" in model

    def health(self, status: int) -> Symptom:
        """503 while it starts."""
        return Symptom.LOADING if status == 503 else super().health(status)

    def scrape(self, page: bytes) -> Scrape:
        """Read the page."""
        found = _WANTED.read(page)
        running = _once(found, "sglang:num_running_reqs")
        used, capacity = _kv_tokens(found)
        prompt, output = (
            found.total("sglang:prompt_tokens_total"),
            found.total("sglang:generation_tokens_total"),
        )
        return Scrape(
            waiting=count(_once(found, "sglang:num_queue_reqs")),
            running=count(running),
            kv_used_tokens=tokens(used),
            kv_capacity_tokens=tokens(capacity),
            prompt_tokens=prompt,
            output_tokens=output,
            prefix_queried_tokens=tokens(prompt),
            prefix_hit_tokens=tokens(found.total("sglang:cached_tokens_total")),
            progress=known(
                prompt,
                output,
                found.total("sglang:time_to_first_token_seconds_count"),
                found.total("sglang:inter_token_latency_seconds_count"),
                running,
                used,
            ),
        )

    def about(self, pages: Mapping[str, Any]) -> About:
        """The served name where it is told, the path of the weights otherwise."""
        model, server = mapping(pages.get("/get_model_info")), mapping(pages.get("/get_server_info"))
        ranks = max(1, count(server.get("dp_size")) or 1)
        each = tokens(server.get("max_total_num_tokens"))
        states = [mapping(state) for state in listed(server.get("internal_states"))]
        parts = [tokens(mapping(state.get("memory_usage")).get("token_capacity")) for state in states]
        told = [part for part in parts if part]
        # The page's own figure is the first rank's; each rank's state has its own.
        capacity = sum(told) if len(told) == ranks else each * ranks if each else None
        limits = [count(state.get("effective_max_running_requests_per_dp")) for state in states]
        known_limits = [limit for limit in limits if limit]
        return About(
            models=served_models(pages.get("/v1/models")) or names([model.get("model_path")]),
            adapters=served_adapters(pages.get("/v1/models")),
            max_concurrent=sum(known_limits)
            if len(known_limits) == ranks
            else count(server.get("max_running_requests")),
            kv_capacity_tokens=capacity,
            revision=revision_of(model.get("model_path"), model.get("weight_version"), server.get("version")),
        )


def _by_rank(found: PageSamples, name: str) -> dict[str, float]:
    """A gauge by data-parallel rank, each tensor-parallel group counted once."""
    ranks: dict[str, float] = {}
    for labels, value in found.of(name):
        ranks.setdefault(labels.get("dp_rank", ""), value)
    return ranks


def _once(found: PageSamples, name: str) -> float | None:
    """A gauge summed over data-parallel ranks."""
    ranks = _by_rank(found, name)
    return sum(ranks.values()) if ranks else None


def _kv_tokens(found: PageSamples) -> tuple[float | None, float | None]:
    """KV in use and capacity, tokens, over all ranks; None for what cannot be told."""
    capacities = _by_rank(found, "sglang:max_total_num_tokens") or _configured(found)
    capacity = sum(capacities.values()) if capacities else None
    used, usage = _once(found, "sglang:num_used_tokens"), _by_rank(found, "sglang:token_usage")
    if used is None and usage and capacity is not None:
        # Each rank's fraction is of its own cache; where these are not told apart, they are alike.
        share = capacity / len(usage)
        if len(capacities) == 1 and len(usage) > 1:
            share, capacity = capacity, capacity * len(usage)
            capacities = {}
        used = sum(fraction * capacities.get(rank, share) for rank, fraction in usage.items())
    return used, capacity


def _configured(found: PageSamples) -> dict[str, float]:
    """Each rank's cache by its configuration."""
    ranks: dict[str, float] = {}
    for labels, _ in found.of("sglang:cache_config_info"):
        try:
            size = float(int(labels["page_size"]) * int(labels["num_pages"]))
        except (KeyError, ValueError):
            return {}
        ranks.setdefault(labels.get("dp_rank", ""), size)
    return ranks

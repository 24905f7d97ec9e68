"""SGLang (started with `--enable-metrics`): `sglang:` metrics, `/get_server_info` for limits.

Its gauges move every few dozen decode steps; the histograms' counts move with each token, so they are
what tells work from standstill. Tensor-parallel ranks may repeat the gauges: one rank speaks for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from steersman_agent.engines.base import Engine, mapping, served_models
from steersman_agent.engines.exposition import Samples, Wanted, count, known, names, tokens
from steersman_agent.figures import About, Scrape

_WANTED: Final = Wanted(
    "sglang:num_running_reqs",
    "sglang:num_queue_reqs",
    "sglang:num_used_tokens",
    "sglang:max_total_num_tokens",
    "sglang:token_usage",
    "sglang:cache_config_info",
    "sglang:prompt_tokens_total",
    "sglang:generation_tokens_total",
    "sglang:time_to_first_token_seconds_count",
    "sglang:inter_token_latency_seconds_count",
)


class SGLang(Engine):
    """See the module."""

    name = "sglang"
    about_paths = ("/v1/models", "/get_model_info", "/get_server_info")

    def scrape(self, page: bytes) -> Scrape:
        """Read the page."""
        found = _WANTED.read(page)
        running = _once(found, "sglang:num_running_reqs")
        used, usage = _once(found, "sglang:num_used_tokens"), _once(found, "sglang:token_usage")
        capacity = _capacity(found)
        if used is None and usage is not None and capacity is not None:
            used = usage * capacity
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
        capacity = server.get("max_total_num_tokens")
        return About(
            models=served_models(pages.get("/v1/models")) or names([model.get("model_path")]),
            max_concurrent=count(server.get("max_running_requests")),
            kv_capacity_tokens=tokens(capacity) or None,
        )


def _once(found: Samples, name: str) -> float | None:
    """A gauge summed over data-parallel ranks, each tensor-parallel group counted once."""
    groups: dict[str, float] = {}
    for labels, value in found.of(name):
        groups.setdefault(labels.get("dp_rank", ""), value)
    return sum(groups.values()) if groups else None


def _capacity(found: Samples) -> float | None:
    capacity = _once(found, "sglang:max_total_num_tokens")
    if capacity is not None:
        return capacity
    for labels, _ in found.of("sglang:cache_config_info"):
        try:
            return float(int(labels["page_size"]) * int(labels["num_pages"]))
        except (KeyError, ValueError):
            return None
    return None

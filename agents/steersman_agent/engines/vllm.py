"""vLLM: `vllm:` metrics; `kv_cache_usage_perc` is a fraction despite its name.

With data parallelism every engine core has series of its own (label `engine`): they are summed, and
each core's fraction is taken of its own blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from steersman_agent.engines.base import EngineAdapter, mapping
from steersman_agent.engines.exposition import PageSamples, WantedSamples, count, known, names, tokens, whole
from steersman_agent.figures import Scrape

_USAGE: Final = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
#: Tokens looked up in the prefix cache, and found there; the first V1 versions call it the GPU's.
_QUERIED: Final = ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total")
_HIT: Final = ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total")
_WANTED: Final = WantedSamples(
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    *_USAGE,
    *_QUERIED,
    *_HIT,
    "vllm:cache_config_info",
    "vllm:lora_requests_info",
    "vllm:lora_adapter_loaded",
    "vllm:num_gpu_loaded_lora_adapters",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:iteration_tokens_total_count",
)


class Vllm(EngineAdapter):
    """See the module."""

    name = "vllm"
    #: Its pages wait for a server in Python, which also tokenizes.
    timeout_ms = 3000
    #: It is the one with `/version`; SGLang has it not.
    telling_paths = ("/version", "/v1/models")
    told_weakly = True

    def recognises(self, pages: Mapping[str, Any]) -> bool:
        """A version beside OpenAI's list of models."""
        return "version" in mapping(pages.get("/version")) and "data" in mapping(pages.get("/v1/models"))

    def scrape(self, page: bytes) -> Scrape:
        """Read the page."""
        found = _WANTED.read(page)
        used, capacity = _kv_tokens(found)
        running = found.total("vllm:num_requests_running")
        prompt, output = found.total("vllm:prompt_tokens_total"), found.total("vllm:generation_tokens_total")
        iterations = found.total("vllm:iteration_tokens_total_count")
        return Scrape(
            waiting=count(found.total("vllm:num_requests_waiting")),
            running=count(running),
            kv_used_tokens=tokens(used),
            kv_capacity_tokens=tokens(capacity),
            adapters=_adapters(found),
            loaded_adapters=_loaded(found),
            prompt_tokens=prompt,
            output_tokens=output,
            prefix_queried_tokens=tokens(found.total(*_QUERIED)),
            prefix_hit_tokens=tokens(found.total(*_HIT)),
            progress=known(prompt, output, iterations, running, found.total(*_USAGE)),
        )


def _kv_tokens(found: PageSamples) -> tuple[float | None, float | None]:
    """KV in use and capacity, tokens, over all engine cores; None for what cannot be told."""
    capacity: dict[str, float] = {}
    for labels, _ in found.of("vllm:cache_config_info"):
        try:
            blocks = int(labels["num_gpu_blocks"]) * int(labels["block_size"])
        except (KeyError, ValueError):
            return None, None  # "None" until the blocks are counted
        capacity[labels.get("engine", "")] = blocks
    if not capacity:
        return None, None
    total = sum(capacity.values())
    usage = found.of(_USAGE[0]) or found.of(_USAGE[1])
    if not usage:
        return None, total
    # Older versions label the configuration differently from the gauge: then the cores are alike.
    share = total / len(usage)
    used = sum(fraction * capacity.get(labels.get("engine", ""), share) for labels, fraction in usage)
    return used, total


def _loaded(found: PageSamples) -> tuple[str, ...] | None:
    """The LoRA adapters on its cards (vLLM's pull request 54830): a series each while it is there.

    Those in the machine's memory are not counted. None of a version without these metrics: with them a number
    is told also where there is no adapter.
    """
    if not found.of("vllm:num_gpu_loaded_lora_adapters"):
        return None
    series = found.of("vllm:lora_adapter_loaded")
    return whole(labels.get("adapter_name") for labels, on in series if on and labels.get("level") == "gpu")


def _adapters(found: PageSamples) -> tuple[str, ...] | None:
    """The LoRA adapters at work: the series with the newest time (its value) tells, older ones linger."""
    series = found.of("vllm:lora_requests_info")
    if not series:
        return None
    labels, _ = max(series, key=lambda entry: entry[1])
    listed = f"{labels.get('running_lora_adapters', '')},{labels.get('waiting_lora_adapters', '')}"
    return names(part.strip() for part in listed.split(","))

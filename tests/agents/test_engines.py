from __future__ import annotations

import importlib.util
import json
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from steersman_agent.engines import ENGINES
from steersman_agent.engines.exposition import LINES_MAX, WantedSamples, count
from steersman_agent.figures import About, Scrape
from steersman_agent.state import Symptom


def _pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pages", Path(__file__).with_name("pages.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES: Any = _pages()


def test_tgi_gives_queue_batch_and_reserved_tokens_but_no_capacity() -> None:
    """TGI does not say how much KV there is."""
    assert ENGINES["tgi"].scrape(PAGES.TGI.encode()) == Scrape(
        waiting=3,
        running=5,
        kv_used_tokens=6144,
        kv_capacity_tokens=None,
        prompt_tokens=21034,
        output_tokens=6912,
        progress=(52 + 4015, 52, 5, 6144),
    )


def test_tgi_arrivals_are_no_progress() -> None:
    """A hung TGI goes on counting requests that arrive and queue."""
    page = PAGES.TGI
    later = page.replace("tgi_request_count 57", "tgi_request_count 58").replace(
        "tgi_queue_size 3", "tgi_queue_size 4"
    )
    tgi = ENGINES["tgi"]
    assert tgi.scrape(page.encode()).progress == tgi.scrape(later.encode()).progress


def test_vllm_turns_the_fraction_into_tokens_and_knows_its_adapters() -> None:
    """0.25 of 27,000 blocks of 16 tokens; the newest adapter series counts, running and waiting."""
    scrape = ENGINES["vllm"].scrape(PAGES.VLLM.encode())
    assert (scrape.waiting, scrape.running) == (2, 7)
    assert scrape.kv_capacity_tokens == 432_000
    assert scrape.kv_used_tokens == 108_000
    assert scrape.adapters == ("sql", "chat", "legal")
    assert (scrape.prompt_tokens, scrape.output_tokens) == (1_203_450.0, 88_123.0)
    assert scrape.progress == (1_203_450.0, 88_123.0, 9014.0, 7.0, 0.25)


def test_vllm_tells_the_adapters_on_its_card() -> None:
    """Those at the level of the GPU, used or not; without these metrics nothing is told, and none is none."""
    vllm = ENGINES["vllm"]
    assert vllm.scrape(PAGES.VLLM_LOADED.encode()).loaded_adapters == ("sql", "idle")
    assert vllm.scrape(PAGES.VLLM.encode()).loaded_adapters is None
    assert vllm.scrape(b"vllm:num_gpu_loaded_lora_adapters 0\n").loaded_adapters == ()


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_model_list_tells_which_adapters_are_served(engine: str) -> None:
    """Those with a parent; the base counts as a model alone, and adapters count as models too."""
    about = ENGINES[engine].about({"/v1/models": json.loads(PAGES.VLLM_MODELS)})
    assert (about.models, about.adapters) == (("llama", "sql"), ("sql",))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ([{"id": "m", "object": "model"}], None),
        ([{"id": "m", "parent": None}], ()),
        ([{"id": f"a{i}", "parent": "m"} for i in range(257)], None),
        ([{"id": "a" * 200 + str(i), "parent": "m"} for i in range(20)], None),
        ([{"id": 7, "parent": "m"}], None),
    ],
)
def test_a_list_of_adapters_is_whole_or_not_told(data: list[Any], told: tuple[str, ...] | None) -> None:
    """An engine that names no parents says nothing of adapters; what no report can hold is not cut short."""
    assert ENGINES["vllm"].about({"/v1/models": {"data": data}}).adapters == told


@pytest.mark.parametrize("names", ["prefix_cache", "gpu_prefix_cache"])
def test_vllm_tells_what_its_prefix_cache_found(names: str) -> None:
    """Tokens looked up and found, over all engine cores, by the newer names and the older."""
    page = "".join(
        f'vllm:{names}_{what}_total{{engine="{core}"}} {value}\n'
        for core in (0, 1)
        for what, value in (("queries", 1_000.0), ("hits", 420.0))
    )
    scrape = ENGINES["vllm"].scrape(page.encode())
    assert (scrape.prefix_queried_tokens, scrape.prefix_hit_tokens) == (2_000, 840)


def test_sglang_tells_what_of_its_prompts_was_cached() -> None:
    """Wherever it was kept; the gauge of the last batch is not taken for it."""
    page = """\
sglang:prompt_tokens_total{model_name="q"} 4096
sglang:cached_tokens_total{model_name="q",cache_source="device"} 3000
sglang:cached_tokens_total{model_name="q",cache_source="host"} 168
sglang:cache_hit_rate{model_name="q"} 0.1
"""
    scrape = ENGINES["sglang"].scrape(page.encode())
    assert (scrape.prefix_queried_tokens, scrape.prefix_hit_tokens) == (4_096, 3_168)


def test_vllm_sums_engine_cores_and_takes_the_older_gauge_name() -> None:
    """Two cores: 0.5 of 1,600 tokens and 0.25 of 3,200."""
    page = """\
vllm:num_requests_running{engine="0"} 1
vllm:num_requests_running{engine="1"} 2
vllm:gpu_cache_usage_perc{engine="0"} 0.5
vllm:gpu_cache_usage_perc{engine="1"} 0.25
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1
vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="200"} 1
"""
    scrape = ENGINES["vllm"].scrape(page.encode())
    assert scrape.running == 3
    assert scrape.waiting is None
    assert scrape.kv_used_tokens == 800 + 800
    assert scrape.kv_capacity_tokens == 4800


def test_vllm_before_its_blocks_are_counted_has_no_capacity() -> None:
    """`num_gpu_blocks="None"` is not zero blocks."""
    page = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1\nvllm:kv_cache_usage_perc 0\n'
    scrape = ENGINES["vllm"].scrape(page.encode())
    assert (scrape.kv_used_tokens, scrape.kv_capacity_tokens) == (None, None)


def test_sglang_counts_each_tensor_parallel_group_once() -> None:
    """Two ranks say the same 4 running requests; 0.5 of 4,000 pages of 64 tokens."""
    scrape = ENGINES["sglang"].scrape(PAGES.SGLANG.encode())
    assert (scrape.waiting, scrape.running) == (1, 4)
    assert (scrape.kv_used_tokens, scrape.kv_capacity_tokens) == (128_000, 256_000)
    assert 7400.0 in scrape.progress


@pytest.mark.parametrize(
    "capacity",
    [
        "\n".join(
            f'sglang:cache_config_info{{dp_rank="{rank}",num_pages="100",page_size="10"}} 1'
            for rank in (0, 1)
        ),
        'sglang:max_total_num_tokens{dp_rank="0"} 1000\nsglang:max_total_num_tokens{dp_rank="1"} 1000\n',
        'sglang:max_total_num_tokens{model_name="q"} 1000\n',
    ],
)
def test_sglang_sums_the_caches_of_data_parallel_ranks(capacity: str) -> None:
    """Each rank's fraction is of its own cache: 0.5 and 0.2 of 1,000 tokens each are 700 of 2,000."""
    usage = 'sglang:token_usage{dp_rank="0"} 0.5\nsglang:token_usage{dp_rank="1"} 0.2\n'
    scrape = ENGINES["sglang"].scrape((usage + capacity).encode())
    assert (scrape.kv_used_tokens, scrape.kv_capacity_tokens) == (700, 2000)


def test_llamacpp_says_nothing_of_kv_use() -> None:
    """Newer servers dropped the gauge: unknown, not zero."""
    scrape = ENGINES["llamacpp"].scrape(PAGES.LLAMACPP.encode())
    assert (scrape.waiting, scrape.running, scrape.kv_used_tokens) == (0, 1, None)
    assert (scrape.prompt_tokens, scrape.output_tokens) == (377, 128)


@pytest.mark.parametrize("name", ENGINES)
def test_an_empty_page_says_nothing(name: str) -> None:
    """Everything unknown, and no progress to judge by."""
    assert ENGINES[name].scrape(b"") == Scrape()


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("junk", [b"\xff\x00\n", b"<html>404</html>", b"tgi_queue_size{ 3\nvllm:x{} \n"])
def test_junk_is_nothing_or_a_value_error(name: str, junk: bytes) -> None:
    """Never another exception."""
    try:
        ENGINES[name].scrape(junk)
    except ValueError:
        return


@pytest.mark.parametrize(
    ("name", "pages", "expected"),
    [
        (
            "tgi",
            {"/info": {"model_id": "m", "max_concurrent_requests": 128}},
            About(models=("m",), max_concurrent=128, revision="m"),
        ),
        (
            "tgi",
            {"/info": {"model_id": "m", "model_sha": "5f0b", "model_dtype": "float16", "version": "3.0"}},
            About(models=("m",), revision="m 5f0b float16 3.0"),
        ),
        ("vllm", {"/v1/models": {"data": [{"id": "m"}, {"id": "lora"}]}}, About(models=("m", "lora"))),
        (
            "vllm",
            {
                "/v1/models": {
                    "data": [
                        {"id": "m", "root": "/models/m@1", "created": 1},
                        {"id": "lora", "root": "/loras/a", "parent": "m"},
                    ]
                }
            },
            About(models=("m", "lora"), adapters=("lora",), revision="/models/m@1"),
        ),
        (
            "vllm",
            {"/v1/models": {"data": [{"id": "m", "root": "/" + "x" * 200}]}},
            About(models=("m",), revision=sha256(b"/" + b"x" * 200).hexdigest()),
        ),
        (
            "sglang",
            {
                "/get_model_info": {"model_path": "Qwen/Q"},
                "/get_server_info": {"max_running_requests": 48, "max_total_num_tokens": 256_000},
            },
            About(models=("Qwen/Q",), max_concurrent=48, kv_capacity_tokens=256_000, revision="Qwen/Q"),
        ),
        (
            "sglang",
            {
                "/get_model_info": {"model_path": "Qwen/Q"},
                "/get_server_info": {"dp_size": 4, "max_running_requests": 64, "max_total_num_tokens": 1000},
            },
            About(models=("Qwen/Q",), max_concurrent=64, kv_capacity_tokens=4000, revision="Qwen/Q"),
        ),
        (
            "sglang",
            {
                "/get_model_info": {"model_path": "Qwen/Q"},
                "/get_server_info": {
                    "dp_size": 2,
                    "max_running_requests": 64,
                    "max_total_num_tokens": 1000,
                    "internal_states": [
                        {
                            "memory_usage": {"token_capacity": 1000},
                            "effective_max_running_requests_per_dp": 20,
                        },
                        {
                            "memory_usage": {"token_capacity": 900},
                            "effective_max_running_requests_per_dp": 20,
                        },
                    ],
                },
            },
            About(models=("Qwen/Q",), max_concurrent=40, kv_capacity_tokens=1900, revision="Qwen/Q"),
        ),
        (
            "llamacpp",
            {
                "/props": {
                    "total_slots": 4,
                    "default_generation_settings": {"n_ctx": 512},
                    "kv_unified": False,
                    "model_path": "/m.gguf",
                    "build_info": "b6000-abc",
                },
            },
            About(
                models=("/m.gguf",), max_concurrent=4, kv_capacity_tokens=2048, revision="/m.gguf b6000-abc"
            ),
        ),
        (
            "llamacpp",
            {
                "/v1/models": {"data": [{"id": "smol"}]},
                "/props": {"total_slots": 4, "default_generation_settings": {"n_ctx": 2048}},
            },
            About(models=("smol",), max_concurrent=4, kv_capacity_tokens=2048),
        ),
    ],
)
def test_about(name: str, pages: dict[str, Any], expected: About) -> None:
    """What an engine says of itself."""
    assert ENGINES[name].about(pages) == expected


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("page", [None, [], "x", {"data": 3, "model_id": 5, "total_slots": "many"}])
def test_about_of_nonsense_says_nothing(name: str, page: Any) -> None:
    """Pages come from the network."""
    assert ENGINES[name].about(dict.fromkeys(ENGINES[name].about_paths, page)) == About()


def test_loading_is_told_apart_from_unwell() -> None:
    """503 means "Loading model" to llama.cpp and "starting" to SGLang, trouble elsewhere."""
    assert ENGINES["llamacpp"].health(503) is Symptom.LOADING
    assert ENGINES["sglang"].health(503) is Symptom.LOADING
    assert ENGINES["vllm"].health(503) is Symptom.UNWELL
    assert ENGINES["tgi"].health(503) is Symptom.UNWELL


def test_the_filter_drops_buckets_before_parsing_and_is_bounded() -> None:
    """A name that only begins like a wanted one is another name; so many lines and no more."""
    wanted = WantedSamples("a_sum")
    samples = wanted.read(b'a_sum 1\na_sum_more 2\na_bucket{le="1"} 3\n')
    assert samples.total("a_sum") == 1
    assert samples.of("a_sum_more") == []
    page = b"".join(b'a_sum{i="%d"} 1\n' % i for i in range(LINES_MAX + 10))
    assert wanted.read(page).total("a_sum") == LINES_MAX


@pytest.mark.parametrize("value", [None, True, -1, float("inf"), float("nan"), 2**32, "3"])
def test_a_figure_that_is_no_count_is_unknown(value: object) -> None:
    """What does not fit the wire does not reach it."""
    assert count(value) is None

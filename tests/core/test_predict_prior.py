"""Priors: what names tell of an engine's timing, against the published rows."""

from __future__ import annotations

import pytest

from extproc.core.predict.hardware import A100_80GB, find_gpu
from extproc.core.predict.prior import HOST_MS, prior
from extproc.core.predict.sizes import BILLIONS_MAX, BILLIONS_MIN, DEFAULT_BILLIONS, size_of
from extproc.core.predict.timing import Timing
from extproc.sim.timing import HARDWARE

A100, H100 = "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3"
LLAMA_70B = "meta-llama/Llama-2-70B-chat-hf"
#: Published step times (splitwise-sim, vidur): name, GPU, model, GPUs, host overhead that the row leaves out.
ROWS = [
    ("a100-80g/llama-3-8b", A100, "llama-3-8b", 1, HOST_MS),
    ("h100-80g/llama-3-8b", H100, "llama-3-8b", 1, HOST_MS),
    ("h100-tp4/llama-2-70b", H100, LLAMA_70B, 4, 0.0),
    ("h100-tp8/llama-2-70b", H100, LLAMA_70B, 8, 0.0),
    ("a100-tp4/llama-2-70b", A100, LLAMA_70B, 4, 0.0),
    ("a100-tp8/llama-2-70b", A100, LLAMA_70B, 8, 0.0),
]


def test_prefill_counts_attention_over_the_cache() -> None:
    """A prefill behind a cached prefix pays for attending to it: pa + pb·u + pc·((off+u)² − off²)."""
    timing = Timing(1.0, 2.0, 0.5, 10.0, 0.1, 1e-3)
    assert timing.prefill_ms(100.0) == pytest.approx(10 + 10 + 10)
    assert timing.prefill_ms(100.0, 200.0) == pytest.approx(10 + 10 + 1e-3 * (300**2 - 200**2))
    assert timing.step_ms(3.0, 20.0) == pytest.approx(1 + 6 + 10)


def test_negative_work_counts_as_none() -> None:
    """An estimate that went below nothing costs what nothing costs."""
    timing = Timing(1.0, 2.0, 0.5, 10.0, 0.1, 1e-3)
    assert timing.prefill_ms(-5.0, -7.0) == timing.prefill_ms(0.0) == 10.0
    assert timing.step_ms(-5.0, -7.0) == 1.0


@pytest.mark.parametrize(("row", "gpu", "model", "gpus", "host_ms"), ROWS)
def test_priors_are_near_the_published_rows(
    row: str, gpu: str, model: str, gpus: int, host_ms: float
) -> None:
    """Prefills, steps and cache come within 35 % of published timings from names alone."""
    truth = HARDWARE[row].with_overhead(host_ms)
    guess = prior(gpu, model, gpus=gpus)
    assert guess.known
    for tokens in (512, 1_024, 2_048, 4_096, 8_192):
        assert guess.timing.prefill_ms(tokens) == pytest.approx(truth.prefill_ms(tokens), rel=0.35)
    for batch, context in ((1, 1_000), (8, 8_000), (16, 24_000), (32, 48_000), (64, 64_000)):
        assert guess.timing.step_ms(batch, context) == pytest.approx(
            truth.decode_ms(batch, context), rel=0.35
        )
    assert guess.kv_capacity_tokens == pytest.approx(truth.kv_capacity_tokens, rel=0.1)


@pytest.mark.parametrize(
    ("gpu", "model", "tokens"), [("NVIDIA L4", "llama-3-8b", 30_000), (A100, "Llama-2-7b-hf", 118_000)]
)
def test_cache_follows_memory_and_attention(gpu: str, model: str, tokens: int) -> None:
    """A small card and a model without shared keys hold few tokens, as replica-models.md says."""
    assert prior(gpu, model).kv_capacity_tokens == pytest.approx(tokens, rel=0.1)


def test_an_unknown_gpu_is_an_a100_and_says_so() -> None:
    """A name that nobody knows gives the A100-80GB's figures, marked as unknown."""
    stranger, a100 = prior("Quantum Abacus 9", "llama-3-8b"), prior(A100, "llama-3-8b")
    assert not stranger.known
    assert a100.known
    assert (stranger.timing, stranger.kv_capacity_tokens) == (a100.timing, a100.kv_capacity_tokens)
    assert prior() == stranger


@pytest.mark.parametrize(
    ("name", "bandwidth", "memory"),
    [
        ("NVIDIA A100-SXM4-80GB", 2039, 80),
        ("NVIDIA A100-SXM4-40GB", 1555, 40),
        ("NVIDIA A100 80GB PCIe", 1935, 80),
        ("NVIDIA H100 80GB HBM3", 3350, 80),
        ("NVIDIA H100 PCIe", 2000, 80),
        ("NVIDIA H100 NVL", 3900, 94),
        ("NVIDIA H200", 4800, 140),
        ("NVIDIA GH200 480GB", 4000, 95),
        ("NVIDIA B200", 8000, 179),
        ("NVIDIA L4", 300, 22.5),
        ("NVIDIA L40", 864, 45),
        ("NVIDIA L40S", 864, 45),
        ("NVIDIA A10", 600, 22.5),
        ("NVIDIA A10G", 600, 22.5),
        ("Tesla T4", 320, 15),
        ("Tesla V100-SXM2-16GB", 900, 16),
        ("Tesla V100-SXM2-32GB", 900, 32),
        ("NVIDIA GeForce RTX 4090", 1008, 24),
        ("NVIDIA GeForce RTX 3090", 936, 24),
        ("AMD Instinct MI300X", 5300, 192),
        ("NVIDIA RTX 6000 Ada Generation", 960, 48),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 1792, 95),
    ],
)
def test_names_that_drivers_give_are_found(name: str, bandwidth: float, memory: float) -> None:
    """Each name leads to its own data sheet, however alike the names are."""
    gpu = find_gpu(name)
    assert gpu is not None
    assert (gpu.bandwidth_gb_per_s, gpu.memory_gib) == (bandwidth, memory)


def test_a_mig_slice_is_its_share() -> None:
    """Three sevenths of an A100 have that arithmetic and their own memory."""
    part = find_gpu("NVIDIA A100-SXM4-80GB MIG 3g.40gb")
    assert part is not None
    assert part.tflops == pytest.approx(A100_80GB.tflops * 3 / 7)
    assert part.memory_gib == 40
    assert part.bandwidth_gb_per_s == pytest.approx(A100_80GB.bandwidth_gb_per_s / 2)


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("llama-3-8b", 8.03, 8.03),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8.03, 8.03),
        ("meta-llama/Llama-2-70B-chat-hf", 69.0, 69.0),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 46.7, 12.9),
        ("microsoft/Phi-3-mini-4k-instruct", 3.8, 3.8),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 0.135, 0.135),
        ("Qwen/Qwen3-30B-A3B", 30.0, 3.0),
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.5, 0.5),
        ("llama3.1:8b", 8.0, 8.0),
        ("deepseek-ai/DeepSeek-R1", 671.0, 37.0),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 8.0, 8.0),
        ("my-finetune-4bit", DEFAULT_BILLIONS, DEFAULT_BILLIONS),
        ("", DEFAULT_BILLIONS, DEFAULT_BILLIONS),
        ("0b", BILLIONS_MIN, BILLIONS_MIN),
        ("9999b", BILLIONS_MAX, BILLIONS_MAX),
    ],
)
def test_parameters_are_read_from_names(name: str, total: float, active: float) -> None:
    """Sizes come from the name, from a small table where it holds none, and else are the 8B class."""
    size = size_of(name)
    assert size.parameters == pytest.approx(total * 1e9)
    assert size.active == pytest.approx(active * 1e9)


def test_quantisation_makes_decoding_faster_and_the_cache_larger() -> None:
    """Weights of four bits are read sooner and leave more memory; arithmetic stays."""
    full, small = prior("NVIDIA L4", "llama-3-8b"), prior("NVIDIA L4", "Llama-3-8B-AWQ")
    assert small.timing.decode_base_ms < 0.5 * full.timing.decode_base_ms
    assert small.kv_capacity_tokens > 2 * full.kv_capacity_tokens
    assert small.timing.prefill_per_token_ms == full.timing.prefill_per_token_ms


def test_a_model_that_cannot_fit_is_taken_for_quantised() -> None:
    """70B on one 80 GB card must be 8 bits or less, and still has a cache."""
    guess = prior(H100, "llama-2-70b")
    assert guess.kv_capacity_tokens > 1_000
    assert guess.timing.decode_base_ms < 69e9 * 2 / (3350e6 * 0.8)
    assert prior("Tesla T4", "Llama-3-405B").kv_capacity_tokens >= 1


def test_memory_that_the_device_reports_outranks_the_table() -> None:
    """Half of the memory holds less of the cache; nonsense is bounded."""
    assert (
        prior(A100, "llama-3-8b", memory_bytes=40 * 2**30).kv_capacity_tokens
        < 0.5 * prior(A100, "llama-3-8b").kv_capacity_tokens
    )
    assert prior(A100, "llama-3-8b", memory_bytes=0) == prior(A100, "llama-3-8b")
    assert prior(A100, "llama-3-8b", memory_bytes=10**30, gpus=10**9).kv_capacity_tokens < 10**12

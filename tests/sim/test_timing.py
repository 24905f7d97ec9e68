from __future__ import annotations

import pytest

from extproc.sim.timing import HARDWARE, hardware_named


@pytest.mark.parametrize("name", sorted(HARDWARE))
def test_steps_take_longer_with_more_work(name: str) -> None:
    """Prefill grows with tokens and decode with batch and context, on every hardware."""
    hardware = hardware_named(name)
    prefills = [hardware.prefill_ms(n) for n in (1, 512, 1000, 3000, 8192, 30_000)]
    assert prefills == sorted(prefills)
    assert prefills[0] > 0
    assert hardware.decode_ms(1, 100) < hardware.decode_ms(100, 100) < hardware.decode_ms(100, 100_000)
    assert hardware.source
    assert hardware.kv_capacity_tokens > 0


@pytest.mark.parametrize(
    ("name", "n", "ms"),
    [
        ("a100-80g/llama-3-8b", 1000, 6.9 + 66.9 + 1.7 + 2.0),  # plus the default overhead of 2 ms
        ("h100-80g/llama-3-8b", 1000, 3.1 + 22.0 + 0.6 + 2.0),
        ("h100-tp4/llama-2-70b", 1000, 16.0 + 105.5),
        ("h100-tp4/llama-2-70b", 10, 50.0),  # the floor
        ("a100-tp4/llama-2-70b", 512, 127.0),
        ("a100-tp4/llama-2-70b", 3072, (427 + 1069) / 2),
        ("a100-tp8/llama-2-70b", 16384, 3525.0),
    ],
)
def test_prefill_follows_the_published_numbers(name: str, n: int, ms: float) -> None:
    """Figures worked out by hand from the published step times."""
    assert hardware_named(name).prefill_ms(n) == pytest.approx(ms)


def test_decode_follows_the_published_numbers() -> None:
    """a + b·B + c·K, plus the overhead."""
    hardware = hardware_named("a100-80g/llama-3-8b")
    assert hardware.decode_ms(32, 40_000) == pytest.approx(9.8 + 0.928 + 3.68 + 2.0)
    assert hardware.with_overhead(0.0).decode_ms(32, 40_000) == pytest.approx(9.8 + 0.928 + 3.68)


def test_context_makes_prefill_dearer() -> None:
    """Attention over what is already cached is the quadratic term's difference."""
    hardware = hardware_named("a100-80g/llama-3-8b")
    extra = hardware.prefill_ms(1000, context=3000) - hardware.prefill_ms(1000)
    assert extra == pytest.approx(1.7e-6 * 2 * 1000 * 3000)


def test_an_unknown_hardware_names_the_known_ones() -> None:
    """The error says what may be written instead."""
    with pytest.raises(ValueError, match=r"unknown hardware 'tpu'; known: a100-80g/llama-3-8b"):
        hardware_named("tpu")

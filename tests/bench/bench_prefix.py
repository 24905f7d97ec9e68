"""Prefixes: hashing a prompt, and the index of who holds which blocks."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import count
from random import Random

from rows import Row, best_us

from extproc.core.prefix import PrefixIndex, chain

CAPACITY = 12_500  # 800,000 tokens of KV cache
CHAIN_AIMS_US = {"1 KB": (1_000, 3.0), "400 KB": (400_000, 1500.0)}
INSERT_AIMS_US = {20: 20.0, 1_600: 1500.0}
MATCH_AIM_US = 100.0


def _hashes(rng: Random, blocks: int) -> list[int]:
    return [rng.getrandbits(64) for _ in range(blocks)]


def _index(prefix: list[int], depths: list[int]) -> PrefixIndex:
    index = PrefixIndex()
    for slot, depth in enumerate(depths):
        index.insert(f"10.0.{slot // 250}.{slot % 250 + 1}:80", prefix[:depth], capacity_blocks=CAPACITY)
    return index


def run() -> Iterator[Row]:
    """Yield microseconds per call, and bytes per block held."""
    rng = Random(5)
    for name, (size, aim) in CHAIN_AIMS_US.items():
        text = ("The quick brown fox jumps over the lazy dog. " * (size // 45 + 1))[:size]
        segments, marks = (text,), (b'\xff"user"',)
        yield Row(
            f"prefix: hash a {name} prompt",
            best_us(lambda segments=segments, marks=marks: chain(segments, marks)),
            "µs",
            aim,
        )
    for blocks, aim in INSERT_AIMS_US.items():
        yield Row(f"prefix: insert {blocks} new blocks, full endpoint", _insert_us(rng, blocks), "µs", aim)
    prefix = _hashes(rng, 1_600)
    depths = {
        "10 endpoints, 3 hold a 20-block prompt": (prefix[:20], [20, 12, 4], 5.0),
        "1,000 endpoints share 8 blocks, 10 hold more": (
            prefix,
            [8] * 990 + [100 * i for i in range(1, 11)],
            MATCH_AIM_US,
        ),
        "1,000 endpoints, 50 depths": (
            prefix,
            [32 * rng.randrange(1, 51) for _ in range(1_000)],
            MATCH_AIM_US,
        ),
        "1,000 endpoints, a depth each": (
            prefix,
            [rng.randrange(1, 1_601) for _ in range(1_000)],
            MATCH_AIM_US,
        ),
    }
    for name, (asked, held, aim) in depths.items():
        index = _index(prefix, held)
        yield Row(
            f"prefix: match, {name}",
            best_us(lambda index=index, asked=asked: index.match(asked)),
            "µs",
            aim,
        )
    yield Row("prefix: memory of a block that one endpoint holds", _bytes_per_block(rng), "bytes")


def _insert_us(rng: Random, blocks: int) -> float:
    index = PrefixIndex()
    index.insert("10.0.0.1:80", _hashes(rng, CAPACITY), capacity_blocks=CAPACITY)
    prompts = [_hashes(rng, blocks) for _ in range(2 * CAPACITY // blocks + 2)]
    turn = count()

    def once() -> None:
        index.insert("10.0.0.1:80", prompts[next(turn) % len(prompts)], capacity_blocks=CAPACITY)

    return best_us(once)


def _bytes_per_block(rng: Random) -> float:
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    index = PrefixIndex()
    for slot in range(10):
        index.insert(f"10.0.0.{slot}:80", _hashes(rng, CAPACITY), capacity_blocks=CAPACITY)
    size = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return size / (10 * CAPACITY)

"""Counting prompts: what a decision pays for it, cold, warm and without, and what counting itself takes.

The tokenizer is trained here on this project's pages; a model's own takes about as long a byte.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rows import Row, best_us

from extproc.core.calibrate import Calibration
from extproc.core.promptcount import CountErrors
from extproc.core.request import Request
from extproc.tokens.counter import PoolCounter
from extproc.tokens.counts import SegmentCounts
from extproc.tokens.tokenizer import load
from tests.stand.vocabulary import asked, prose, written

#: Bytes of the shared system prompt, and of the question that is new each time.
SHARED, NEW = 9_000, 1_000
QUESTIONS = 200
ENTRIES = 200_000


def run() -> Iterator[Row]:
    """Yield microseconds, megabytes and shares."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load(written(Path(folder), size=4_000))
    system = prose()[:SHARED]
    asks = [asked(("system", system), ("user", prose()[i * 150 : i * 150 + NEW])) for i in range(QUESTIONS)]
    calibration = Calibration(bytes_per_token=4.0, output_tokens=256)
    yield Row("tokens: a 10 KB prompt estimated", best_us(lambda: calibration.predict_input(10_000)), "µs")
    cold = PoolCounter(bytes_max=1 << 24, error_max=0.05)
    cold.begin(tokenizer.bias, None)
    yield Row("tokens: cold, all of it to be counted later", middle_us(cold, asks, forget=True), "µs")
    warm = PoolCounter(bytes_max=1 << 24, error_max=0.05)
    warm.begin(tokenizer.bias, None)
    warm.count(asks[0], 2_500, 4.0)
    texts = warm.take(1 << 30)
    warm.counted(dict(zip(texts, tokenizer.counts(list(texts.values())), strict=True)))
    yield Row("tokens: warm, 9 KB of it counted before", middle_us(warm, asks[1:]), "µs", 60.0)
    yield Row("tokens: warm, all of it", middle_us(warm, asks[:1] * QUESTIONS), "µs", 60.0)
    whole = "".join(asks[0].segments)
    yield Row(
        "tokens: the tokenizer itself, 10 KB (a thread's)", best_us(lambda: tokenizer.counts([whole])), "µs"
    )
    # Two tenants of one pool: the other's prompt is a table of numbers, which has more tokens a byte.
    table = " ".join(str(number * 7_919 % 100_003) for number in range(SHARED // 6))
    others = [asked(("system", table), ("user", prose()[i * 90 : i * 90 + NEW])) for i in range(32)]
    warm.count(others[0], 2_500, 4.0)
    texts = warm.take(1 << 30)
    warm.counted(dict(zip(texts, tokenizer.counts(list(texts.values())), strict=True)))
    mixed = [each for pair in zip(asks, others, strict=False) for each in pair]
    yield from _errors(mixed, warm, tokenizer.counts, calibration)
    errors = CountErrors()
    yield Row("tokens: an answer's error noted", best_us(lambda: errors.saw(1_000, 1_010)), "µs")
    before = resident()
    kept = SegmentCounts(1 << 40)
    for number in range(ENTRIES):
        kept.put(kept.key(str(number)), 1_000 + number)
    yield Row("tokens: bytes of a count that is kept", (resident() - before) / ENTRIES, "B", 240.0)


def _errors(
    asks: list[Request], warm: PoolCounter, counts: object, calibration: Calibration
) -> Iterator[Row]:
    """How far off both are where 9 of 10 KB were counted before, without a template."""
    assert callable(counts)
    estimated, counted = CountErrors(), CountErrors()
    for each in asks:
        told = sum(counts(each.segments))
        found = warm.count(each, 0, calibration.bytes_per_token)
        assert found is not None
        assert found.tokens is not None
        estimated.saw(calibration.predict_input(each.prompt_bytes), told)
        # The template's prior is not in these counts.
        counted.saw(found.tokens - 13, told)
        calibration.saw_prompt(each.prompt_bytes, told)
    yield Row(
        "tokens: error of the calibrated estimate, two kinds of prompts", 100 * (estimated.share or 0.0), "%"
    )
    yield Row("tokens: the same where 9 of 10 KB were counted before", 100 * (counted.share or 0.0), "%")


def middle_us(counter: PoolCounter, asks: list[Request], *, forget: bool = False) -> float:
    """Microseconds of a count, the median: others' work on the machine shows in the mean."""
    took = []
    for each in asks:
        if forget:
            counter.known.clear()
            counter.take(1 << 30)
        begun = time.perf_counter()
        counter.count(each, 2_500, 4.0)
        took.append(time.perf_counter() - begun)
    return sorted(took)[len(took) // 2] * 1e6


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096

"""What the demo's tenants ask: arrivals and lengths from a real trace, or made up when none is at hand.

Owns the trace format (`arrival_s,input_tokens,output_tokens`, plain or gzip) and says of every
workload where it came from.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Final

#: Where a trace is looked for when none is given: beside a checkout.
TRACE_BESIDE: Final = Path("../shared/traces/azure2023_conv.csv.gz")
#: The part of a trace that is replayed, over and over.
SPAN_S: Final = 600.0
ROWS_MAX: Final = 100_000
COLUMNS: Final = ("arrival_s", "input_tokens", "output_tokens")
TOKENS_MAX: Final = 10_000_000
#: Longer prompts of a trace are the batch tenant's.
LONG_PROMPT_TOKENS: Final = 1_024

CHAT, TRIAL, BATCH = "chat-app", "free-trial", "batch-jobs"
#: Every so many rows of a trace are the trial's, where they are short.
TRIAL_EVERY: Final = 4


@dataclass(frozen=True, slots=True)
class DemoArrival:
    """One request: when (seconds from the start), whose, and how long."""

    at_s: float
    tenant: str
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class DemoWorkload:
    """Arrivals within `span_s` in order of time, and in words where they came from."""

    source: str
    arrivals: tuple[DemoArrival, ...]
    span_s: float


class TraceError(Exception):
    """A trace that cannot be used; the message says file, line and what is wrong."""


def workload(trace: Path | None, *, seed: int) -> DemoWorkload:
    """The given trace, or the one beside the checkout, or a generated workload. Raises TraceError."""
    if trace is None and TRACE_BESIDE.is_file():
        trace = TRACE_BESIDE
    return generated(seed=seed) if trace is None else read_trace(trace)


def read_trace(path: Path) -> DemoWorkload:
    """The first minutes of a trace."""
    arrivals = tuple(_rows(path))
    if not arrivals:
        raise TraceError(f"{path}: holds no rows within its first {SPAN_S:g} s; it needs at least one")
    span_s = min(SPAN_S, arrivals[-1].at_s + 1.0)
    first = f"first {span_s / 60:.0f} min" if span_s >= 90 else f"first {span_s:.0f} s"
    licence = " (Azure 2023, CC-BY-4.0)" if path.name.startswith("azure2023") else ""
    return DemoWorkload(f"real trace {path.name}, {first}{licence}", arrivals, span_s)


def _rows(path: Path) -> Iterator[DemoArrival]:
    line = 0
    try:
        with _text(path) as text:
            reader = csv.reader(text)
            header = next(reader, [])
            line = 1
            if missing := [name for name in COLUMNS if name not in header]:
                raise TraceError(
                    f"{path}:1: has no column {', '.join(missing)}; a trace has {','.join(COLUMNS)}"
                )
            places = [header.index(name) for name in COLUMNS]
            last_s = 0.0
            for line, row in enumerate(reader, start=2):
                if not row:
                    continue
                arrival = _arrival(path, line, row, places)
                if arrival.at_s < last_s:
                    raise TraceError(
                        f"{path}:{line}: arrival_s {arrival.at_s:g} is before the line above ({last_s:g}); "
                        "sort the trace by arrival_s"
                    )
                last_s = arrival.at_s
                if last_s >= SPAN_S or line > ROWS_MAX:
                    return
                yield arrival
    except (OSError, EOFError, zlib.error) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise TraceError(f"{path}: cannot be read: {what}") from None
    except UnicodeDecodeError:
        raise TraceError(f"{path}:{line + 1}: is not text; give a CSV, plain or .gz") from None
    except csv.Error as error:
        raise TraceError(f"{path}:{line + 1}: is not CSV: {error}") from None


def _text(path: Path) -> io.TextIOWrapper:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.GzipFile(path), encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _arrival(path: Path, line: int, row: list[str], places: list[int]) -> DemoArrival:
    where = f"{path}:{line}"
    if len(row) <= max(places):
        raise TraceError(f"{where}: has {len(row)} columns, too few")
    at, prompt, output = (row[place] for place in places)
    try:
        at_s = float(at)
    except ValueError:
        at_s = -1.0
    if not 0.0 <= at_s < float("inf"):
        raise TraceError(f"{where}: arrival_s {at!r} is no number of seconds from 0 up")
    counts = []
    for name, text in (("input_tokens", prompt), ("output_tokens", output)):
        if not (text.strip().isdecimal() and 1 <= int(text) <= TOKENS_MAX):
            raise TraceError(f"{where}: {name} {text!r} is no number from 1 to {TOKENS_MAX}")
        counts.append(int(text))
    return DemoArrival(at_s, _whose(counts[0], line), *counts)


def _whose(input_tokens: int, line: int) -> str:
    if input_tokens > LONG_PROMPT_TOKENS:
        return BATCH
    return TRIAL if line % TRIAL_EVERY == 0 else CHAT


def generated(*, seed: int, span_s: float = 120.0) -> DemoWorkload:
    """Chat and trial: steady, short prompts. Batch: a burst of long ones every ten seconds. Seeded."""
    rng = Random(seed)
    arrivals = []
    for tenant, per_s in ((CHAT, 2.4), (TRIAL, 0.9)):
        at_s = 0.0
        while (at_s := at_s + rng.expovariate(per_s)) < span_s:
            prompt, output = _length(rng, median=220, most=1_000), _length(rng, median=90, most=400)
            arrivals.append(DemoArrival(at_s, tenant, prompt, output))
    for burst_s in range(2, int(span_s), 10):
        for _ in range(rng.randint(14, 24)):
            prompt, output = _length(rng, median=1_800, most=4_000), _length(rng, median=60, most=300)
            arrivals.append(DemoArrival(burst_s + rng.random(), BATCH, prompt, output))
    arrivals.sort(key=lambda arrival: arrival.at_s)
    return DemoWorkload("generated (no trace at hand; --trace FILE replays one)", tuple(arrivals), span_s)


def _length(rng: Random, *, median: int, most: int) -> int:
    return max(4, min(most, round(median * rng.lognormvariate(0.0, 0.6))))


def gaps(work: DemoWorkload) -> Iterator[tuple[float, DemoArrival]]:
    """(seconds since the one before, arrival) over one span."""
    if work.arrivals:
        yield work.arrivals[0].at_s, work.arrivals[0]
    for before, arrival in pairwise(work.arrivals):
        yield arrival.at_s - before.at_s, arrival

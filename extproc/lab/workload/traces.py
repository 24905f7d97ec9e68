"""Reads public serving traces: Azure's CSV, Mooncake's JSON lines, ServeGen's clients.

Owns the formats and their mistakes. Files are streamed from where they lie, gzip or plain; nothing is
copied. What is drawn by chance comes from the seed alone.

`load` finds the format in the file's first line. Azure and Mooncake have one tenant, named after the
trace; ServeGen's clients are tenants (see `servegen.py` for how they are sampled).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

import msgspec

from extproc.lab.workload.fit import ClientLimits, Draw, Oversize, assemble
from extproc.lab.workload.servegen import (
    DURATION_S,
    REQUESTS_PER_S,
    Header,
    ServeGenClient,
    parse_client,
    parse_header,
    sample,
)
from extproc.sim.arrival import NS_PER_S, Workload, WorkloadError

AZURE_COLUMNS: Final = "arrival_s,input_tokens,output_tokens"
MOONCAKE_BLOCK_TOKENS: Final = 512
# The reduced files' keys, and the release's own.
_MOONCAKE_KEYS: Final = (
    ("t", "i", "o", "h"),
    ("timestamp", "input_length", "output_length", "hash_ids"),
)

Lines = Iterator[tuple[int, str]]


def load(
    path: str | Path,
    *,
    seed: int,
    limit: int | None = None,
    start_s: float = 0.0,
    duration_s: float | None = None,
    requests_per_s: float | None = None,
    max_total_tokens: int | None = None,
    oversize: Oversize = "drop",
    limits: ClientLimits | None = None,
) -> Workload:
    """The trace's arrivals of `[start_s, start_s + duration_s)`, times counted from `start_s`.

    `limit` bounds the arrivals kept. `requests_per_s` stretches Azure and Mooncake in time and scales
    ServeGen's clients (whose own rates are thousands a second: without it they make
    `servegen.REQUESTS_PER_S`, for `servegen.DURATION_S`). `max_total_tokens`, `oversize` and `limits`
    are `fit.assemble`'s. `WorkloadError` names file, line and mend.
    """
    path = Path(path)
    if not start_s >= 0 or (duration_s is not None and not duration_s > 0):
        raise WorkloadError(f"{path}: start_s must be at least 0 and duration_s above 0")
    name = path.name.removesuffix(".gz").removesuffix(".csv").removesuffix(".jsonl")
    lines = _lines(path)
    number, first = next(lines, (1, ""))
    end_s = start_s + duration_s if duration_s is not None else float("inf")
    block_tokens = 16
    scale_time = True
    if first.startswith("arrival_s"):
        draws = _window(_azure(path, first, lines, name.split("_")[0]), start_s, end_s)
    elif first.startswith("{"):
        document = _decode(path, number, first)
        if "window_s" in document:
            header = parse_header(path, document)
            clients = [
                parse_client(path, at, _decode(path, at, line), header) for at, line in lines if line.strip()
            ]
            draws = sample(
                clients,
                header,
                seed=seed,
                start_s=start_s,
                duration_s=duration_s or DURATION_S,
                requests_per_s=requests_per_s or REQUESTS_PER_S,
                path=path,
            )
            scale_time = False
        else:
            block_tokens = MOONCAKE_BLOCK_TOKENS
            draws = _window(
                _mooncake(path, chain([(number, first)], lines), name.split("_")[0]), start_s, end_s
            )
    else:
        raise WorkloadError(
            f"{path}:{number}: not a known trace; the first line must be {AZURE_COLUMNS!r} (Azure), a JSON "
            "object with t, i, o, h (Mooncake) or ServeGen's header with window_s"
        )
    workload = assemble(
        name,
        draws,
        seed=seed,
        block_tokens=block_tokens,
        limit=limit,
        max_total_tokens=max_total_tokens,
        oversize=oversize,
        limits=limits,
    )
    if not workload.arrivals:
        raise WorkloadError(
            f"{path}: no arrival in {start_s:g} to {end_s:g} s that fits; widen the range or max_total_tokens"
        )
    return workload.rescaled(requests_per_s) if requests_per_s and scale_time else workload


def servegen_clients(path: Path) -> tuple[Header, list[ServeGenClient]]:
    """ServeGen's clients as the file has them, for who samples them otherwise; `WorkloadError`."""
    lines = _lines(path)
    number, first = next(lines, (1, ""))
    header = parse_header(path, _decode(path, number, first))
    return header, [
        parse_client(path, at, _decode(path, at, line), header) for at, line in lines if line.strip()
    ]


def _lines(path: Path) -> Lines:
    """Numbered lines of a gzip or plain file, told apart by the first two bytes."""
    try:
        with path.open("rb") as probe:
            packed = probe.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rt", encoding="utf-8") if packed else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield number, line.rstrip("\r\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise WorkloadError(f"{path}: damaged gzip ({error}); fetch the trace again") from None
    except UnicodeDecodeError as error:
        raise WorkloadError(f"{path}: not UTF-8 text ({error.reason}); is it a trace?") from None
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read ({error.strerror}); give a trace's path") from None


def _decode(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise WorkloadError(f"{path}:{number}: not JSON ({error}); mend or drop the line") from None
    if not isinstance(document, dict):
        raise WorkloadError(f"{path}:{number}: must be a JSON object; mend or drop the line")
    return document


def _window(draws: Iterator[Draw], start_s: float, end_s: float) -> Iterator[Draw]:
    """Those inside the range, counted from its start; stops reading behind it."""
    start_ns = round(start_s * NS_PER_S)
    for draw in draws:
        if draw.at_ns >= end_s * NS_PER_S:
            return
        if draw.at_ns >= start_ns:
            yield draw._replace(at_ns=draw.at_ns - start_ns)


def _ordered(path: Path, number: int, draw: Draw, before_ns: int) -> Draw:
    """What every row must hold, whatever its format."""
    if draw.at_ns < before_ns:
        raise WorkloadError(
            f"{path}:{number}: arrives before the line above or before 0; sort the file by time"
        )
    for field, tokens in (("input", draw.prompt_tokens), ("output", draw.output_tokens)):
        if tokens < 1:
            raise WorkloadError(
                f"{path}:{number}: {field} tokens must be at least 1, not {tokens}; drop the line"
            )
    return draw


def _azure(path: Path, header: str, lines: Lines, tenant: str) -> Iterator[Draw]:
    if header.strip() != AZURE_COLUMNS:
        raise WorkloadError(f"{path}:1: the columns must be {AZURE_COLUMNS!r}, not {header!r}")
    before_ns = 0
    for number, line in lines:
        if not line.strip():
            continue
        try:
            at, prompt, output = line.split(",")
            draw = Draw(round(float(at) * NS_PER_S), tenant, int(prompt), int(output))
        except (ValueError, OverflowError):
            raise WorkloadError(
                f"{path}:{number}: must be seconds and two whole numbers ({AZURE_COLUMNS}), "
                f"not {line[:80]!r}; mend or drop the line"
            ) from None
        before_ns = _ordered(path, number, draw, before_ns).at_ns
        yield draw


def _mooncake(path: Path, lines: Lines, tenant: str) -> Iterator[Draw]:
    """A prompt's last id may stand for a partly filled block: only full ones are kept."""
    before_ns = 0
    keys: tuple[str, ...] | None = None
    for number, line in lines:
        if not line.strip():
            continue
        row = _decode(path, number, line)
        keys = keys or next((known for known in _MOONCAKE_KEYS if known[0] in row), _MOONCAKE_KEYS[0])
        missing = [key for key in keys if key not in row]
        if missing:
            raise WorkloadError(f"{path}:{number}: lacks {', '.join(missing)}; mend or drop the line")
        at, prompt, output, blocks = (row[key] for key in keys)
        numbers = (prompt, output, *blocks) if isinstance(blocks, list) else ("",)
        if not isinstance(at, int | float) or not all(isinstance(one, int) for one in numbers):
            raise WorkloadError(
                f"{path}:{number}: {', '.join(keys)} must be milliseconds, two whole numbers and a list of "
                "whole numbers; mend or drop the line"
            )
        full = tuple(islice(blocks, max(prompt, 0) // MOONCAKE_BLOCK_TOKENS))
        ending = blocks[-1] if blocks else None
        draw = Draw(round(at * 1_000_000), tenant, prompt, output, full, ending=ending)
        before_ns = _ordered(path, number, draw, before_ns).at_ns
        yield draw

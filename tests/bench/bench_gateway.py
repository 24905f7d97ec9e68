"""What the whole costs: Envoy alone, with a no-op ext_proc service, with Steersman, in one run.

Blocks of requests alternate between them, so that a noisy neighbour hits all. CPU per request is the figure
that holds on a shared machine; added times hold as a ratio; the best rate is that of the whole machine, load
and engines included, where that has fewer than four quiet cores.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import uvloop
from gateway import KEYS
from load import Load, request_bytes
from rows import Row, cpu_ns, percentile
from variants import ALONE, NOOP, OURS, Variant, variants

BLOCKS = 3
#: One after the other, in a block.
CLOSED = 150
OPEN_S = 2.0
CONNECTIONS, SATURATED_S = 64, 2.0

ADDED_C1_MS, ADDED_OPEN_MS, ADDED_P99_MS = 1.2, 2.0, 5.0
STREAM_TIMES_ALONE, STREAM_PLUS_US = 1.5, 800.0
LARGE_US = 4_000.0


@dataclass(frozen=True)
class Kind:
    """What is asked, and how often a second in the open loop."""

    name: str
    prompt_bytes: int
    rate_per_s: float
    stream: bool = False

    def request(self) -> bytes:
        """One such request."""
        said = {"stream": True} if self.stream else {}
        messages = [{"role": "user", "content": "x" * self.prompt_bytes}]
        body = json.dumps({**said, "model": "m", "messages": messages})
        return request_bytes(body.encode(), KEYS["acme"])


KINDS = (
    Kind("plain", 1_000, 200.0),
    Kind("stream of 16", 1_000, 200.0, stream=True),
    Kind("400 KB", 400_000, 40.0),
)


@dataclass
class Measured:
    """One variant's figures for one kind of request."""

    closed_ms: list[float] = field(default_factory=list)
    open_ms: list[float] = field(default_factory=list)
    #: CPU per request in the open loop, block by block; Envoy's, the service's.
    envoy_us: list[float] = field(default_factory=list)
    service_us: list[float] = field(default_factory=list)
    #: Both together, at saturation.
    saturated_us: list[float] = field(default_factory=list)
    best_per_s: list[float] = field(default_factory=list)
    failed: int = 0
    refused: int = 0

    @property
    def whole_us(self) -> float:
        """Envoy's and the service's, in the open loop."""
        return _median(self.envoy_us) + _median(self.service_us)


def run() -> Iterator[Row]:
    """Yield microseconds of CPU, milliseconds added and requests a second, each beside its aim."""
    with variants() as found:
        yield from uvloop.run(_measure(found))


def _median(values: list[float]) -> float:
    return percentile(values, 0.5)


def _spent(variant: Variant) -> tuple[int, int]:
    return cpu_ns(variant.envoy_pid), cpu_ns(variant.service_pid) if variant.service_pid else 0


async def _measure(found: list[Variant]) -> list[Row]:
    rows: list[Row] = []
    for kind in KINDS:
        request = kind.request()
        measured = {variant.name: Measured() for variant in found}
        loads = {variant.name: Load(variant.port) for variant in found}
        for load in loads.values():
            await load.closed(request, 50)  # warm
        for block in range(BLOCKS):
            turn = block % len(found)
            for variant in found[turn:] + found[:turn]:
                await _block(variant, loads[variant.name], kind, request, measured[variant.name])
        for name, load in loads.items():
            measured[name].failed, measured[name].refused = load.failed, load.refused
            load.close()
        _print(kind, measured)
        rows += _rows(kind, measured)
    return rows


async def _block(variant: Variant, load: Load, kind: Kind, request: bytes, into: Measured) -> None:
    into.closed_ms += await load.closed(request, CLOSED)
    before = _spent(variant)
    took = await load.open(request, kind.rate_per_s, OPEN_S)
    await asyncio.sleep(0.1)  # what comes after an answer is part of what it costs
    envoy, service = (b - a for a, b in zip(before, _spent(variant), strict=True))
    into.open_ms += took
    into.envoy_us.append(envoy / 1e3 / max(1, len(took)))
    into.service_us.append(service / 1e3 / max(1, len(took)))
    before = _spent(variant)
    rate = await load.saturate(request, CONNECTIONS, SATURATED_S)
    spent = sum(_spent(variant)) - sum(before)
    into.best_per_s.append(rate)
    into.saturated_us.append(spent / 1e3 / max(1.0, rate * SATURATED_S))
    await asyncio.sleep(0.2)


def _print(kind: Kind, measured: dict[str, Measured]) -> None:
    at = f"{kind.rate_per_s:g}/s"
    print(f"\n{kind.name}: CPU per request in µs, times in ms")
    print(
        f"{'':26}{'Envoy':>8}{'service':>9}{'whole':>8}{'full':>8}{'p50 c=1':>9}{'p50 ' + at:>10}"
        f"{'p99 ' + at:>10}{'best/s':>9}{'failed':>8}{'429':>5}"
    )
    for name, m in measured.items():
        print(
            f"{name:26}{_median(m.envoy_us):8.0f}{_median(m.service_us):9.0f}{m.whole_us:8.0f}"
            f"{_median(m.saturated_us):8.0f}{_median(m.closed_ms):9.2f}{_median(m.open_ms):10.2f}"
            f"{percentile(m.open_ms, 0.99):10.2f}{max(m.best_per_s):9.0f}{m.failed:8}{m.refused:5}"
        )


def _rows(kind: Kind, measured: dict[str, Measured]) -> Iterator[Row]:
    alone, noop = measured[ALONE], measured[NOOP]
    plain, at = kind.name == "plain", f"{kind.rate_per_s:g}/s"
    if plain:
        cpu_aim = noop.whole_us
    elif kind.stream:
        cpu_aim = STREAM_TIMES_ALONE * alone.whole_us + STREAM_PLUS_US
    else:
        cpu_aim = LARGE_US
    for name in (NOOP, *OURS):
        m, ours, said = measured[name], name != NOOP, f"{kind.name}, {name}"
        added = {
            "p50, concurrency 1": (_median(m.closed_ms) - _median(alone.closed_ms), ADDED_C1_MS),
            f"p50, {at}": (_median(m.open_ms) - _median(alone.open_ms), ADDED_OPEN_MS),
            f"p99, {at}": (percentile(m.open_ms, 0.99) - percentile(alone.open_ms, 0.99), ADDED_P99_MS),
        }
        yield Row(f"{said}: CPU, Envoy + service", m.whole_us, "µs", cpu_aim if ours else None)
        yield Row(f"{said}: CPU, service", _median(m.service_us), "µs")
        for what, (value, aim) in added.items():
            yield Row(f"{said}: added, {what}", value, "ms", aim if ours and plain else None)
        least = max(noop.best_per_s) if ours and plain else None
        yield Row(f"{said}: best", max(m.best_per_s), "/s", least, more=True)
        yield Row(f"{said}: failed", float(m.failed), "", 0.0)

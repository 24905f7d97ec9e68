"""What a bench yields, and the small measuring tools that benches share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from extproc.core.events import Settled
from extproc.core.outcome import Outcome
from extproc.core.quota import Amounts
from extproc.core.slo import ClassSpec, sample_of


@dataclass(frozen=True)
class Row:
    """One figure; `aim` is what was hoped for, in the same unit: no more than it, or at least it (`more`)."""

    name: str
    value: float
    unit: str
    aim: float | None = None
    more: bool = False

    def __str__(self) -> str:
        aim = ""
        if self.aim is not None:
            met = self.value >= self.aim if self.more else self.value <= self.aim
            aim = f"  (aim {'≥ ' if self.more else ''}{self.aim:g}: {'met' if met else 'MISSED'})"
        return f"{self.name:<66} {self.value:>10.2f} {self.unit}{aim}"


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def best_us(call: Callable[[], object], *, rounds: int = 7, seconds: float = 0.15) -> float:
    """Microseconds per call: the median of several rounds, each long enough to time."""
    count = 1
    while True:
        began = time.perf_counter()
        for _ in range(count):
            call()
        took = time.perf_counter() - began
        if took > seconds / 4:
            break
        count *= 2
    figures = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(count):
            call()
        figures.append((time.perf_counter() - began) / count * 1e6)
    return sorted(figures)[rounds // 2]


def cpu_ns(pid: int) -> int:
    """CPU time of a process with all its threads, in nanoseconds (the scheduler's own account)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            continue  # the thread ended between the listing and the reading
    return total


def settled(outcome: Outcome) -> Settled:
    """What observers hear of an end of this service's."""
    charged = Amounts(1, outcome.prompt_tokens or 0, outcome.output_tokens or 0, 3.5, 0.001)
    return Settled(outcome, charged, sample_of(outcome, ClassSpec()), here=True)

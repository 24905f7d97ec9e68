"""What is made of runs: a row a cell over its seeds, as text, and the bars for the default. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from types import MappingProxyType

from play import Played

#: Column widths after the balancer's name.
_HEAD = (
    f"{'balancer':<34}{'not served':>22}{'TTFT p50 ms':>18}{'p90':>18}{'p99':>20}{'hit':>18}"
    f"{'shed idle':>11}{'CPU s':>7}  by replica"
)


@dataclass(frozen=True, slots=True)
class Bar:
    """What one figure of one cell must reach: `most` or `least` of it, in the figure's unit."""

    figure: str
    most: float | None = None
    least: float | None = None

    @property
    def text(self) -> str:
        """As it is printed."""
        return (
            f"{self.figure} <= {self.most:g}" if self.most is not None else f"{self.figure} >= {self.least:g}"
        )

    def met(self, values: Sequence[float]) -> bool:
        """Every run keeps it; a figure that there is not (nothing served) does not."""
        if any(isnan(value) for value in values):
            return False
        if self.most is not None:
            return max(values) <= self.most
        assert self.least is not None
        return min(values) >= self.least


FIGURES: Mapping[str, Callable[[Played], float]] = MappingProxyType(
    {
        "not served": lambda run: run.not_served,
        "p50 ms": lambda run: run.p50_ms,
        "p99 ms": lambda run: run.p99_ms,
        "hit": lambda run: run.hit,
    }
)
#: By engine and shape, at the engine's own rate or below it.
BARS: Mapping[tuple[str, str], tuple[Bar, ...]] = MappingProxyType(
    {
        ("parallel", "uniform"): (Bar("p99 ms", most=250), Bar("hit", least=0.83)),
        ("parallel", "hetero"): (Bar("p99 ms", most=350), Bar("hit", least=0.80)),
        ("parallel", "flaky"): (Bar("p99 ms", most=350), Bar("hit", least=0.80)),
        ("serial", "uniform"): (Bar("p50 ms", most=45), Bar("p99 ms", most=740), Bar("hit", least=0.81)),
    }
)
NONE_LOST = Bar("not served", most=0)


def bars_of(engine: str, shape: str, *, rate_per_s: float, own_rate_per_s: float) -> tuple[Bar, ...]:
    """What holds in a cell; nothing above the rate that the bars were set at, where replicas may be full."""
    return (NONE_LOST, *BARS.get((engine, shape), ())) if rate_per_s <= own_rate_per_s else ()


def mean(values: Sequence[float]) -> float:
    """Of at least one."""
    return sum(values) / len(values)


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The mean, and the range where there are several."""
    told = f"{mean(values):.{digits}f}"
    if len(values) > 1:
        told += f" ({min(values):.{digits}f}-{max(values):.{digits}f})"
    return told


def head() -> str:
    """The table's first line."""
    return _HEAD


def line(runs: Sequence[Played]) -> str:
    """One cell: a balancer, an engine, a shape and a rate, a run for each seed."""
    requests = runs[0].case.mock.requests
    lost = spread([run.not_served for run in runs]) + f" of {requests}"
    at = [round(mean([run.at[i] for run in runs])) for i in range(len(runs[0].at))]
    return (
        f"{runs[0].case.name:<34}{lost:>22}{spread([run.p50_ms for run in runs]):>18}"
        f"{spread([run.p90_ms for run in runs]):>18}{spread([run.p99_ms for run in runs]):>20}"
        f"{spread([run.hit for run in runs], 2):>18}{sum(run.idle_shed for run in runs):>11}"
        f"{mean([run.cpu_s for run in runs]):>7.1f}  {at}"
    )


def verdicts(runs: Sequence[Played], bars: Sequence[Bar]) -> list[tuple[Bar, bool]]:
    """Each bar, and whether every one of these runs meets it."""
    return [(bar, bar.met([FIGURES[bar.figure](run) for run in runs])) for bar in bars]


def told(runs: Sequence[Played], bars: Sequence[Bar]) -> str:
    """The verdicts and what else the service says of itself, as a line below the row."""
    parts = [f"{bar.text}: {'met' if good else 'MISSED'}" for bar, good in verdicts(runs, bars)]
    failed, shed = sum(run.failed for run in runs), sum(run.shed for run in runs)
    if failed or shed:
        parts.append(f"failed {failed}, shed {shed}")
    counts = [run.errors.get("counts", {}) for run in runs]
    if any("shed.idle" in each for each in counts):
        parts.append(f"shed.idle by its own count {sum(each.get('shed.idle', 0) for each in counts)}")
    parts.append(f"client late p99 {max(run.late_ms for run in runs):.1f} ms")
    return "    " + "; ".join(parts)

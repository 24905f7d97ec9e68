"""Judges the ways of forecasting on public weeks: `python -m extproc.lab.forecasts WEEKS.csv.gz`.

Owns the replay of a trace's windows as counts: rates between windows' means are drawn straight, scaled to a
peak, and counted with noise of a given dispersion (made up: the weeks have means of ten minutes alone). The
first half is learnt from; in the second each method's median and upper end meet the true rate.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from random import Random
from typing import Final

from extproc.core.scaling.forecast import HIGH, METHODS, Forecaster

WINDOW_S: Final = 600.0
BUCKET_S: Final = 10.0
PEAK: Final = 40.0
DISPERSION: Final = 3.0
HORIZONS_S: Final = (30.0, 85.0, 325.0, 1200.0)
#: A window below this share of the median is a gap of the recording, as the traces' README says of zeros.
GAP_SHARE: Final = 0.1


def windows(path: Path) -> list[float]:
    """The mean rate of each window, gaps as the window before."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rates = [float(line.split(",")[1]) for line in file if line[:1].isdigit()]
    least = GAP_SHARE * sorted(rates)[len(rates) // 2]
    for i, rate in enumerate(rates):
        if rate < least and i:
            rates[i] = rates[i - 1]
    return rates


def rates_at(means: list[float], count: int) -> Iterator[float]:
    """Requests a second in the middle of each bucket: straight from edge to middle to edge of each window."""
    most = max(means)
    for i in range(count):
        at_s = (i + 0.5) * BUCKET_S
        k = min(int(at_s // WINDOW_S), len(means) - 1)
        before, here = means[max(0, k - 1)], means[k]
        after = means[min(len(means) - 1, k + 1)]
        left, right = (before + here) / 2.0, (here + after) / 2.0
        middle = max(0.0, 2.0 * here - (left + right) / 2.0)
        part = at_s % WINDOW_S / WINDOW_S
        rate = left + (middle - left) * 2 * part if part < 0.5 else right + (middle - right) * 2 * (1 - part)
        yield max(0.0, rate) * PEAK / most


def judged(
    means: list[float], *, days: float, ahead_s: float, seed: int
) -> dict[str, tuple[float, float, float]]:
    """By method: pinball losses of the median and of `HIGH` as shares of the mean rate, and how often what
    came was at most the upper end."""
    count = min(int(days * 86_400 / BUCKET_S), int(len(means) * WINDOW_S / BUCKET_S))
    rng, known, ahead = Random(seed), Forecaster(BUCKET_S), round(ahead_s / BUCKET_S)
    known.look(ahead_s)
    rates = list(rates_at(means, count))
    sums: dict[str, list[float]] = {name: [0.0, 0.0, 0.0] for name in (*METHODS, "auto")}
    total = 0.0
    many = 0
    for i, rate in enumerate(rates):
        mean = rate * BUCKET_S
        known.saw(i, max(0.0, rng.gauss(mean, sqrt(DISPERSION * mean))))
        if i < count // 2 or i % 6 or i + ahead >= count:
            continue
        actual = rates[i + ahead]
        total += actual
        many += 1
        for name, found in sums.items():
            known.method = name
            band = known.band(ahead_s)
            for at, (share, end) in enumerate(((0.5, band.median), (HIGH, band.high))):
                found[at] += max(share * (actual - end), (share - 1.0) * (actual - end))
            found[2] += actual <= band.high
        known.method = "auto"
    return {
        name: (2.0 * low / total, 2.0 * high / total, inside / many)
        for name, (low, high, inside) in sums.items()
    }


def main() -> None:
    """Print a table a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weeks", nargs="+", type=Path)
    parser.add_argument("--days", type=float, default=14.0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    for path in asked.weeks:
        means = windows(path)
        print(f"{path.name}: loss of the median (%), of the upper end (%), share at most the upper end")
        for ahead_s in HORIZONS_S:
            row = judged(means, days=asked.days, ahead_s=ahead_s, seed=asked.seed)
            cells = (
                f"{name} {100 * a:.1f} {100 * b:.1f} {inside:.2f}" for name, (a, b, inside) in row.items()
            )
            print(f"  {ahead_s:5.0f} s  " + "   ".join(cells), flush=True)


if __name__ == "__main__":
    main()

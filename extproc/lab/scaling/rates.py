"""How much comes when: the weeks of a trace, and curves made up from a few numbers.

Owns the curves (requests a second, windows of equal length) and the reading of the weeks' file. Who sends
and what is `traffic.py`'s.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import cos, pi
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from extproc.sim.arrival import WorkloadError

Series = NDArray[np.float64]

COLUMNS: Final = "t_s,rate,clients_active,largest_client_rate"
#: A window below this share of the median is a gap of the recording, and is filled.
GAP_SHARE: Final = 0.1
DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class RateCurve:
    """Mean rates of windows of `window_s` seconds, any unit; `filled` of them were gaps."""

    name: str
    window_s: float
    rates: Series
    filled: int = 0

    @property
    def duration_s(self) -> float:
        """From its beginning to its end."""
        return self.window_s * len(self.rates)

    def scaled(self, most: float) -> RateCurve:
        """The same with its highest window at `most`."""
        return RateCurve(self.name, self.window_s, self.rates * (most / float(self.rates.max())), self.filled)

    def edges(self) -> Series:
        """Rates at the windows' edges (one more than windows): halfway between neighbours' means."""
        inner = (self.rates[1:] + self.rates[:-1]) / 2
        return np.concatenate([self.rates[:1], inner, self.rates[-1:]])

    def head(self, duration_s: float) -> RateCurve:
        """Its beginning, whole windows."""
        return RateCurve(
            self.name, self.window_s, self.rates[: max(1, round(duration_s / self.window_s))], self.filled
        )


def read_weeks(path: Path, *, fill: bool = True) -> RateCurve:
    """The weeks' file: a comment, the columns, a row a window. `WorkloadError` names file, line and mend.

    Zeros may be gaps of the recording (the file's own word): windows below a tenth of the median are drawn
    straight between their neighbours, unless `fill` is False.
    """
    times: list[float] = []
    rates: list[float] = []
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8") if _packed(path) else path.open(encoding="utf-8") as file
        ):
            for number, line in enumerate(file, 1):
                if not line.strip() or line.startswith(("#", "t_s")):
                    continue
                try:
                    at, rate = (float(one) for one in line.split(",")[:2])
                    if not (rate >= 0 and at >= 0):
                        raise ValueError
                except ValueError:
                    raise WorkloadError(
                        f"{path}:{number}: must be {COLUMNS}, numbers of at least 0, not {line[:80]!r}; "
                        "mend or drop the line"
                    ) from None
                times.append(at)
                rates.append(rate)
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise WorkloadError(f"{path}: damaged ({error}); fetch the trace again") from None
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read ({error.strerror}); give the weeks' path") from None
    if len(rates) < 2 or times[1] <= times[0]:
        raise WorkloadError(f"{path}: needs at least two rows in time order ({COLUMNS})")
    window_s = times[1] - times[0]
    if any(abs(later - sooner - window_s) > 1e-6 for sooner, later in pairwise(times)):
        raise WorkloadError(f"{path}: the rows must be {window_s:g} s apart all through; mend the file")
    values = np.array(rates)
    if not values.max() > 0:
        raise WorkloadError(f"{path}: nothing but zeros")
    low = values < GAP_SHARE * float(np.median(values[values > 0]))
    if fill and low.any() and not low.all():
        places = np.arange(len(values))
        values = np.where(low, np.interp(places, places[~low], values[~low]), values)
    name = path.name.removesuffix(".gz").removesuffix(".csv")
    return RateCurve(name, window_s, values, int(low.sum()) if fill else 0)


def _packed(path: Path) -> bool:
    with path.open("rb") as probe:
        return probe.read(2) == b"\x1f\x8b"


def _ramp(hour: float) -> float:
    """From a quarter to the whole in an hour, an hour there, and back."""
    return 0.25 + 0.75 * min(1.0, max(0.0, hour - 1.0), max(0.0, 4.0 - hour))


def _steps(hour: float) -> float:
    """Up and down by a third and by two, each for an hour."""
    return (1 / 3, 2 / 3, 1.0, 1 / 3, 1.0, 2 / 3)[int(hour) % 6]


def _season(hour: float) -> float:
    """A working week: nights at a fifth, weekends at half a day."""
    day = 0.6 + 0.4 * cos(2 * pi * (hour - 14.0) / 24.0)
    return day * (0.5 if int(hour / 24) % 7 >= 5 else 1.0)


def _flash(hour: float) -> float:
    """A calm day, and at noon three times as much within a minute, which fades over half an hour."""
    after = hour - 12.0
    calm = 0.3 + 0.05 * cos(2 * pi * (hour - 14.0) / 24.0)
    return calm + (
        0.65 * min(1.0, after * 60.0) * 0.5 ** (max(0.0, after - 0.25) / 0.25) if after > 0 else 0.0
    )


#: Curves made up: hours, seconds a window, and the share (0..1) of the peak at an hour.
SYNTHETIC_CURVES: Final[dict[str, tuple[float, float, Callable[[float], float]]]] = {
    "ramp": (5.0, 30.0, _ramp),
    "step": (12.0, 30.0, _steps),
    "season": (14 * 24.0, 600.0, _season),
    "flash": (24.0, 30.0, _flash),
}


def synthetic(name: str) -> RateCurve:
    """A curve of `SYNTHETIC_CURVES`."""
    hours, window_s, shape = SYNTHETIC_CURVES[name]
    count = round(hours * 3600 / window_s)
    return RateCurve(name, window_s, np.array([shape((at + 0.5) * window_s / 3600) for at in range(count)]))

"""Which days and weeks are played, and what is kept of them on disk.

Owns the workloads by name (traces of weeks with a day's clients, curves made up), their scale, and the store:
one file a part, named by what it depends on, so that a run goes on where one stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import numpy as np

import extproc
from extproc.lab.scaling.rates import SYNTHETIC_CURVES, RateCurve, read_weeks, synthetic
from extproc.lab.scaling.traffic import (
    Clients,
    CountedTraffic,
    WorkModel,
    counted,
    from_day,
    made_up,
    mean_work_s,
)
from extproc.sim.timing import hardware_named

HARDWARE_NAME: Final = "a100-tp4/llama-2-70b"
CARDS: Final = 4
LOAD_TIMES_S: Final = (5.0, 60.0, 300.0)
SEEDS: Final = (1, 2, 3)
#: Replicas that weeks use wholly in the mean, and that a made-up curve uses at its peak.
MEAN_REPLICAS: Final = 6.0
PEAK_REPLICAS: Final = 12.0
#: (weeks, day) of the public traces, in their folder.
TRACE_PAIRS: Final = (
    ("servegen_m-mid_weeks.csv.gz", "servegen_m-mid_day12.jsonl.gz"),
    ("servegen_m-small_weeks.csv.gz", "servegen_m-small_day9.jsonl.gz"),
)

Kept = TypeVar("Kept")
#: What each part's result depends on, under the package.
_CODE: Final = ("lab/scaling/*.py", "lab/workload/servegen.py", "sim/timing.py", "sim/capacity.py")
_PLANNER: Final = ("core/scaling/*.py", "lab/scaling/ours.py")
#: Beside them, in their folder: what shows results, and ours (which is `_PLANNER`'s).
_NOT_OF_RESULTS: Final = ("report.py", "__main__.py", "check.py", "ours.py")
_TRAFFIC: Final = (*_CODE[1:], "lab/scaling/traffic.py", "lab/scaling/rates.py")
_CURVE: Final = (*_TRAFFIC, "lab/scaling/measure.py", "lab/scaling/requests.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingCase:
    """One workload and seed. `weeks` and `day` are files ("" for a curve made up); `days` 0 is all of it."""

    name: str
    seed: int
    weeks: str = ""
    day: str = ""
    days: float = 0.0
    fill: bool = True
    load_times_s: tuple[float, ...] = LOAD_TIMES_S


def curve_of(case: ScalingCase) -> tuple[RateCurve, Clients]:
    """Its curve in requests a second, at its scale, and who sends; `WorkloadError`."""
    clients = clients_of(case.day)
    each_s = mean_work_s(clients, work_model())
    if case.weeks:
        curve = read_weeks(Path(case.weeks), fill=case.fill)
        most = float(curve.rates.max() / curve.rates.mean()) * MEAN_REPLICAS
    else:
        curve, most = synthetic(case.name), PEAK_REPLICAS
    curve = curve.scaled(most / each_s)
    return (curve.head(case.days * 86_400) if case.days else curve), clients


@lru_cache(maxsize=2)
def clients_of(day: str) -> Clients:
    """A day file's, or made-up chat for ""."""
    return from_day(Path(day)) if day else made_up()


@cache
def work_model() -> WorkModel:
    """Of the hardware that is played."""
    return WorkModel(hardware_named(HARDWARE_NAME))


def cases(
    *,
    pairs: Sequence[tuple[Path, Path]],
    synthetics: Sequence[str] = tuple(SYNTHETIC_CURVES),
    seeds: Sequence[int] = SEEDS,
    days: float = 0.0,
    fill: bool = True,
    load_times_s: tuple[float, ...] = LOAD_TIMES_S,
) -> list[ScalingCase]:
    """All workloads, a seed through all of them before the next."""
    found = []
    for seed in seeds:
        found += [
            ScalingCase(
                name=weeks.name.partition(".")[0],
                seed=seed,
                weeks=str(weeks),
                day=str(day),
                days=days,
                fill=fill,
                load_times_s=load_times_s,
            )
            for weeks, day in pairs
        ]
        found += [
            ScalingCase(
                name=name,
                seed=seed,
                days=days if SYNTHETIC_CURVES[name][0] > 24 else 0.0,
                load_times_s=load_times_s,
            )
            for name in synthetics
        ]
    return found


@cache
def _version(patterns: tuple[str, ...]) -> str:
    root = Path(extproc.__file__).parent
    digest = sha256()
    for pattern in patterns:
        for path in sorted(root.glob(pattern)):
            if path.name not in _NOT_OF_RESULTS or path.name in patterns[-1]:
                digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


class ScalingStore:
    """Results and counted traffic on disk; half a file is never there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def part(self, case: ScalingCase, part: str, kind: type[Kept], make: Callable[[], Kept]) -> Kept:
        """What was kept of a part, else what `make` makes, which is kept."""
        path = self._path(case, part, ".json", self._code(part))
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except (FileNotFoundError, msgspec.MsgspecError):
            made = make()
        self._put(path, msgspec.json.encode(made))
        return made

    def traffic(self, case: ScalingCase) -> CountedTraffic:
        """Its requests, counted once."""
        path = self._path(case, "traffic", ".npz", _TRAFFIC)
        if not path.is_file():
            curve, clients = curve_of(case)
            made = counted(clients, curve, work_model(), seed=case.seed)
            half = path.with_suffix(f".{os.getpid()}.npz")
            np.savez(
                half,
                requests=made.requests,
                load=made.load,
                lengths=np.array([pair for window in made.samples for pair in window]),
                counts=np.array([len(window) for window in made.samples]),
                sample_steps=made.sample_steps,
            )
            half.replace(path)
        with np.load(path) as kept:
            lengths = [tuple(pair) for pair in kept["lengths"].tolist()]
            ends = np.cumsum(kept["counts"]).tolist()
            samples = tuple(
                tuple(lengths[end - count : end])
                for end, count in zip(ends, kept["counts"].tolist(), strict=True)
            )
            return CountedTraffic(
                case.name, kept["requests"], kept["load"], samples, int(kept["sample_steps"])
            )

    @staticmethod
    def _code(part: str) -> tuple[str, ...]:
        if part == "curve":
            return _CURVE
        return _CODE + _PLANNER if part.startswith("ours") else _CODE

    def _path(self, case: ScalingCase, part: str, suffix: str, code: tuple[str, ...]) -> Path:
        whole = msgspec.json.encode([msgspec.to_builtins(case), part, _version(code)])
        return self._folder / f"{sha256(whole).hexdigest()[:24]}{suffix}"

    @staticmethod
    def _put(path: Path, raw: bytes) -> None:
        half = path.with_suffix(f".{os.getpid()}.half")
        half.write_bytes(raw)
        half.replace(path)

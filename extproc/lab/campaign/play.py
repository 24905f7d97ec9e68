"""Plays cases: in this process or in several, each result stored as soon as it is there.

Owns the store (one JSON file a cell) and the processes. A key is the case and the code that played it, so
a changed core or simulator plays anew and an interrupted campaign goes on where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from hashlib import sha256
from itertools import islice
from pathlib import Path
from time import monotonic

import msgspec

import extproc
from extproc.core.catalogue import STRATEGY_NAMES
from extproc.core.series import quantile
from extproc.core.slo import ClassSpec
from extproc.lab.campaign.case import CampaignRun, Played
from extproc.lab.campaign.streams import arrivals_of, stood_in
from extproc.lab.report import SLO_8B, SLO_70B, Cell, figures, ttft_ms
from extproc.lab.strategies import check_strategy
from extproc.lab.workers import worker_pool
from extproc.sim.answers import CacheSize, left_of, repeated, with_hits
from extproc.sim.world import Setting, run
from extproc.sim.world.run import registered
from extproc.sim.world.sites import CENTRE_ADDRESS, play_sites

QUANTILES = 200
#: What a result depends on, under the package.
_CODE = (
    "core/**/*.py",
    "sim/*.py",
    "lab/workload/*.py",
    "sim/world/*.py",
    "lab/campaign/streams.py",
    "lab/campaign/play.py",
    "lab/report/figures.py",
    "sim/served.py",
)

Progress = Callable[[Played, int, int, bool], None]


@cache
def code_version() -> str:
    """A digest of the sources that a result depends on."""
    root = Path(extproc.__file__).parent
    digest = sha256()
    for pattern in _CODE:
        for path in sorted(root.glob(pattern)):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def slo_of(fleet: str) -> ClassSpec:
    """The bounds of a fleet's model: 70B has two seconds for a first token."""
    return SLO_70B if "70b" in fleet else SLO_8B


def play(case: CampaignRun, folder: Path) -> Played:
    """One case from its arrivals to its figures; WorkloadError, FleetError."""
    fleet = case.simulated_fleet
    workload, rate = arrivals_of(case, folder)
    slo = slo_of(case.fleet)
    check_strategy(case.strategy, {})  # this process may be a new one
    setting = Setting(strategy=case.strategy, seed=case.seed, parameters=dict(case.parameters), slo=slo)
    hits: list[bool] = []
    if case.cache_mib:
        size = CacheSize(bytes_max=round(case.cache_mib * 1024 * 1024), ttl_s=case.cache_ttl_s)
        hits = repeated(workload, size)
    result = (run if fleet.way is None else play_sites)(left_of(workload, hits), fleet, setting)
    served = with_hits(workload, hits, result.served) if hits else result.served
    found = figures(
        served,
        slo=slo,
        busy_s={address: busy / 1e9 for address, busy in result.busy_ns.items()},
        cost_per_hour=fleet.prices(),
        change_known_s=result.change_known_s,
    )
    first = sorted(ttft_ms(row) for row in served if row.outcome == "ok")
    points = min(QUANTILES, len(first))
    name = case.workload
    if stood_in(case.stream, folder):
        name = f"stand-in for {name}"
    if hits:
        name += f", {sum(hits) / len(hits):.1%} from a cache"
    return Played(
        case=case,
        cell=Cell(name, case.load, case.strategy, case.seed, found),
        ttft_ms=tuple(round(quantile(first, (at + 0.5) / points), 3) for at in range(points)),
        requests_per_s=rate,
        placed=result.placed,
        there=sum(row.endpoint == CENTRE_ADDRESS for row in served) / len(served),
    )


def _foreign(case: CampaignRun) -> bool:
    """Whether a package's code has a part in the result: then no version of ours tells when it is old."""
    return registered(case.strategy) not in STRATEGY_NAMES


class ResultStore:
    """Results on disk, one file each; without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def get(self, case: CampaignRun) -> Played | None:
        """What an earlier run of this very code made of it; a damaged file counts as none."""
        if self._folder is None or _foreign(case):
            return None
        try:
            raw = self._path(self._folder, case).read_bytes()
            return msgspec.json.decode(raw, type=Played)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def put(self, played: Played) -> None:
        """Whole or not at all."""
        if self._folder is None or _foreign(played.case):
            return
        path = self._path(self._folder, played.case)
        half = path.with_suffix(f".{os.getpid()}.half")
        half.write_bytes(msgspec.json.encode(played))
        half.replace(path)

    @staticmethod
    def _path(folder: Path, case: CampaignRun) -> Path:
        return folder / f"{case.key(code_version())}.json"


def play_all(
    cases: Sequence[CampaignRun],
    traces: Path,
    *,
    store: ResultStore | None = None,
    workers: int | None = None,
    budget_s: float = 0.0,
    progress: Progress | None = None,
) -> tuple[list[Played], list[CampaignRun]]:
    """Every case's result in their order, and those left out because `budget_s` (0: none) was over.

    `workers` None is one a core, at most one a case. What the store has is not played again.
    """
    store = store or ResultStore(None)
    done: dict[CampaignRun, Played] = {}
    began = monotonic()
    for case in cases:
        if (found := store.get(case)) is not None:
            done[case] = found
            if progress is not None:
                progress(found, len(done), len(cases), True)
    left = [case for case in dict.fromkeys(cases) if case not in done]

    def due() -> Iterator[tuple[CampaignRun, str]]:
        for case in left:
            if budget_s and monotonic() - began >= budget_s:
                return
            yield case, str(traces)

    count = max(1, min(workers or os.cpu_count() or 1, len(left)))
    for played in _played(due(), count):
        store.put(played)
        done[played.case] = played
        if progress is not None:
            progress(played, len(done), len(cases), False)
    return [done[case] for case in cases if case in done], [case for case in left if case not in done]


def _played(due: Iterator[tuple[CampaignRun, str]], workers: int) -> Iterator[Played]:
    """Results as they come. A few tasks at a time, so that the time left is asked about before each."""
    if workers == 1:
        yield from map(_task, due)
        return
    with worker_pool(workers) as pool:
        waiting = [pool.apply_async(_task, (task,)) for task in islice(due, workers)]
        while waiting:
            ready = [one for one in waiting if one.ready()]
            if not ready:
                waiting[0].wait(0.05)
                continue
            for one in ready:
                waiting.remove(one)
                yield one.get()
                task = next(due, None)
                if task is not None:
                    waiting.append(pool.apply_async(_task, (task,)))


def _task(task: tuple[CampaignRun, str]) -> Played:
    case, folder = task
    return play(case, Path(folder))

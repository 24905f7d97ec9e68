"""Who sends what, and when: clients over a rate curve, as requests or as counts of short intervals.

Owns the sampling. Clients are ServeGen's (each with its share, its burstiness and its lengths by the time of
day), or one made-up client. In each of the clients' windows its share of the curve is spread on a circle with
gaps of its own family, as `workload/servegen.py` does, and then bent to the curve's slope. The same seed
gives the same requests, whether they are counted or listed.

Work is told in replica-seconds at load 1 (`sim/capacity.py`, where T, the time per token, is at its bound):
w = (prefill + output·(b + c·context)) / (1 − a/T). Its sum a second is how many replicas are wholly used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp
from pathlib import Path
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from extproc.lab.scaling.rates import DAY_S, RateCurve, Series
from extproc.lab.workload.servegen import ClientLengths, Header, ServeGenClient, Window
from extproc.lab.workload.traces import servegen_clients
from extproc.sim.arrival import NS_PER_S, Arrival, Workload
from extproc.sim.capacity import TPOT_MS
from extproc.sim.timing import Hardware

#: Length of an interval of the fast model.
STEP_S: Final = 5.0
TOTAL_TOKENS: Final = 8_192
#: Requests of a window that a planner is shown as its recent ones.
SAMPLES: Final = 256
_GRID: Final = 64

Tokens = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Clients:
    """Who sends; windows and lengths begin anew each day."""

    name: str
    header: Header
    clients: tuple[ServeGenClient, ...]


@dataclass(frozen=True, slots=True)
class CountedTraffic:
    """Counts and work by interval of `STEP_S`; `samples` are (prompt, output) of some requests of each of the
    clients' windows, which last `sample_steps`."""

    name: str
    requests: Series
    #: Replica-seconds at load 1 that came, a second.
    load: Series
    samples: tuple[tuple[tuple[int, int], ...], ...]
    sample_steps: int


def from_day(path: Path) -> Clients:
    """ServeGen's day file; `WorkloadError`."""
    header, clients = servegen_clients(path)
    return Clients(path.name.partition(".")[0], header, tuple(clients))


def made_up() -> Clients:
    """Chat of the Azure trace's lengths (log-normal, medians 800 and 130 tokens) with gaps of CV 1.4."""
    points = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)

    def quantiles(median: float, sigma: float) -> tuple[float, ...]:
        normal = NormalDist()
        return tuple(median * exp(sigma * normal.inv_cdf(point)) for point in points)

    windows = tuple(Window(float(at), 1.0, "G", 0.5) for at in range(0, DAY_S, 600))
    lengths = ClientLengths(0.0, quantiles(800, 0.9), quantiles(130, 0.8))
    return Clients("made-up chat", Header(600.0, points), (ServeGenClient("chat", windows, (lengths,)),))


class WorkModel:
    """What a request costs a replica of some hardware, in replica-seconds at load 1."""

    def __init__(self, hardware: Hardware) -> None:
        self._prefill_ms = np.array([0.0, *(hardware.prefill_ms(n) for n in range(1, TOTAL_TOKENS + 1))])
        timing = hardware.timing
        self._per_token = timing.decode_per_sequence_ms
        self._per_context = timing.decode_per_context_token_ms
        self._room = 1.0 - hardware.decode_ms(0, 0) / TPOT_MS

    def seconds(self, prompt: Tokens, output: Tokens) -> Series:
        """Of each request."""
        decode = output * (self._per_token + self._per_context * (prompt + output / 2))
        return np.asarray((self._prefill_ms[prompt] + decode) / 1e3 / self._room, dtype=np.float64)


def batches(
    clients: Clients, curve: RateCurve, *, seed: int, first: int = 0, last: int | None = None
) -> Iterator[tuple[Series, Tokens, Tokens, NDArray[np.int64]]]:
    """For each of the clients' windows `first` to `last` of the curve's time: seconds since the curve began
    (in order), prompt and output tokens, and the client's number, a row each."""
    window_s = clients.header.window_s
    edges = curve.edges()
    edge_s = np.arange(len(edges)) * curve.window_s
    per_day = round(DAY_S / window_s)
    by_window = _by_window(clients)
    count = int(np.ceil(curve.duration_s / window_s))
    for number in range(first, count if last is None else min(last, count)):
        chance = np.random.default_rng([seed, number])
        grid = np.linspace(number * window_s, (number + 1) * window_s, _GRID + 1)
        rates = np.interp(grid, edge_s, edges, right=0.0)
        mass = np.concatenate([[0.0], np.cumsum((rates[1:] + rates[:-1]) / 2) * (window_s / _GRID)])
        active = by_window[number % per_day]
        own = sum(window.requests_per_s for _, window in active)
        if not active or not own or not mass[-1]:
            continue
        places, prompts, outputs, names = [], [], [], []
        for index, window in active:
            wanted = mass[-1] * window.requests_per_s / own
            many = int(wanted) + int(chance.random() < wanted % 1)
            if not many:
                continue
            if window.family == "W":
                gaps = chance.weibull(window.shape, many)
            else:
                gaps = chance.gamma(window.shape, 1.0, many)
            total = float(gaps.sum())
            circle = np.cumsum(gaps) / total if 0 < total < np.inf else np.zeros(many)
            places.append((circle + chance.random()) % 1.0)
            lengths = _lengths_at(clients.clients[index].lengths, (number % per_day) * window_s)
            points = clients.header.quantiles
            prompts.append(np.interp(chance.random(many), points, lengths.prompt))
            outputs.append(np.interp(chance.random(many), points, lengths.output))
            names.append(np.full(many, index))
        if not places:
            continue
        at_s = np.interp(np.concatenate(places), mass / mass[-1], grid)
        prompt = np.maximum(1, np.rint(np.concatenate(prompts))).astype(np.int64)
        output = np.maximum(1, np.rint(np.concatenate(outputs))).astype(np.int64)
        fits = np.flatnonzero(prompt + output <= TOTAL_TOKENS)
        order = fits[np.argsort(at_s[fits], kind="stable")]
        yield at_s[order], prompt[order], output[order], np.concatenate(names)[order]


def counted(clients: Clients, curve: RateCurve, work: WorkModel, *, seed: int) -> CountedTraffic:
    """The whole curve's requests, counted."""
    steps = int(np.ceil(curve.duration_s / STEP_S))
    requests, load = np.zeros(steps), np.zeros(steps)
    window_s = clients.header.window_s
    samples: list[tuple[tuple[int, int], ...]] = [()] * int(np.ceil(curve.duration_s / window_s))
    for at_s, prompt, output, _ in batches(clients, curve, seed=seed):
        place = np.minimum((at_s / STEP_S).astype(np.int64), steps - 1)
        requests += np.bincount(place, minlength=steps)
        load += np.bincount(place, weights=work.seconds(prompt, output), minlength=steps)
        if len(at_s):
            some = slice(None, None, max(1, len(at_s) // SAMPLES))
            window = min(len(samples) - 1, int(at_s[0] / window_s))
            samples[window] = tuple(zip(prompt[some].tolist(), output[some].tolist(), strict=True))
    for window in range(1, len(samples)):
        samples[window] = samples[window] or samples[window - 1]
    return CountedTraffic(curve.name, requests, load / STEP_S, tuple(samples), round(window_s / STEP_S))


def listed(clients: Clients, curve: RateCurve, *, seed: int, start_s: float, duration_s: float) -> Workload:
    """The requests of a part of the curve, one by one, times from its start."""
    window_s = clients.header.window_s
    first, last = int(start_s // window_s), int(np.ceil((start_s + duration_s) / window_s))
    arrivals: list[Arrival] = []
    for at_s, prompt, output, who in batches(clients, curve, seed=seed, first=first, last=last):
        for at, tokens, made, index in zip(
            at_s.tolist(), prompt.tolist(), output.tolist(), who.tolist(), strict=True
        ):
            if start_s <= at < start_s + duration_s:
                at_ns = round((at - start_s) * NS_PER_S)
                arrivals.append(Arrival(at_ns, clients.clients[index].tenant, tokens, made, None))
    return Workload(curve.name, tuple(arrivals), 16, tuple(sorted({one.tenant for one in arrivals})))


def mean_work_s(clients: Clients, work: WorkModel) -> float:
    """Replica-seconds of a request in the mean of a day: what turns a rate into replicas."""
    day = RateCurve("day", DAY_S / 24, np.full(24, 2.0))
    total = many = 0.0
    for _, prompt, output, _ in batches(clients, day, seed=0):
        total += float(work.seconds(prompt, output).sum())
        many += len(prompt)
    return total / many


@lru_cache(maxsize=4)
def _by_window(clients: Clients) -> tuple[tuple[tuple[int, Window], ...], ...]:
    """Who is active in each window of the day; a window that nobody has is the one before it."""
    window_s = clients.header.window_s
    found: list[list[tuple[int, Window]]] = [[] for _ in range(round(DAY_S / window_s))]
    for index, client in enumerate(clients.clients):
        for window in client.windows:
            if window.requests_per_s > 0:
                found[int(window.start_s // window_s) % len(found)].append((index, window))
    for at in range(2 * len(found)):
        here = at % len(found)
        found[here] = found[here] or found[here - 1]
    return tuple(tuple(each) for each in found)


def _lengths_at(lengths: Sequence[ClientLengths], at_s: float) -> ClientLengths:
    began = [one for one in lengths if one.start_s <= at_s]
    return began[-1] if began else lengths[0]

"""Samples ServeGen's clients: many tenants, a few of which make most of the load.

Owns the reading of the file's meaning and the sampling. Pure: parsed JSON in, draws out.

What the fields are, checked on both files at hand. The rate is requests/s. For "G" windows the
parameters are the moments: p1 (shape) is 1/CV², p2 (scale) seconds, and p1·p2 is 1/rate, except where
the client slept for part of the window. For "W" they are a fit of the body: the scale rounds to 0 at
high rates, and the implied mean is off by .4 to 2 times. So the scale is not used: gaps take the
family's shape and are then normalised to the window's rate. Where the fitted Weibull is burstier than
the measured CV (shapes near .16, CV in the dozens), the shape is the one whose CV was measured.

Within a window a client's requests lie on a circle with a random phase, so that no two clients begin
their bursts together at the windows' edges. Scaling to a wanted rate keeps each client's share and CV.
Prompt and output are drawn apart: the file has their marginal quantiles only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gamma, inf, sqrt
from pathlib import Path
from random import Random
from typing import Any, Final

from extproc.lab.workload.fit import Draw
from extproc.sim.arrival import NS_PER_S, WorkloadError

REQUESTS_PER_S: Final = 10.0
DURATION_S: Final = 3600.0
_SHAPE_MIN: Final = 0.005  # below, gammavariate underflows to zeros
_WEIBULL_SHAPE_MIN: Final = 0.05


@dataclass(frozen=True, slots=True)
class Header:
    """`window_s` seconds a rate window, and the probabilities (ascending, 0..1) of the token quantiles."""

    window_s: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """One client's arrivals in one window: requests/s, and the gaps' family ("G", "W") and shape."""

    start_s: float
    requests_per_s: float
    family: str
    shape: float


@dataclass(frozen=True, slots=True)
class ClientLengths:
    """Token quantiles that hold from `start_s` on, until the client's next."""

    start_s: float
    prompt: tuple[float, ...]
    output: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ServeGenClient:
    """One of ServeGen's clients; windows and lengths in time order."""

    tenant: str
    windows: tuple[Window, ...]
    lengths: tuple[ClientLengths, ...]


def parse_header(path: Path, document: dict[str, Any]) -> Header:
    """The first line's meaning; `WorkloadError` with the mend."""
    try:
        header = Header(float(document["window_s"]), tuple(float(one) for one in document["quantiles"]))
    except (KeyError, TypeError, ValueError):
        raise WorkloadError(f"{path}:1: ServeGen's header needs window_s and quantiles") from None
    if not header.window_s > 0 or list(header.quantiles) != sorted(header.quantiles):
        raise WorkloadError(f"{path}:1: window_s must be above 0 and the quantiles ascend")
    return header


def parse_client(path: Path, number: int, document: dict[str, Any], header: Header) -> ServeGenClient:
    """One line's client; `WorkloadError` with line and mend."""
    try:
        client = ServeGenClient(
            f"client-{document['client']}",
            tuple(
                _window(float(at), float(rate), float(cv), pattern, float(p1))
                for at, rate, cv, pattern, p1, _ in document["w"]
            ),
            tuple(
                ClientLengths(float(at), tuple(map(float, prompt)), tuple(map(float, output)))
                for at, _, prompt, output in document["len"]
            ),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WorkloadError(
            f"{path}:{number}: a client needs client, w=[[offset_s, rate, cv, G|W|E, p1, p2], …] and "
            f"len=[[offset_s, weight, inputs, outputs], …] ({error}); mend or drop the line"
        ) from None
    points = len(header.quantiles)
    if not client.lengths or any(
        len(one.prompt) != points or len(one.output) != points for one in client.lengths
    ):
        raise WorkloadError(
            f"{path}:{number}: len must have {points} quantiles, as the first line says; drop the line"
        )
    return client


def _window(start_s: float, rate: float, cv: float, pattern: str, shape: float) -> Window:
    if pattern == "E":
        return Window(start_s, rate, "G", 1.0)
    if pattern == "G":
        return Window(start_s, rate, "G", max(shape, _SHAPE_MIN))
    if pattern == "W":
        return Window(start_s, rate, "W", max(shape, weibull_shape(cv)))
    raise ValueError(f"unknown arrival pattern {pattern!r}")


def weibull_shape(cv: float) -> float:
    """The shape whose coefficient of variation is `cv`, by bisection; clipped to .05..20."""
    low, high = _WEIBULL_SHAPE_MIN, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        mean = gamma(1 + 1 / middle)
        if sqrt(max(gamma(1 + 2 / middle) / mean**2 - 1, 0.0)) > cv:
            low = middle
        else:
            high = middle
    return high


def sample(
    clients: Sequence[ServeGenClient],
    header: Header,
    *,
    seed: int,
    start_s: float,
    duration_s: float,
    requests_per_s: float,
    path: Path,
) -> Iterator[Draw]:
    """Draws of `[start_s, start_s + duration_s)` in time order, counted from `start_s`.

    All clients' rates are scaled by one factor, so that the range's mean is `requests_per_s`.
    """
    end_s = start_s + duration_s
    own = sum(_expected(client, header.window_s, start_s, end_s) for client in clients)
    if not own:
        last = max((window.start_s for client in clients for window in client.windows), default=0.0)
        raise WorkloadError(
            f"{path}: no client is active in {start_s:g} to {end_s:g} s; "
            f"the day ends at {last + header.window_s:g} s"
        )
    factor = requests_per_s * duration_s / own
    chances = [Random(f"{seed}:{client.tenant}") for client in clients]
    at_s = start_s - start_s % header.window_s
    by_start = [{window.start_s: window for window in client.windows} for client in clients]
    while at_s < end_s:
        batch: list[Draw] = []
        for client, windows, chance in zip(clients, by_start, chances, strict=True):
            window = windows.get(at_s)
            if window is None:
                continue
            lengths = _lengths_at(client, at_s)
            for offset_s in _offsets(window, header.window_s, factor, chance):
                prompt = _quantile(header.quantiles, lengths.prompt, chance.random())
                output = _quantile(header.quantiles, lengths.output, chance.random())
                moment = at_s + offset_s
                if start_s <= moment < end_s:
                    batch.append(Draw(round((moment - start_s) * NS_PER_S), client.tenant, prompt, output))
        yield from sorted(batch)
        at_s += header.window_s


def _expected(client: ServeGenClient, window_s: float, start_s: float, end_s: float) -> float:
    return sum(
        window.requests_per_s * max(min(window.start_s + window_s, end_s) - max(window.start_s, start_s), 0.0)
        for window in client.windows
    )


def _offsets(window: Window, window_s: float, factor: float, chance: Random) -> list[float]:
    """Seconds into the window, unordered: gaps of the client's family around a circle, random phase."""
    wanted = window.requests_per_s * window_s * factor
    count = int(wanted) + (chance.random() < wanted % 1)
    if window.family == "W":
        gaps = [chance.weibullvariate(1.0, window.shape) for _ in range(count)]
    else:
        gaps = [chance.gammavariate(window.shape, 1.0) for _ in range(count)]
    total = sum(gaps)
    stretch = window_s / total if 0 < total < inf else 0.0
    at = chance.random() * window_s
    offsets = []
    for gap in gaps:
        at = (at + gap * stretch) % window_s
        offsets.append(at)
    return offsets


def _lengths_at(client: ServeGenClient, at_s: float) -> ClientLengths:
    """The latest that began; the first one before that (a client's first window may precede it)."""
    began = [one for one in client.lengths if one.start_s <= at_s]
    return began[-1] if began else client.lengths[0]


def _quantile(probabilities: tuple[float, ...], values: tuple[float, ...], u: float) -> int:
    """Inverse CDF, linear between the quantiles, flat outside them; whole tokens, at least 1."""
    at = bisect_right(probabilities, u)
    if at == 0:
        value = values[0]
    elif at == len(probabilities):
        value = values[-1]
    else:
        low, high = probabilities[at - 1], probabilities[at]
        value = values[at - 1] + (values[at] - values[at - 1]) * (u - low) / (high - low)
    return max(round(value), 1)

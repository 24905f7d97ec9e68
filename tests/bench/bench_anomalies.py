"""Tenants out of their pattern: false alarms on ServeGen's days, and planted trouble that is found.

The trace is read from ../shared/traces where it is (clients are tenants, rates scaled to 20 requests/s
together); without it a made-up day of the same kind is taken. Each day is replayed twice with other draws: on
the first everything is learned, on the second it is known. The rule is the built-in one (TenantUnusual), run
by the engine on each minute's figures at their event times.
"""

from __future__ import annotations

import gzip
import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from math import pi, sin
from pathlib import Path
from random import Random
from statistics import median

from rows import Row

from extproc.lab.workload.servegen import parse_client, parse_header, sample
from extproc.observe.alerts.anomaly import Anomalies, Settings
from extproc.observe.alerts.defaults import RULES
from extproc.observe.alerts.engine import AlertEngine, AlertState
from extproc.observe.alerts.watch import SECOND, Key

TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"
NAMES = ("servegen_m-mid_day12", "servegen_m-small_day9")
REQUESTS_PER_S = 20.0
MINUTES = 1_440
#: A planted change is looked for in tenants of so many requests a day, and until so long after its end.
DAILY_MIN, AFTER_MIN = 2_880, 5
RULE = next(rule for rule in RULES if rule.name == "TenantUnusual")

#: By tenant: requests, prompt and output tokens of each minute.
Day = dict[str, tuple["array[float]", "array[float]", "array[float]"]]
Minute = tuple[float, float, float, float]
Plant = Callable[[int, Minute], Minute]


def trace_day(path: Path, seed: int) -> Day:
    """One of the trace's days, drawn anew."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file if line.strip()]
    header = parse_header(path, lines[0])
    clients = [parse_client(path, number, line, header) for number, line in enumerate(lines[1:], 2)]
    draws = sample(
        clients,
        header,
        seed=seed,
        start_s=0.0,
        duration_s=86_400.0,
        requests_per_s=REQUESTS_PER_S,
        path=path,
    )
    return added(
        (client.tenant for client in clients),
        (
            (draw.tenant, draw.at_ns // (60 * SECOND), draw.prompt_tokens, draw.output_tokens)
            for draw in draws
        ),
    )


def made_day(seed: int) -> Day:
    """Thirty tenants: busy by day or by night, a few in bursts."""

    def draws() -> Iterator[tuple[str, int, int, int]]:
        for number in range(30):
            rng = Random(f"{seed} {number}")
            shift, level = number * pi / 15, 3.0 * 1.2**number
            for minute in range(MINUTES):
                rate = level * (1.2 + sin(2 * pi * minute / MINUTES + shift)) / 10
                if number % 7 == 0 and rng.random() < 0.02:
                    rate *= 20
                for _ in range(int(rng.gauss(rate, rate**0.5) + 0.5)):
                    yield (
                        f"t{number}",
                        minute,
                        int(rng.lognormvariate(6, 1)) + 1,
                        int(rng.expovariate(0.01)) + 1,
                    )

    return added((f"t{number}" for number in range(30)), draws())


def added(tenants: Iterable[str], draws: Iterable[tuple[str, int, int, int]]) -> Day:
    """Requests by tenant and minute."""
    day: Day = {
        tenant: (
            array("d", bytes(8 * MINUTES)),
            array("d", bytes(8 * MINUTES)),
            array("d", bytes(8 * MINUTES)),
        )
        for tenant in tenants
    }
    for tenant, minute, prompt, output in draws:
        requests, prompts, outputs = day[tenant]
        requests[minute] += 1
        prompts[minute] += prompt
        outputs[minute] += output
    return day


class Scores:
    """What the engine asks: a tenant's score, and nothing else."""

    def __init__(self, anomalies: Anomalies) -> None:
        self._anomalies = anomalies

    def windowed(
        self, signal: str, key: Key, since: int, until: int, *, code: str | None
    ) -> tuple[float | None, int]:
        """Nothing is windowed here."""
        return None, 0

    def covered_s(self, key: Key, since: int, until: int) -> int:
        """Nor covered."""
        return 0

    def moment(self, signal: str, key: Key) -> float | None:
        """The anomaly."""
        return self._anomalies.verdict(key[1]).score


def alarms(anomalies: Anomalies, tenant: str, day: Day, number: int, plant: Plant | None = None) -> list[int]:
    """The minutes of a tenant's day in which the rule fires; the pattern learns."""
    engine, scores, fired = AlertEngine([RULE]), Scores(anomalies), []
    scopes: dict[str, list[Key]] = {"tenant": [("tenant", tenant)]}
    requests, prompts, outputs = day[tenant]
    for minute in range(MINUTES):
        at = number * MINUTES + minute
        row = (requests[minute], prompts[minute], outputs[minute], 0.0)
        if plant is not None:
            row = plant(minute, row)
        anomalies.minute(tenant, at, row, hour=minute // 60)
        told = engine.step(scores, scopes, now_ns=(at + 1) * 60 * SECOND)
        fired += [minute for alert in told if alert.state is AlertState.FIRING]
    return fired


def plants(day: Day, tenant: str) -> Iterator[tuple[str, int, int, Plant]]:
    """Kind, begin, length in minutes, and what it does: in an ordinary ten minutes, or the quietest hour."""
    requests = day[tenant][0]
    fives = [sum(requests[minute : minute + 5]) for minute in range(MINUTES - 10)]
    ordinary = median([each for each in fives if each] or [0.0])
    rng = Random(tenant)
    moments = [
        minute
        for minute in range(30, MINUTES - 20)
        if max(30.0, ordinary / 2) <= fives[minute] <= 2 * ordinary
        and min(requests[minute : minute + 10]) > 0
    ]
    if moments:
        begin = rng.choice(moments)
        inside = range(begin, begin + 10)
        yield (
            "5 times the requests for 10 min",
            begin,
            10,
            lambda at, row: (row[0] * 5, row[1] * 5, row[2] * 5, row[3]) if at in inside else row,
        )
        yield (
            "prompts 10 times as long for 10 min",
            begin,
            10,
            lambda at, row: (row[0], row[1] * 10, row[2], row[3]) if at in inside else row,
        )
    hour = min(range(24), key=lambda each: sum(requests[each * 60 : each * 60 + 60]))
    quiet = range(hour * 60 + 10, hour * 60 + 40)
    more = max(10.0, 5 * sum(requests) / MINUTES)
    yield (
        "a leaked key in the quietest hour, 30 min",
        quiet.start,
        30,
        lambda at, row: (
            (row[0] + more, row[1] + 20 * more, row[2] + 800 * more, row[3]) if at in quiet else row
        ),
    )


def run() -> Iterator[Row]:
    """Yield false alarms by tenant-day, and the share of planted changes that were found."""
    days: dict[str, Callable[[int], Day]] = {}
    for name in NAMES:
        path = TRACES / f"{name}.jsonl.gz"
        if path.exists():
            days[name] = lambda seed, path=path: trace_day(path, seed)  # type: ignore[misc]
    for name, make in (days or {"made-up": made_day}).items():
        yield from _of(name, make(1), make(2))


def _of(name: str, first: Day, second: Day) -> Iterator[Row]:
    anomalies = Anomalies(Settings())
    learning = [alarms(anomalies, tenant, first, 0) for tenant in first]
    learned = deepcopy(anomalies)
    known = [alarms(anomalies, tenant, second, 1) for tenant in second]
    count = len(first)
    for what, each in (("first day", learning), ("second day", known)):
        false = sum(map(len, each))
        yield Row(f"{name}: alarms on the {what}, {count} tenants", false, "alarms")
        yield Row(f"{name}: alarms a tenant-day, {what}", false / count, "alarms", 0.5)
    found: dict[str, list[int | None]] = {}
    for tenant in second:
        if sum(second[tenant][0]) < DAILY_MIN:
            continue
        for kind, begin, length, plant in plants(second, tenant):
            own = deepcopy(learned)
            fired = alarms(own, tenant, second, 1, plant)
            hit = [at - begin for at in fired if begin <= at < begin + length + AFTER_MIN]
            found.setdefault(kind, []).append(hit[0] + 1 if hit else None)
    for kind, delays in found.items():
        hits = [delay for delay in delays if delay is not None]
        yield Row(f"{name}: missed of {len(delays)}: {kind}", len(delays) - len(hits), "missed")
        if hits:
            yield Row(f"{name}: minutes until it fires (median): {kind}", median(hits), "min")

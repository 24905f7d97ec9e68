"""From a record to what a simulation plays: the arrivals, the replicas with their learned timings, the aims.

Owns what is taken for what, and says so in `notes`:

- A request that was turned away, failed or left has no counted output: it writes what was expected then.
- Requests that a quota refused never come: quotas are not replayed. Nor do those whose client left first.
- A request for n sequences is one sequence with the n-th part of the output.
- A prompt's blocks beyond those recorded count as never cached; block sizes are the record's median.
- Replicas are those in force for most of the time, whatever came and went within it; each has its kind's
  learned timing times its own learned factor. Where KV memory is unknown it is a roofline's guess.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median_low
from typing import Any, Final

from extproc.core.endpoint import Member
from extproc.core.predict.prior import prior
from extproc.core.predict.timing import Timing
from extproc.core.slo import ClassSpec
from extproc.engines import DEFAULT
from extproc.lab.replay.log import FleetLine, Log, LogError, RecordRow
from extproc.observe.record import CLASS_FIELDS, MEMBER_FIELDS, PREFIX_DIGITS, TIMING_FIELDS
from extproc.sim.arrival import Arrival, Workload
from extproc.sim.timing import Hardware

#: Outcomes that were demand for a replica.
ASKED: Final = frozenset({"ok", "refused", "error", "client_gone", "shed", "expired"})
BLOCK_TOKENS: Final = 64


@dataclass(frozen=True, slots=True)
class Machine:
    """One replica to simulate: what the gateway is told of it, and how fast it is."""

    member: Member
    timing: Timing
    factor: float
    kv_tokens: int
    budget_tokens: int

    @property
    def hardware(self) -> Hardware:
        """Its kind's learned timing as the simulator takes one; the host's overhead is inside."""
        return Hardware(
            name=f"learned/{self.member.hardware or 'unknown'}",
            source="learned by the service from its own traffic",
            kv_capacity_tokens=self.kv_tokens,
            timing=self.timing,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One pool of a record, ready to be played under some strategy.

    `rows` are the requests of `workload.arrivals`, one for one. `strategy` and `parameters` are the pool's at
    the time.
    """

    pool: str
    model: str
    engine: str
    strategy: str
    parameters: Mapping[str, Mapping[str, Any]]
    workload: Workload
    rows: Sequence[RecordRow]
    machines: Sequence[Machine]
    classes: tuple[ClassSpec, ...]
    class_of: Mapping[str, str]
    weights: Mapping[str, float] = field(default_factory=dict)
    bytes_per_token: float = 4.0
    output_tokens: int = 256
    notes: tuple[str, ...] = ()

    def part(self, start: int, stop: int) -> Scene:
        """The same with only these arrivals, by number; time begins with the first of them."""
        arrivals = self.workload.arrivals[start:stop]
        begin = arrivals[0].at_ns if arrivals else 0
        moved = tuple(replace(each, at_ns=each.at_ns - begin) for each in arrivals)
        return replace(self, workload=replace(self.workload, arrivals=moved), rows=self.rows[start:stop])

    def replicas(self, change: int) -> Scene:
        """With so many replicas more or fewer: the last go; added ones are like the typical one."""
        count = len(self.machines) + change
        if count < 1:
            raise LogError(f"pool {self.pool!r} had {len(self.machines)} replicas; {change:+d} leaves none")
        machines = list(self.machines[:count])
        typical = sorted(self.machines, key=lambda each: each.factor)[(len(self.machines) - 1) // 2]
        for number in range(count - len(machines)):
            address = f"198.18.{number // 250}.{number % 250 + 1}:80"
            machines.append(replace(typical, member=typical.member._replace(address=address)))
        return replace(self, machines=tuple(machines))


def scene(log: Log, *, pool: str = "", limit: int = 0) -> Scene:
    """The pool named, or the one with most requests, as the record has it; `limit` 0 takes all of it.

    Raises LogError where there is nothing to play.
    """
    counted = Counter(row.pool for row in log.rows)
    name = pool or (counted.most_common(1)[0][0] if counted else "")
    if name not in counted:
        there = ", ".join(sorted(counted)) or "none"
        raise LogError(f"the record has no request for pool {name!r} in that time; pools with some: {there}")
    rows = [row for row in log.rows if row.pool == name]
    line, changed = _in_force(log.fleets, rows, name)
    told = _pool(line, name)
    assert told is not None
    try:
        machines = _machines(told)
        classes = tuple(
            ClassSpec(**{key: each[key] for key in CLASS_FIELDS}) for each in line.fleet["classes"]
        )
        weights = {str(tenant): float(weight) for tenant, weight in line.fleet.get("weights", {}).items()}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise LogError(f"the record's fleet line cannot be used ({error!r})") from error
    if not machines:
        raise LogError(f"pool {name!r} had no ready replica on record")
    notes = [f"replicas' timings are those that the service had learned ({_learned(told)})"]
    if changed:
        notes.append(f"replicas changed {changed} times meanwhile; played with {len(machines)} throughout")
    if beside := {other: count for other, count in counted.items() if other != name}:
        told_of = ", ".join(f"{count} of {other}" for other, count in sorted(beside.items()))
        notes.append(f"requests of other pools are not played: {told_of} (--pool)")
    kept, arrivals, block_tokens = _arrivals(rows, machines, limit, notes)
    if not kept:
        raise LogError(f"no request for pool {name!r} can be played")
    return Scene(
        pool=name,
        model=kept[0].model or str(told["models"][0]),
        engine=str(told.get("engine", DEFAULT)),
        strategy=str(told["strategy"]),
        parameters=told.get("parameters", {}),
        workload=Workload(
            name=f"record of {name}",
            arrivals=tuple(arrivals),
            block_tokens=block_tokens,
            tenants=tuple(sorted({row.tenant for row in kept})),
        ),
        rows=kept,
        machines=machines,
        classes=classes,
        class_of={row.tenant: row.service_class for row in kept},
        weights=weights,
        bytes_per_token=float(told.get("bytes_per_token", 4.0)),
        output_tokens=max(1, round(told.get("output_tokens", 256))),
        notes=tuple(notes),
    )


def _in_force(fleets: Sequence[FleetLine], rows: Sequence[RecordRow], pool: str) -> tuple[FleetLine, int]:
    """The fleet line to play with, and how often the pool's members changed.

    Members are those under which most requests came; of the lines with these members the last has learned
    most.
    """
    lines = [line for line in fleets if _pool(line, pool) is not None]
    if not lines:
        raise LogError(f"the record holds no fleet line with pool {pool!r}; it was cut before its first")
    weight: Counter[tuple[str, ...]] = Counter()
    last: dict[tuple[str, ...], FleetLine] = {}
    at, changed = 0, 0
    before: tuple[str, ...] | None = None
    end_ms = rows[-1].at_ms + max(0.0, rows[-1].duration_ms)
    for number, line in enumerate(lines):
        until_ms = lines[number + 1].at_ms if number + 1 < len(lines) else float("inf")
        came = 0
        while at < len(rows) and rows[at].at_ms < until_ms:
            at, came = at + 1, came + 1
        members = _ready(line, pool)
        weight[members] += came
        if members not in last or line.at_ms <= end_ms:
            last[members] = line
        changed += came > 0 and before is not None and members != before
        before = members if came else before
    usual = max((key for key in weight if key), key=lambda key: weight[key], default=None)
    return (last[usual] if usual is not None else lines[-1]), changed


def _ready(line: FleetLine, pool: str) -> tuple[str, ...]:
    told = _pool(line, pool) or {}
    ready, address = MEMBER_FIELDS.index("ready"), MEMBER_FIELDS.index("address")
    return tuple(
        each[address] for each in told.get("members", ()) if len(each) == len(MEMBER_FIELDS) and each[ready]
    )


def _pool(line: FleetLine, name: str) -> dict[str, Any] | None:
    pools = line.fleet.get("pools", ())
    return next((each for each in pools if isinstance(each, dict) and each.get("name") == name), None)


def _learned(told: Mapping[str, Any]) -> str:
    kinds = [dict(zip(TIMING_FIELDS, each, strict=True)) for each in told["timings"]]
    return "; ".join(f"{k['gpus']}×{k['hardware'] or 'unknown'}: {k['samples']} samples" for k in kinds)


def _machines(told: Mapping[str, Any]) -> tuple[Machine, ...]:
    timings: dict[tuple[str, int], Timing] = {}
    for each in told["timings"]:
        kind = dict(zip(TIMING_FIELDS, each, strict=True))
        coefficients = {name: float(kind[name]) for name in TIMING_FIELDS[3:]}
        timings[kind["hardware"], kind["gpus"]] = Timing(**coefficients)
    machines = []
    for each in told["members"]:
        m = dict(zip(MEMBER_FIELDS, each, strict=True))
        if not m["ready"]:
            continue
        guess = prior(m["hardware"], str(told["models"][0]), gpus=int(m["gpus"]))
        kv = int(m["kv_tokens"]) or guess.kv_capacity_tokens
        member = Member(
            m["address"],
            zone=m["zone"],
            max_concurrent=int(m["max_concurrent"]),
            hardware=m["hardware"],
            gpus=int(m["gpus"]),
            kv_capacity_tokens=int(m["kv_tokens"]),
            price_per_hour=float(m["price_per_hour"]),
            spot=bool(m["spot"]),
        )
        timing = timings.get((m["hardware"], m["gpus"]), guess.timing)
        machines.append(Machine(member, timing, float(m["factor"]), kv, int(told["prefill_budget_tokens"])))
    return tuple(machines)


def _arrivals(
    rows: Sequence[RecordRow], machines: Sequence[Machine], limit: int, notes: list[str]
) -> tuple[list[RecordRow], list[Arrival], int]:
    sizes = [row.block_tokens for row in rows if row.block_tokens > 0 and row.prefix]
    block_tokens = max(1, round(median_low(sizes))) if sizes else BLOCK_TOKENS
    kv = min(machine.kv_tokens for machine in machines)
    kept: list[RecordRow] = []
    arrivals: list[Arrival] = []
    left: Counter[str] = Counter()
    for row in rows:
        if row.outcome == "cached":
            left["were answered from the cache, and do not come"] += 1
            continue
        if row.outcome not in ASKED:
            left["were refused by a quota, or left before a decision, and do not come"] += 1
            continue
        prompt = row.input_tokens or row.expected_input_tokens
        if prompt < 1:
            left["cost nothing (tokenize, info) and do not come"] += 1
            continue
        if prompt >= kv:
            left["do not fit a replica's memory and do not come"] += 1
            continue
        if limit and len(kept) >= limit:
            left["came after the limit"] += 1
            continue
        counted = row.output_tokens if row.outcome in ("ok", "client_gone") else None
        if not counted:
            left["have no counted output: what was expected stands in"] += 1
        output = max(1, round((counted or row.expected_output_tokens) / max(1, row.sequences)))
        if row.max_new_tokens:
            output = min(output, row.max_new_tokens)
        blocks = tuple(
            int(row.prefix[at : at + PREFIX_DIGITS], 16)
            for at in range(0, min(len(row.prefix), prompt // block_tokens * PREFIX_DIGITS), PREFIX_DIGITS)
        )
        kept.append(row)
        at_ns = round((row.at_ms - kept[0].at_ms) * 1e6)
        arrivals.append(Arrival(at_ns, row.tenant, prompt, output, row.max_new_tokens or None, blocks))
    notes += [f"{count} of {len(rows)} requests {what}" for what, count in left.items()]
    return kept, arrivals, block_tokens

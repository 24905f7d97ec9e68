"""A fleet that is asked about, and a record's scene with it in place of its own.

Owns what is taken for what. Of a card on record the learned timing holds. Of another each learned coefficient
is scaled by the ratio of the two cards' rooflines (core.predict.prior), and so is the KV memory: what the
engine adds to the roofline is kept. A prompt that the fleet's KV memory cannot hold is left out of the play
and counts as missed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace

from extproc.core.predict.hardware import find_gpu
from extproc.core.predict.prior import Prior, prior
from extproc.core.predict.timing import Timing
from extproc.core.slo import ClassSpec
from extproc.lab.replay.log import LogError
from extproc.lab.replay.rebuild import Machine, Scene

#: Replicas of one fleet that are simulated at most, and how many times its load.
REPLICAS_MAX, LOAD_MAX = 1_000, 1_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetChoice:
    """What is otherwise than on record; None (0 replicas, "", load 1) is as recorded.

    `replicas` is a count. `hardware` a card's name as NVML has it, MIG slices included. `kv_scale` multiplies
    the KV tokens. Targets are for every class. `load` multiplies the arrival rate: the same requests, closer.
    `price_per_hour` is one replica's.
    """

    replicas: int = 0
    hardware: str = ""
    gpus: int | None = None
    max_concurrent: int | None = None
    prefill_budget_tokens: int | None = None
    kv_scale: float = 1.0
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    load: float = 1.0
    price_per_hour: float | None = None

    @property
    def name(self) -> str:
        """It in a few words: what is changed."""
        said = [
            f"{self.replicas} replicas" if self.replicas else "",
            f"{self.gpus}×" * (self.gpus is not None and self.gpus > 1) + self.hardware,
            f"max_concurrent {self.max_concurrent}" if self.max_concurrent else "",
            f"prefill {self.prefill_budget_tokens}" if self.prefill_budget_tokens else "",
            f"KV ×{self.kv_scale:g}" if self.kv_scale != 1.0 else "",
            f"TTFT {self.ttft_ms:g} ms" if self.ttft_ms is not None else "",
            f"TPOT {self.tpot_ms:g} ms" if self.tpot_ms is not None else "",
            f"load ×{self.load:g}" if self.load != 1.0 else "",
        ]
        return ", ".join(each for each in said if each) or "as recorded"


@dataclass(frozen=True, slots=True)
class PlannedFleet:
    """A scene with a fleet chosen. `unfit` requests do not fit its memory and are not in the scene."""

    choice: FleetChoice
    scene: Scene
    unfit: int
    #: Of all replicas together; None where a price is not known.
    cost_per_hour: float | None

    @property
    def replicas(self) -> int:
        """How many."""
        return len(self.scene.machines)

    @property
    def gpus(self) -> int:
        """Cards of all replicas."""
        return sum(machine.member.gpus for machine in self.scene.machines)

    @property
    def hardware(self) -> str:
        """The cards' names, one each."""
        names = dict.fromkeys(each.member.hardware or "unknown" for each in self.scene.machines)
        return " + ".join(names)


def planned(scene: Scene, choice: FleetChoice, prices: Mapping[str, float] | None = None) -> PlannedFleet:
    """The scene with the choice in force. `prices` are replicas' per hour by card, over those on record.

    Raises LogError for what cannot be simulated.
    """
    if not 0 <= choice.replicas <= REPLICAS_MAX:
        raise LogError(f"{choice.replicas} replicas cannot be simulated; write 1 to {REPLICAS_MAX}")
    if not 0.0 < choice.load <= LOAD_MAX:
        raise LogError(f"load ×{choice.load:g} cannot be simulated; write more than 0, at most {LOAD_MAX:g}")
    machines = tuple(_machine(scene, each, choice, prices or {}) for each in scene.machines)
    there = replace(scene, machines=machines, classes=tuple(_aimed(each, choice) for each in scene.classes))
    if choice.replicas:
        there = there.replicas(choice.replicas - len(machines))
    kv = min(machine.kv_tokens for machine in there.machines)
    fit = [i for i, each in enumerate(scene.workload.arrivals) if each.prompt_tokens < kv]
    if not fit:
        raise LogError(f"{choice.name}: no prompt on record fits a replica's {kv} KV tokens")
    arrivals = [scene.workload.arrivals[i] for i in fit]
    if choice.load != 1.0:
        arrivals = [replace(each, at_ns=round(each.at_ns / choice.load)) for each in arrivals]
    there = replace(
        there,
        workload=replace(scene.workload, arrivals=tuple(arrivals)),
        rows=[scene.rows[i] for i in fit] if scene.rows else (),
    )
    found = [machine.member.price_per_hour for machine in there.machines]
    unfit = len(scene.workload.arrivals) - len(fit)
    return PlannedFleet(choice, there, unfit, sum(found) if all(found) else None)


def busiest(scene: Scene, requests: int) -> Scene:
    """So many requests in a row, those that ask most tokens a second; all where there are fewer."""
    arrivals = scene.workload.arrivals
    if requests <= 0 or len(arrivals) <= requests:
        return scene
    ahead = [0]
    for each in arrivals:
        ahead.append(ahead[-1] + each.prompt_tokens + each.output_tokens)

    def rate(start: int) -> float:
        span_ns = arrivals[start + requests - 1].at_ns - arrivals[start].at_ns
        return (ahead[start + requests] - ahead[start]) / max(span_ns, 1)

    start = max(range(len(arrivals) - requests + 1), key=rate)
    note = f"the busiest {requests} requests in a row of {len(arrivals)} are played, from number {start + 1}"
    return replace(scene.part(start, start + requests), notes=(*scene.notes, note))


def known_card(name: str) -> str:
    """The name, where the data sheets have it. Raises LogError."""
    if find_gpu(name) is None:
        raise LogError(
            f"no card {name[:80]!r} is known; write one as NVML does: H100, L40S, H100 MIG 3g.40gb"
        )
    return name


def _aimed(spec: ClassSpec, choice: FleetChoice) -> ClassSpec:
    if choice.ttft_ms is not None:
        ttft_ns = round(choice.ttft_ms * 1e6)
        longer = spec.long_ttft_ns / spec.ttft_ns if spec.ttft_ns else 1.0
        spec = replace(spec, ttft_ns=ttft_ns, long_ttft_ns=round(ttft_ns * longer))
    if choice.tpot_ms is not None:
        spec = replace(spec, tpot_ns=round(choice.tpot_ms * 1e6))
    return spec


def _machine(scene: Scene, machine: Machine, choice: FleetChoice, prices: Mapping[str, float]) -> Machine:
    member, timing, kv = machine.member, machine.timing, machine.kv_tokens
    factor = machine.factor
    gpus = choice.gpus or member.gpus
    card = choice.hardware or member.hardware
    if (card, gpus) != (member.hardware, member.gpus):
        timing, kv, factor = _other_card(scene, machine, card, gpus)
    price = choice.price_per_hour
    if price is None:
        price = prices.get(card, member.price_per_hour if card == member.hardware else 0.0)
    kv = max(1, round(kv * choice.kv_scale))
    member = member._replace(
        hardware=card,
        gpus=gpus,
        price_per_hour=price,
        kv_capacity_tokens=kv if member.kv_capacity_tokens or choice.kv_scale != 1.0 else 0,
        max_concurrent=choice.max_concurrent or member.max_concurrent,
    )
    return Machine(member, timing, factor, kv, choice.prefill_budget_tokens or machine.budget_tokens)


def _other_card(scene: Scene, machine: Machine, card: str, gpus: int) -> tuple[Timing, int, float]:
    """Timing, KV tokens and the replica's own factor on another card."""
    for each in scene.machines:
        if (each.member.hardware, each.member.gpus) == (card, gpus):
            return each.timing, each.kv_tokens, 1.0
    before = prior(machine.member.hardware, scene.model, gpus=machine.member.gpus)
    after = prior(card, scene.model, gpus=gpus)
    kv = machine.kv_tokens * after.kv_capacity_tokens / before.kv_capacity_tokens
    return _scaled(machine.timing, before, after), max(1, round(kv)), 1.0


def _scaled(timing: Timing, before: Prior, after: Prior) -> Timing:
    """Each coefficient by the ratio of the rooflines; one that the roofline has not stays."""
    ratios = [
        new / old if old > 0.0 else 1.0
        for old, new in zip(astuple(before.timing), astuple(after.timing), strict=True)
    ]
    return Timing(*(value * ratio for value, ratio in zip(astuple(timing), ratios, strict=True)))

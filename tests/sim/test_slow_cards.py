"""A slower card keeps its share of the work: what its agent says and what is learnt of it count once."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from extproc.core.fleet import Fleet
from extproc.core.health import CauseKind
from extproc.core.reports import GpuReport, ReplicaReport
from extproc.lab.workload import poisson
from extproc.sim.capacity import capacity
from extproc.sim.world import Result, Setting, parse_fleet, run

REQUESTS = 600
#: NVML's bit for a card that is slowed because it is hot.
HOT = 0x20
CARD = GpuReport(
    uuid="GPU-1", utilization_percent=95, memory_used_bytes=70 << 30, memory_total_bytes=80 << 30
)
HALF_CLOCK = replace(CARD, sm_clock_mhz=705, sm_clock_max_mhz=1_410, throttle_reasons=HOT)
#: Somebody else keeps the card busy, by NVML's word: an engine gets half of it.
SHARED = replace(CARD, utilization_others_percent=95, memory_others_bytes=2 << 30)


def share(result: Result, address: str) -> float:
    """Prompt and output tokens that one served, in those of one of the others, in the mean."""
    tokens = {each.address: 0 for each in result.scheduler.fleet.endpoints}
    for row in result.served:
        if row.outcome == "ok":
            tokens[row.endpoint] += row.arrival.prompt_tokens + row.arrival.output_tokens
    own = tokens.pop(address)
    return own * len(tokens) / sum(tokens.values())


@pytest.mark.parametrize("card", [HALF_CLOCK, SHARED, None], ids=["half clock", "shared", "unsaid"])
def test_half_a_card_gets_half_the_work(card: GpuReport | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether NVML says so or the speed alone shows it; twice counted it would be a quarter and less."""
    fleet = parse_fleet("3*a100-80g/llama-3-8b,1*a100-80g/llama-3-8b:slowdown=2")
    slow = fleet.replicas[-1][0]
    heard = Fleet.heard

    def says(self: Fleet, report: ReplicaReport, *, now_ns: int) -> bool:
        if card is not None and report.address == slow:
            report = replace(report, gpus=(card,))
        return heard(self, report, now_ns=now_ns)

    monkeypatch.setattr(Fleet, "heard", says)
    drawn = poisson(10.0, seed=1, duration_s=REQUESTS / 8, limit=REQUESTS)
    workload = drawn.rescaled(0.8 * capacity(fleet.shares, drawn))
    result = run(workload, fleet, Setting(strategy="steer", model_error=0.0))
    assert 0.28 <= share(result, slow) <= 0.75
    endpoint = next(each for each in result.scheduler.fleet.endpoints if each.address == slow)
    assert endpoint.speed.factor > 1.5, "it was given enough to learn how slow it is"
    # A slow card may be suspected for its late first tokens besides; what NVML says is evidence.
    evidence = [each for each in endpoint.health.causes.values() if each.kind is CauseKind.EVIDENCE]
    assert bool(evidence) is (card is not None)

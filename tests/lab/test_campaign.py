"""A campaign keeps what it has played, says what it left out, and judges by the targets."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.strategies import STRATEGIES as REGISTERED
from extproc.lab.campaign import CampaignRun, CaseError, Played, load_values, play, play_all, seed_values
from extproc.lab.campaign.__main__ import campaign
from extproc.lab.campaign.account import write_report
from extproc.lab.campaign.case import QUEUE_PERMITS, TGI_PERMITS, check_strategy, parameter_of
from extproc.lab.campaign.judge import chosen, lost, places, rate_at, verdicts
from extproc.lab.campaign.plan import RIVALS, STRATEGIES, full_plan, quick_plan
from extproc.lab.campaign.play import ResultStore, code_version
from extproc.lab.campaign.search import next_load
from extproc.lab.campaign.streams import arrivals_of, calmed, stood_in, turned
from extproc.lab.report import Cell, figures
from extproc.lab.workload import Arrival, poisson
from extproc.sim.served import SLO_8B, Served

NOWHERE = Path("/nonexistent")
CASE = CampaignRun(
    stream="poisson", fleet="2*a100-80g/llama-3-8b", load=0.6, strategy="steer", seed=1, limit=60
)
CONVERSATION = replace(CASE, stream="azure-conversation", fleet="8b", load=0.9, limit=0, permits=TGI_PERMITS)


def judged(case: CampaignRun, attainment: float, *, shed_tokens: int = 0) -> Played:
    """A result with this attainment over 100 requests of 100 tokens."""
    hit = round(100 * attainment)
    rows = []
    for at in range(100):
        end = "ok" if at < hit else "shed"
        tokens = 100 if end == "ok" or not shed_tokens else shed_tokens
        arrival = Arrival(at * 1_000_000_000, "t", tokens, 2, None)
        first = arrival.at_ns + 1_000_000
        rows.append(
            Served(arrival, end, "a", arrival.at_ns, first if end == "ok" else -1, first + 1_000_000, 0)
        )
    cell = Cell(case.workload, case.load, case.strategy, case.seed, figures(rows, slo=SLO_8B))
    return Played(case=case, cell=cell, ttft_ms=(1.0,), requests_per_s=100 * case.load)


def test_played_twice_is_the_same() -> None:
    """The same case gives the same figures and quantiles, whatever was played before."""
    first = play(CASE, NOWHERE)
    play(replace(CASE, seed=2), NOWHERE)
    assert play(CASE, NOWHERE) == first
    assert first.cell.figures.requests == 60
    assert list(first.ttft_ms) == sorted(first.ttft_ms)


def test_processes_give_what_one_gives() -> None:
    """Workers change nothing but the time that it takes."""
    cases = [replace(CASE, seed=seed) for seed in (1, 2, 3)]
    alone, _ = play_all(cases, NOWHERE, workers=1)
    together, left = play_all(cases, NOWHERE, workers=2)
    assert together == alone
    assert left == []


def test_what_is_stored_is_not_played_again(tmp_path: Path) -> None:
    """A second run reads; a damaged file is played anew; another case has another file."""
    told: list[bool] = []
    store = ResultStore(tmp_path)
    first, _ = play_all([CASE], NOWHERE, store=store, progress=lambda *given: told.append(given[3]))
    again, _ = play_all([CASE], NOWHERE, store=store, progress=lambda *given: told.append(given[3]))
    assert (again, told) == (first, [False, True])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:50])
    assert store.get(CASE) is None
    assert play_all([CASE], NOWHERE, store=store)[0] == first
    assert CASE.key(code_version()) != replace(CASE, load=0.7).key(code_version()) != CASE.key("other code")


def test_no_time_starts_nothing() -> None:
    """What the budget left no time for is handed back."""
    assert play_all([CASE], NOWHERE, workers=1, budget_s=1e-9) == ([], [CASE])


def test_strategies_of_a_seed_see_the_same_arrivals() -> None:
    """The strategy and the permits move no arrival; the seed does."""
    base = arrivals_of(CASE, NOWHERE)
    assert arrivals_of(replace(CASE, strategy="random", permits=7), NOWHERE) == base
    assert arrivals_of(replace(CASE, seed=2), NOWHERE) != base


def test_traces_that_are_not_there_have_stand_ins() -> None:
    """Without the public traces a made-up workload is played, and the result says so."""
    assert stood_in("azure-conversation", NOWHERE) == "poisson"
    played = play(replace(CONVERSATION, limit=40), NOWHERE)
    assert played.cell.workload == "stand-in for azure-conversation on 8b"


def test_a_file_is_a_trace(tmp_path: Path) -> None:
    """A trace of one's own is given by its path; its column bears the file's name."""
    path = tmp_path / "mine.csv"
    lines = [
        "arrival_s,input_tokens,output_tokens",
        *(f"{at / 4},{100 + at},{5 + at % 7}" for at in range(80)),
    ]
    path.write_text("\n".join(lines) + "\n")
    played = play(replace(CASE, stream=str(path), limit=0), NOWHERE)
    assert played.cell.workload.startswith("mine on ")
    assert 60 <= played.cell.figures.requests <= 80


@given(st.integers(0, 10_000))
def test_a_turned_trace_is_the_trace(seed: int) -> None:
    """Every request at most once, times ascending from the first kept, about nine in ten kept."""
    workload = poisson(10.0, seed=1, duration_s=30.0)
    found = turned(workload, Random(seed)).arrivals
    ats = [one.at_ns for one in found]
    assert ats == sorted(ats)
    assert ats[0] >= 0
    kept, whole = (
        Counter((a.prompt_tokens, a.output_tokens) for a in of) for of in (found, workload.arrivals)
    )
    assert kept <= whole
    assert 0.75 * whole.total() < kept.total() <= whole.total()


def test_turning_alone_keeps_every_request_and_gap() -> None:
    """With all kept the gaps are the trace's own but for the seam."""
    workload = poisson(10.0, seed=1, duration_s=30.0)
    found = turned(workload, Random(7), kept_share=1.1)
    assert len(found.arrivals) == len(workload.arrivals)

    def gaps(arrivals: list[Arrival]) -> Counter[int]:
        return Counter(b.at_ns - a.at_ns for a, b in pairwise(arrivals))

    assert (gaps(list(found.arrivals)) - gaps(list(workload.arrivals))).total() <= 1


def test_calmed_arrivals_are_poisson() -> None:
    """The burstiness goes, the requests stay in order."""
    workload = poisson(10.0, seed=1, duration_s=300.0)
    bunched = replace(
        workload,
        arrivals=tuple(replace(one, at_ns=one.at_ns // 10**10 * 10**10) for one in workload.arrivals),
    )
    calm = calmed(bunched, Random(1))
    assert [one.prompt_tokens for one in calm.arrivals] == [one.prompt_tokens for one in bunched.arrivals]
    assert 0.9 < calm.stats.interarrival_cv < 1.1 < bunched.stats.interarrival_cv


def test_plans_have_every_strategy_once() -> None:
    """The full plan begins with the quick one; no case comes twice; all that is registered is played."""
    quick, full = quick_plan(), full_plan()
    assert full[: len(quick)] == quick
    assert len(set(full)) == len(full)
    assert set(REGISTERED) - {"round_robin"} < set(STRATEGIES)
    assert quick[0] == replace(CONVERSATION)


@pytest.mark.parametrize(
    ("text", "loads"),
    [
        (".9", (0.9,)),
        (".5,.9", (0.5, 0.9)),
        ("0.5..0.8", (0.5, 0.6, 0.7, 0.8)),
        ("0.5..1.2:0.35", (0.5, 0.85, 1.2)),
    ],
)
def test_loads(text: str, loads: tuple[float, ...]) -> None:
    """Lists, ranges and steps."""
    assert load_values(text) == loads


@pytest.mark.parametrize("text", ["", "x", "1..0.5", "0", "0.1..9:0.001", "1..2:0"])
def test_loads_that_are_none(text: str) -> None:
    """Each mistake is an error that shows the form."""
    with pytest.raises(CaseError):
        load_values(text)


def test_seeds() -> None:
    """Lists and ranges; anything else is an error."""
    assert seed_values("1..3") == (1, 2, 3)
    assert seed_values("4,2") == (4, 2)
    for text in ("", "a", "3..1", "1..", "-1"):
        with pytest.raises(CaseError):
            seed_values(text)


def test_parameters() -> None:
    """A parameter has its strategy's type; a wrong name, type or value says what there is."""
    assert parameter_of("steer.queue_tokens=2048") == ("steer", "queue_tokens", 2048)
    assert parameter_of("oracle.guard=false") == ("oracle", "guard", False)
    for text, said in {
        "steer": "write STRATEGY.KEY=VALUE",
        "steer.nothing=1": "it has",
        "steer.queue_tokens=many": "is no int",
        "nobody.key=1": "no strategy",
    }.items():
        with pytest.raises(CaseError, match=said):
            parameter_of(text)
    with pytest.raises(CaseError):
        check_strategy("steer", {"queue_tokens": -1})


def test_the_targets_are_judged() -> None:
    """Met, missed and not played; the best peer is named; the oracle is no peer."""
    results = [
        judged(CONVERSATION, 0.97),
        judged(replace(CONVERSATION, strategy="dynamo-kv"), 0.85),
        judged(replace(CONVERSATION, strategy="oracle"), 1.0),
    ]
    (place,) = places(results)
    assert place.best_peer == "dynamo-kv"
    found = {one.target: one for one in verdicts(results)}
    first = found["azure-conversation on 8b at 0.9: attainment ≥ 96 % (best peer then 81)"]
    assert (first.found, first.met) == ("97.0; dynamo-kv 85.0", True)
    assert found["mooncake on 8b at 0.9: attainment ≥ 90 % (best peer then 62)"].met is None
    assert found["azure-conversation on 8b at 0.9: within 2 points of the oracle"].met is False
    assert lost(places(results)) == []


def test_a_peer_is_judged_behind_the_engine_that_suits_it() -> None:
    """In each cell the better permits by the mean over seeds; TGI's where both are alike."""
    peer = replace(CONVERSATION, strategy="dynamo-kv")
    few, many = (replace(peer, permits=permits) for permits in (TGI_PERMITS, QUEUE_PERMITS))
    results = [
        judged(CONVERSATION, 0.95),
        judged(few, 0.9),
        judged(many, 0.7),
        judged(replace(few, seed=2), 0.6),
        judged(replace(many, seed=2), 0.7),
        judged(replace(few, load=0.5), 0.4),
        judged(replace(many, load=0.5), 0.5),
    ]
    assert [(one.case.permits, one.case.load, one.case.seed) for one in chosen(results)] == [
        (TGI_PERMITS, 0.9, 1),
        (TGI_PERMITS, 0.9, 1),
        (TGI_PERMITS, 0.9, 2),
        (QUEUE_PERMITS, 0.5, 1),
    ]
    assert places(results)[0].permits["dynamo-kv"] == TGI_PERMITS
    assert places(results)[0].attainment["dynamo-kv"].mean == pytest.approx(0.75)


def test_a_loss_is_said() -> None:
    """A peer that is ahead is named with its lead."""
    results = [judged(CONVERSATION, 0.9), judged(replace(CONVERSATION, strategy="dynamo-kv"), 0.95)]
    assert lost(places(results)) == ["azure-conversation on 8b at 0.9: behind dynamo-kv by 5.0 points"]


def test_who_pays_with_long_prompts_is_judged() -> None:
    """Shedding prompts of thrice the mean misses the target; few sheds say nothing."""
    many = verdicts([judged(CONVERSATION, 0.75, shed_tokens=1_000)])
    few = verdicts([judged(CONVERSATION, 0.9, shed_tokens=1_000)])
    assert [one.met for one in many if "mean prompt shed" in one.target] == [False]
    assert not [one for one in few if "mean prompt shed" in one.target]


def test_the_rate_at_a_share() -> None:
    """The crossing lies linear between the loads around it; without one there is no rate."""
    results = [
        judged(replace(CONVERSATION, load=load), share)
        for load, share in ((0.8, 1.0), (1.0, 0.9), (0.5, 1.0))
    ]
    found = rate_at(results, stream="azure-conversation", fleet="8b", strategy="steer")
    assert found == (pytest.approx(90.0), 0.8, 1.0)
    assert rate_at(results[:1], stream="azure-conversation", fleet="8b", strategy="steer") is None


@given(st.floats(0.35, 1.65))
def test_the_search_ends_around_the_crossing(crossing: float) -> None:
    """Bisection brackets any crossing in its range to .05."""
    points: list[tuple[float, float]] = []
    for _ in range(20):
        load = next_load(points)
        if load is None:
            break
        points.append((load, 1.0 if load <= crossing else 0.5))
    above = max(load for load, share in points if share == 1.0)
    below = min(load for load, share in points if share < 1.0)
    assert above <= crossing < below <= above + 0.0501
    assert len(points) < 10


@pytest.mark.soak
def test_a_small_campaign_from_start_to_report(tmp_path: Path) -> None:
    """Without traces: stand-ins, a report with verdicts and pictures; the rerun makes the same bytes."""

    def report() -> dict[str, bytes]:
        names = ("steer", "oracle", "round-robin")
        campaign(out=tmp_path, traces=NOWHERE, quick=True, workers=1, seeds=(1,), strategies=names, limit=12)
        return {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    first = report()
    cells = len(list((tmp_path / "cells").iterdir()))
    assert first.keys() == {
        "report.md",
        "cells.json",
        *(f"{name}.{kind}" for name in ("attainment-by-load", "cells", "ttft") for kind in ("png", "svg")),
    }
    text = first["report.md"].decode()
    assert "simulated; timings from splitwise-sim / vidur" in text
    assert "azure-conversation on 8b" in text
    assert "## Targets" in text
    assert "128 permits" in text
    assert report() == first
    assert len(list((tmp_path / "cells").iterdir())) == cells


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    """The report counts and names the cells that there was no time for."""
    text = write_report(
        tmp_path, [judged(CONVERSATION, 0.9)], left_out=[replace(CONVERSATION, seed=2)]
    ).read_text()
    assert "## Left out: 1 cells" in text
    assert "- azure-conversation on 8b at 0.9, seed 2" in text


def test_rivals_are_all_peers() -> None:
    """Whoever is compared against runs as its project would run it: hyphens mark them."""
    assert all("-" in name for name in RIVALS)

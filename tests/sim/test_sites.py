"""An edge and a centre, simulated: what the choice is worth, what the way costs, what a cut loses."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from extproc.lab.report import SLO_8B, Figures, figures
from extproc.lab.workload import Workload, poisson
from extproc.sim.capacity import capacity
from extproc.sim.world import ORACLE, FleetError, Result, Setting, parse_fleet, run
from extproc.sim.world.fleets import describe
from extproc.sim.world.sites import CENTRE_ADDRESS, Link, play_sites
from extproc.sim.world.way import SiteWay

NEAR, FAR = "1*a100-80g/llama-3-8b", "2*h100-80g/llama-3-8b"
S, MS = 1_000_000_000, 1_000_000


def made(load: float, *, requests: int = 300, seed: int = 1) -> Workload:
    """A short workload at a load of both sites together."""
    drawn = poisson(10.0, seed=seed, duration_s=requests / 8, limit=requests)
    return drawn.rescaled(load * capacity(parse_fleet(f"{NEAR},{FAR}").shares, drawn))


def played(way: str, load: float, *, near: str = NEAR, **facts: int) -> Result:
    fleet = parse_fleet(f"{near},{way},{FAR}" if near else f"{way},{FAR}")
    return play_sites(made(load, **facts), fleet, Setting(strategy="steer"))


def judged(result: Result) -> Figures:
    return figures(result.served, slo=SLO_8B)


def where(result: Result) -> Counter[str]:
    """Requests answered, by site."""
    return Counter(
        "there" if row.endpoint == CENTRE_ADDRESS else "here" for row in result.served if row.outcome == "ok"
    )


def test_the_choice_is_worth_having() -> None:
    """At a load that is too much for either site both together serve it: who keeps or sends all does not."""
    chosen = judged(played("way=40", 1.0)).attainment
    kept = judged(played("way=40:hops_max=0", 1.0)).attainment
    crowd = "way=40:others=0.6"
    sent = judged(played(f"{crowd}:prompt_tokens_simple=0:prompt_tokens_complex=0", 1.0)).attainment
    shared = judged(played(crowd, 1.0)).attainment
    assert chosen > 0.97
    assert kept < chosen - 0.2
    assert sent < shared


def test_simple_work_stays_and_long_work_goes() -> None:
    """With room on both sides prompts up to the bound stay, and those above the other go."""
    result = played("way=40", 0.4)
    rule = SiteWay(ms=40).rule
    for row in result.served:
        if row.arrival.prompt_tokens > rule.prompt_tokens_complex:
            assert row.endpoint == CENTRE_ADDRESS
    assert result.placed["simple"] > 0.3 * len(result.served)
    assert set(where(result)) == {"here", "there"}


def test_every_arrival_ends_once_and_both_books_are_empty() -> None:
    """Whatever the link does: a row for each request, in order, and no reservation left at the edge."""
    workload = made(1.1, requests=250)
    fleet = parse_fleet(f"{NEAR},way=150:cut_s=4:others=0.3,{FAR}")
    result = play_sites(workload, fleet, Setting(strategy="steer"))
    assert [row.arrival for row in result.served] == list(workload.arrivals)
    for row in result.served:
        assert row.end_ns >= row.arrival.at_ns
        assert row.outcome != "ok" or row.arrival.at_ns <= row.first_ns <= row.end_ns
    assert len(result.scheduler.ledger) == 0


def test_the_same_seed_is_the_same_pair_of_sites() -> None:
    """Two runs agree in every nanosecond; another seed does not."""
    workload, fleet = made(0.9, requests=80), parse_fleet(f"{NEAR},way=40:others=0.2,{FAR}")
    first, again, other = (
        play_sites(workload, fleet, Setting(strategy="steer", seed=seed)) for seed in (3, 3, 4)
    )
    assert first.served == again.served
    assert first.busy_ns == again.busy_ns
    assert first.served != other.served


def test_the_way_is_paid_once() -> None:
    """A centre without an edge at .3 of its load: 200 ms of round trip are 200 ms of every first token."""
    near, far = (played(f"way={ms}:jitter=0", 0.3, near="", requests=100) for ms in (0, 200))
    assert where(far) == {"there": 100}
    for one, other in zip(near.served, far.served, strict=True):
        later_ms = (other.first_ns - one.first_ns) / MS
        # Half of the way later at the centre, it may meet another request there.
        assert 100 < later_ms < 300
    took = [[row.first_ns - row.arrival.at_ns for row in each.served] for each in (near, far)]
    assert (sum(took[1]) - sum(took[0])) / 100 / MS == pytest.approx(200, abs=10)


def test_the_link_takes_its_way_unless_it_is_cut() -> None:
    """Half of the round trip in each direction and up to the jitter more; nothing is late without a cut."""
    workload = made(0.4, requests=50)
    whole = Link(SiteWay(ms=40), workload, Random(1))
    for at_ns in range(0, 10 * S, S // 100):
        passed_ns = whole.passes(at_ns)
        assert passed_ns is not None
        assert 20 * MS <= passed_ns - at_ns <= 24 * MS
    cut = Link(SiteWay(ms=40, cut_s=5), workload, Random(1))
    assert cut.passes(cut.cut_from_ns - 10 * MS) is None
    assert cut.passes(cut.cut_from_ns + 5 * S) is not None


def test_a_cut_loses_streams_alone() -> None:
    """What had begun to answer is broken off; what had not, and what comes meanwhile, is served here."""
    result = played("way=40:cut_s=8", 0.2, requests=200)
    lost = [row for row in result.served if row.outcome == "failed"]
    assert lost
    assert all(row.first_ns >= 0 and row.endpoint == CENTRE_ADDRESS for row in lost)
    assert result.placed["centre_away"] > 0
    cut_ns = _cut_of(result, cut_s=8)
    meanwhile = [row for row in result.served if cut_ns + 4 * S < row.arrival.at_ns < cut_ns + 8 * S]
    assert meanwhile
    assert {row.endpoint == CENTRE_ADDRESS for row in meanwhile} == {False}
    assert all(row.outcome == "ok" for row in meanwhile)
    # It goes there again, once the link is there.
    assert any(row.endpoint == CENTRE_ADDRESS and row.arrival.at_ns > cut_ns + 9 * S for row in result.served)


def test_a_centre_alone_has_nobody_else_in_a_cut() -> None:
    """The same cut without replicas here: what comes meanwhile fails, or is turned away."""
    result = played("way=40:cut_s=8", 0.4, near="")
    cut_ns = _cut_of(result, cut_s=8)
    meanwhile = [row for row in result.served if cut_ns < row.arrival.at_ns < cut_ns + 5 * S]
    assert {row.outcome for row in meanwhile} == {"failed", "shed"}


def test_a_cut_that_nobody_notices_delays() -> None:
    """A second without the link: nothing fails, and some first tokens are a second late."""
    result = played("way=40:cut_s=1", 0.3, near="", requests=100)
    assert {row.outcome for row in result.served} == {"ok"}
    assert max(row.first_ns - row.arrival.at_ns for row in result.served) > 0.5 * S


def test_a_centre_that_others_have_filled_gets_less() -> None:
    """Eight times as many requests from other sites: half of what went there stays."""
    alone, crowded = (played(way, 0.3, requests=200) for way in ("way=40", "way=40:others=8"))
    assert where(crowded)["there"] < 0.5 * where(alone)["there"]


def _cut_of(result: Result, *, cut_s: float) -> int:
    """When the link was cut."""
    arrivals = tuple(row.arrival for row in result.served)
    workload = replace(made(0.4), arrivals=arrivals)
    return Link(SiteWay(ms=40, cut_s=cut_s), workload, Random(1)).cut_from_ns


@pytest.mark.parametrize("strategy", [ORACLE, "envoy-least-request", "round_robin"])
def test_every_kind_of_strategy_is_played_on_both_sites(strategy: str) -> None:
    """The oracle knows the replicas here and those there, a peer holds nothing at either."""
    fleet = parse_fleet(f"{NEAR},way=40,{FAR}")
    result = play_sites(made(0.5, requests=60), fleet, Setting(strategy=strategy))
    assert {row.outcome for row in result.served} == {"ok"}
    assert set(where(result)) == {"here", "there"}


# -- the fleet's form ----------------------------------------------------------------------------------------


def test_a_fleet_with_a_way_has_two_parts() -> None:
    """Before it the edge, after it the centre; addresses and prices are told apart, the mix stays scaled."""
    fleet = parse_fleet(f"{NEAR}:price=0.5,way=40:jitter=0:prompt_tokens_simple=64,{FAR}")
    assert [address for address, _ in fleet.edge.replicas] == ["10.0.0.1:80"]
    assert [address for address, _ in fleet.centre.replicas] == ["10.0.0.2:80", "10.0.0.3:80"]
    assert fleet.prices() == {"10.0.0.1:80": 0.5, "10.0.0.2:80": 3.5, "10.0.0.3:80": 3.5}
    assert fleet.way is not None
    assert (fleet.way.ms, fleet.way.rule.prompt_tokens_simple) == (40.0, 64)
    assert describe(fleet) == [
        "1 × a100-80g/llama-3-8b, price 0.5",
        "a way of 40 ms to the centre, jitter 0, prompt_tokens_simple 64",
        "2 × h100-80g/llama-3-8b",
    ]
    scaled = fleet.scaled(6).permitting(64)
    assert (len(scaled.edge.replicas), len(scaled.centre.replicas), scaled.way) == (2, 4, fleet.way)
    assert len(parse_fleet(f"way=5,{FAR}").edge.replicas) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{NEAR},way=40", "write one way, and the centre's replicas after it"),
        (f"{NEAR},way=40,{FAR},way=5,{FAR}", "write one way"),
        (f"{NEAR},way=far,{FAR}", "way=far is no float"),
        (f"{NEAR},way=40:colour=red,{FAR}", "unknown setting 'colour' of a way; there are jitter"),
        (f"{NEAR},way=40:digest_s=0,{FAR}", "digest_s must be above 0, not 0"),
        (f"{NEAR},way=40:cut_at=2,{FAR}", "cut_at must lie in 0..1, not 2"),
        (f"{NEAR},way=-1,{FAR}", "no time and no share of a way may be negative"),
        (f"{NEAR},way=40:prompt_tokens_simple=9000,{FAR}", "must be at most prompt_tokens_complex"),
        (f"{NEAR}:price=-1", "kv_tokens and price must not be negative"),
    ],
)
def test_mistakes_of_a_way_name_the_part(text: str, said: str) -> None:
    """What cannot be read says which part is wrong."""
    with pytest.raises(FleetError, match=said):
        parse_fleet(text)


def test_one_site_is_not_played_as_two() -> None:
    """Who has a fleet of two sites plays it as such."""
    with pytest.raises(AssertionError):
        run(made(0.5), parse_fleet("8b-tiers"), Setting(strategy="steer"))

"""Figures, intervals, tables, JSON, Markdown and plots of simulated runs."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.lab.report import (
    SLO_8B,
    SLO_70B,
    Cell,
    Figures,
    Served,
    figures,
    interval,
    markdown,
    plots,
    rows,
    table,
    to_json,
)
from extproc.lab.report.figures import jain, percentile, spread
from extproc.lab.workload import Arrival

MS = 1_000_000


def row(
    *,
    at_ms: float = 0,
    ttft_ms: float = 500,
    tpot_ms: float = 50,
    prompt: int = 100,
    output: int = 11,
    outcome: str = "ok",
    tenant: str = "a",
    cached: int = 0,
    service_class: str = "standard",
) -> Served:
    """One request, decided a tenth of the way to its first token."""
    arrival = Arrival(round(at_ms * MS), tenant, prompt, output, None)
    if outcome != "ok":
        return Served(arrival, outcome, "", -1, -1, -1, 0, service_class)
    first = at_ms + ttft_ms
    end = first + tpot_ms * (output - 1)
    decided = at_ms + ttft_ms / 10
    return Served(
        arrival, "ok", "r0", round(decided * MS), round(first * MS), round(end * MS), cached, service_class
    )


@pytest.mark.parametrize(
    ("served", "met"),
    [
        (row(ttft_ms=1000, tpot_ms=100), True),  # the bounds are inclusive
        (row(ttft_ms=1001), False),
        (row(tpot_ms=101), False),
        (row(ttft_ms=4900, prompt=4001), True),  # a long prompt has 5 s
        (row(ttft_ms=4900, prompt=4000), False),
        (row(ttft_ms=5001, prompt=9000), False),
        (row(output=1), True),  # no token after the first: nothing to be slow
        (row(outcome="shed"), False),
        (row(outcome="refused"), False),
        (row(outcome="failed"), False),
    ],
)
def test_a_request_attains_when_both_bounds_hold(served: Served, met: bool) -> None:
    """TTFT by prompt length, TPOT over the tokens after the first, and an answer at all."""
    assert SLO_8B.met(served) is met


def test_seventy_billion_has_two_seconds() -> None:
    """The same request fails an 8B's bound and meets a 70B's."""
    served = row(ttft_ms=1900)
    assert not SLO_8B.met(served)
    assert SLO_70B.met(served)


def test_attainment_counts_every_request() -> None:
    """One met, one late, one shed, one failed: a quarter, over all and by tenant."""
    run = figures(
        [
            row(tenant="a"),
            row(tenant="a", ttft_ms=2000, service_class="batch"),
            row(tenant="b", outcome="shed"),
            row(tenant="b", outcome="failed"),
        ],
        slo=SLO_8B,
        duration_s=2,
    )
    assert (run.requests, run.ok, run.shed, run.refused, run.failed) == (4, 2, 1, 0, 1)
    assert (run.attained, run.attainment, run.goodput_rps, run.answered_rps) == (1, 0.25, 0.5, 1.0)
    assert run.attainment_by_tenant == {"a": 0.5, "b": 0.0}
    assert run.attainment_by_class == {"batch": 0.0, "standard": pytest.approx(1 / 3)}
    assert run.attainment_least == 0
    assert run.fairness_jain == pytest.approx(0.5)


def test_latencies_are_of_the_answered() -> None:
    """Two answers: mean, median and the interpolated tail; waiting is up to the decision."""
    run = figures(
        [row(ttft_ms=100, tpot_ms=20), row(ttft_ms=300, tpot_ms=40), row(outcome="shed")], slo=SLO_8B
    )
    assert run.ttft_ms is not None
    assert (run.ttft_ms.mean, run.ttft_ms.p50, run.ttft_ms.most) == (200, 200, 300)
    assert run.ttft_ms.p99 == pytest.approx(298)
    assert run.tpot_ms is not None
    assert run.tpot_ms.p50 == pytest.approx(30)
    assert run.wait_ms is not None
    assert run.wait_ms.mean == pytest.approx(20)
    assert run.e2e_ms is not None
    assert run.e2e_ms.most == pytest.approx(700)
    assert run.duration_s == pytest.approx(0.7)


def test_hits_service_and_who_pays() -> None:
    """Cached tokens of answered prompts, weighted tokens a second, and the mean prompt that was shed."""
    run = figures(
        [
            row(prompt=100, output=10, cached=50, tenant="a"),
            row(prompt=300, output=20, tenant="b"),
            row(prompt=800, outcome="shed"),
        ],
        slo=SLO_8B,
        duration_s=10,
    )
    assert run.hit_share == pytest.approx(50 / 400)
    assert run.service_by_tenant == {"a": pytest.approx(12), "b": pytest.approx(34)}
    assert run.service_gap_tokens_per_s == pytest.approx(22)
    assert run.shed_prompt_ratio == pytest.approx(2)  # 800 over a mean of 400


def test_use_and_cost_are_figured_where_given() -> None:
    """Endpoints are paid for all the time; without prices there is no cost."""
    served = [row(), row(ttft_ms=3000)]
    run = figures(
        served, slo=SLO_8B, duration_s=1800, busy_s={"r1": 900, "r0": 450}, cost_per_hour={"r0": 2, "r1": 4}
    )
    assert run.utilisation == {"r0": 0.25, "r1": 0.5}
    assert run.utilisation_mean == pytest.approx(0.375)
    assert run.cost == pytest.approx(3)
    assert run.cost_per_1k_attained == pytest.approx(3000)
    assert run.cost_per_1m_output_tokens == pytest.approx(3 / 22 * 1e6)
    assert figures(served, slo=SLO_8B).cost is None


def test_a_run_that_answered_nothing_has_no_latency() -> None:
    """Attainment is 0, spreads are None, nothing divides by zero."""
    run = figures([row(outcome="shed")], slo=SLO_8B)
    assert (run.attainment, run.goodput_rps, run.hit_share, run.ttft_ms) == (0, 0, 0, None)
    assert run.fairness_jain == 1  # all tenants are as badly off
    assert run.shed_prompt_ratio == 1


def test_rows_that_cannot_be_judged_are_refused() -> None:
    """No rows, or an outcome that nobody knows."""
    with pytest.raises(ValueError, match="no requests"):
        figures([], slo=SLO_8B)
    with pytest.raises(ValueError, match=r"unknown outcomes \['lost'\]; known: ok, shed"):
        figures([replace(row(), outcome="lost")], slo=SLO_8B)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0, 1))
def test_percentiles_stay_within_and_ascend(values: list[float], share: float) -> None:
    """Any percentile lies between the extremes, and a spread's are in order."""
    ordered = sorted(values)
    assert ordered[0] <= percentile(ordered, share) <= ordered[-1] * (1 + 1e-12)
    held = spread(values)
    assert held is not None
    assert held.p50 <= held.p90 * (1 + 1e-12)
    assert held.p90 <= held.p99 * (1 + 1e-12)


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=30))
def test_jains_index_lies_between_one_tenant_and_all(values: list[float]) -> None:
    """1/n for one alone, 1 for all alike."""
    assert 1 / len(values) - 1e-9 <= jain(values) <= 1 + 1e-9
    assert jain([values[0]] * 5) == pytest.approx(1)
    assert jain([values[0], 0, 0, 0]) == pytest.approx(0.25)


def test_intervals_are_students() -> None:
    """Three runs 1, 2, 3: deviation 1, t = 4.303, half 4.303/√3; a single run has none."""
    three = interval([1, 2, 3])
    assert (three.mean, three.runs) == (2, 3)
    assert three.half == pytest.approx(4.303 / 3**0.5)
    assert interval([5]).half is None
    assert interval([float(at % 2) for at in range(100)]).half == pytest.approx(0.1026, rel=0.01)
    with pytest.raises(ValueError, match="no runs"):
        interval([])


def run_of(late: int, *, of: int = 10, **settings: float) -> Figures:
    busy = {"r0": settings["busy"]} if "busy" in settings else None
    served = [row(at_ms=at * 100, ttft_ms=2000 if at < late else 300 + at) for at in range(of)]
    return figures(served, slo=SLO_8B, duration_s=1, busy_s=busy)


def study() -> list[Cell]:
    lates = {"steersman": 0, "round-robin": 4, "oracle": 0}
    return [
        Cell(workload, load, strategy, seed, run_of(lates[strategy] + (strategy != "oracle") * (seed - 1)))
        for workload in ("conv", "code")
        for load in (0.9, 0.5)
        for strategy in lates
        for seed in (1, 2, 3)
    ]


def test_cells_are_gathered_over_seeds() -> None:
    """One row a workload, load and strategy: loads ascend, workloads and strategies as they came."""
    held = rows(study())
    assert [(r.workload, r.load, r.strategy) for r in held[:4]] == [
        ("conv", 0.5, "steersman"),
        ("conv", 0.5, "round-robin"),
        ("conv", 0.5, "oracle"),
        ("conv", 0.9, "steersman"),
    ]
    assert len(held) == 12
    attainment = held[0].values["attainment"]
    assert attainment is not None
    assert attainment.mean == pytest.approx(0.9)
    assert held[0].seeds == (1, 2, 3)
    assert held[0].values["cost_per_1k_attained"] is None


def test_a_pipe_gets_plain_aligned_text() -> None:
    """No escape codes; one line a row under the titles, and the label."""
    out = io.StringIO()
    table(study(), file=out)
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    assert lines[0].split()[:3] == ["workload", "load", "strategy"]
    assert lines[1].split()[:5] == ["conv", "0.5", "steersman", "90.0", "±24.8"]
    assert len(lines) == 1 + 12 + 1
    assert lines[-1].startswith("simulated")
    assert "cost" not in lines[0]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_narrow_terminal_loses_columns_and_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are never cut: what does not fit is named below; a wide terminal shows all."""
    monkeypatch.setenv("COLUMNS", "80")
    narrow = Terminal()
    table(study(), file=narrow)
    shown = narrow.getvalue()
    assert "90.0 ±24.8" in shown
    assert "…" not in shown
    assert "widen the terminal" in " ".join(shown.split())
    monkeypatch.setenv("COLUMNS", "250")
    wide = Terminal()
    table(study(), file=wide)
    assert "Jain" in wide.getvalue()
    assert "widen" not in wide.getvalue()


def test_json_is_the_same_bytes_for_the_same_cells() -> None:
    """Sorted, rounded, whatever the order the cells came in; what was not measured is null."""
    cells = study()
    text = to_json(cells)
    assert text == to_json(list(reversed(cells)))
    document = json.loads(text)
    assert document["label"].startswith("simulated")
    assert len(document["cells"]) == 36
    assert document["cells"][0]["figures"]["cost"] is None
    assert list(document["cells"][0]) == sorted(document["cells"][0])
    numbers = json.loads(text, parse_float=lambda digits: len(digits.partition(".")[2]))
    assert max(numbers["cells"][1]["figures"]["ttft_ms"].values()) <= 6


def test_markdown_shows_the_best_but_the_oracle_in_bold() -> None:
    """Attainment by load, every figure below, facts and plots above."""
    text = markdown(study(), facts={"fleet": "8 × A100"}, figures=["plots/cells.svg"])
    assert "- fleet: 8 × A100" in text
    assert "![cells](plots/cells.svg)" in text
    assert "| strategy | load 0.5 | load 0.9 |" in text
    assert "| steersman | **90.0 ±24.8** | **90.0 ±24.8** |" in text
    assert "| oracle | 100.0 ±0.0 | 100.0 ±0.0 |" in text
    assert text.count("## ") == 2
    assert "simulated" in text


def test_plots_are_written_and_svg_repeats(tmp_path: Path) -> None:
    """PNG and SVG of each; the same cells make the same SVG bytes, without a date."""
    pytest.importorskip("matplotlib", reason="plots need matplotlib (the extra `sim`)")
    ttft = {"steersman": [100.0, 200.0, 0.0], "oracle": [50.0, 90.0], "round-robin": []}
    first = plots(tmp_path / "a", study(), ttft_ms=ttft, ttft_slo_ms=1000, emphasis="steersman")
    again = plots(tmp_path / "b", study(), ttft_ms=ttft, ttft_slo_ms=1000, emphasis="steersman")
    assert sorted(path.name for path in first) == [
        "attainment-by-load.png",
        "attainment-by-load.svg",
        "cells.png",
        "cells.svg",
        "ttft.png",
        "ttft.svg",
    ]
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.stat().st_size > 5000
    assert first[0].read_bytes().startswith(b"\x89PNG")
    assert b"dc:date" not in first[1].read_bytes()


def test_plots_of_nothing_are_refused(tmp_path: Path) -> None:
    """No cells, no picture; a strategy that ran in one place alone is still drawn."""
    pytest.importorskip("matplotlib", reason="plots need matplotlib (the extra `sim`)")
    with pytest.raises(ValueError, match="no cells"):
        plots(tmp_path, [])
    lonely = [*study(), Cell("conv", 0.5, "random", 1, run_of(5, busy=0.5))]
    assert len(plots(tmp_path, lonely)) == 4

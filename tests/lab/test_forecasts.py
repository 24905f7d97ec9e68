"""The judging of forecasts: what weeks it plays, and that its figures tell a good method from a bad one."""

from __future__ import annotations

import gzip
from itertools import pairwise
from math import cos, pi
from pathlib import Path

import pytest

from extproc.lab.forecasts import BUCKET_S, PEAK, WINDOW_S, judged, rates_at, windows


def test_gaps_of_the_recording_are_filled_and_windows_keep_their_means(tmp_path: Path) -> None:
    """A zero is the window before; within windows the rate is drawn straight about the mean."""
    path = tmp_path / "weeks.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("# of somewhere\nt_s,rate,clients_active,largest_client_rate\n")
        file.writelines(f"{i * 600},{rate},1,1\n" for i, rate in enumerate((10, 20, 0, 30, 10)))
    means = windows(path)
    assert means == [10.0, 20.0, 20.0, 30.0, 10.0]
    each = int(WINDOW_S / BUCKET_S)
    rates = list(rates_at(means, 5 * each))
    assert max(abs(b - a) for a, b in pairwise(rates)) < 2.0
    for k in (1, 2):
        mean = sum(rates[k * each : (k + 1) * each]) / each
        assert mean == pytest.approx(means[k] * PEAK / 30.0, rel=0.02)


def test_a_longer_horizon_is_harder_and_the_upper_end_holds_most() -> None:
    """On a rate that swings each hour the loss grows with the horizon."""
    means = [30.0 + 20.0 * cos(2 * pi * i / 6.0) for i in range(144)]
    near = judged(means, days=0.5, ahead_s=30.0, seed=1)
    far = judged(means, days=0.5, ahead_s=600.0, seed=1)
    assert near["last"][0] < 0.6 * far["last"][0]
    assert all(0.5 < inside < 0.95 for _, _, inside in near.values())

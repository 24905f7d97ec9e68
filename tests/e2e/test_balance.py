"""The balancing bench in short: one replica slow, one failing, prefixes worth keeping together.

`make bench-balance` measures; here is what must hold whatever the machine does meanwhile.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"
sys.path += [str(BENCH), str(BENCH / "balance")]

from play import ODD, PLAIN, Case, play  # noqa: E402 (the bench's folders come onto sys.path first)
from scenario import ENGINES  # noqa: E402

pytestmark = [pytest.mark.envoy, pytest.mark.soak]

#: Three times as fast as life: three seconds each.
SHORT = {
    "shape": "hard",
    "time_scale": 3.0,
    "mock": replace(ENGINES["tgi"], requests=150, rate_per_s=18.0, kv_tokens=24_000),
}
#: How much more of the prompts comes from caches than under least request: about twice that was measured.
HIT_MORE = 0.08


def test_a_slow_and_a_failing_replica_harm_nobody_and_prefixes_stay_together() -> None:
    """No request fails, the straggler gets the fewest, more is cached than by least request."""
    ours = play(Case(balancer="", **SHORT))
    plain = play(Case(balancer=PLAIN, **SHORT))
    assert (ours.failed, ours.shed) == (0, 0)
    assert plain.failed > 0, "the replica that fails must be seen to fail"
    assert ours.at[ODD] < 0.7 * min(ours.at[: ODD - 1]), ours.at
    assert sum(ours.at) == SHORT["mock"].requests, ours.at
    assert ours.hit > plain.hit + HIT_MORE, (ours.hit, plain.hit)
